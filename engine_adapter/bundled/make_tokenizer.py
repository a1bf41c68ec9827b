"""Makes the bundled tokenizer: a byte-level BPE of 2,048 tokens, trained on text that this script writes.

Run ``python engine_adapter/bundled/make_tokenizer.py``; it overwrites ``tokenizer.json`` beside it and gives the same bytes each time.
The text is what the demo decodes: JSON documents and short plain sentences. Every byte is a token, so any text can be encoded.
"""

# ruff: noqa: SIM905 - word lists read better as text
from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

VOCAB_SIZE = 2048
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SPLIT = r"\p{L}+| \p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+"
"""Words with their space, single digits, runs of punctuation (so that `":"` and `},{` become tokens), white space."""

CITIES = "London Paris Berlin Rome Madrid Vienna Prague Lisbon Athens Oslo Dublin Warsaw Helsinki Budapest Tokyo Kyoto Delhi Cairo".split()
COUNTRIES = "England France Germany Italy Spain Austria Portugal Greece Norway Ireland Poland Finland Hungary Japan India Egypt".split()
NAMES = "Ada Grace Alan Edsger Barbara Donald Margaret Dennis Radia Linus Katherine Hedy Tim Emmy Kurt Sophie John Mary Anna".split()
SURNAMES = "Lovelace Hopper Turing Dijkstra Liskov Knuth Hamilton Ritchie Perlman Johnson Shannon Noether Smith Miller Garcia Brown".split()
SKILLS = "python rust compilers design writing music chess cooking law physics biology history painting teaching sailing robotics".split()
COMPANIES = "Analytical Engines,Northwind,Acme,Initech,Globex,Umbrella,Bletchley Park,Bell Labs,Atlas Works,Harbour Line".split(",")
KEYS = (
    "name age city country skills company duration population capital title price currency date time location temperature unit status "
    "description items address street email phone id type value result error message role content function arguments parameters required "
    "properties object string number integer boolean array true false null work history start end state language armor weapon strength"
).split()
WORDS = (
    "the of and to in a is that for it was on are as with his they at be this from have or by one had not but what all were when we there "
    "can an your which their said if do will each about how up out them then she many some so these would other into has more her two like "
    "him see could no make than first been its who now people my made over did down only way find use may water long little very after "
    "words called just where most know get through back much before go good new write our used me man too any day same right look think "
    "also around another came come work three word must because does part even place well such here take why things help put years "
    "different away again off went old great tell men say small every found still between should home big give air line set own under "
    "read last never us left end along while might next sound below saw something thought both few those always looked show large often "
    "together asked house world going want school important until form food keep children feet land side without boy once animals life "
    "enough took sometimes four head above kind began almost live page got earth need far hand high year mother light parts country "
    "father let night following picture being study second eyes soon times story boys since white days ever paper hard near sentence "
    "better best across during today others however sure means knew try told young miles sun ways thing whole hear example heard several "
    "change answer room sea against top turned learn point city play toward five using himself usually money seen car morning given "
    "January February March April May June July August September October November December Monday Tuesday Wednesday Thursday Friday "
    "Saturday Sunday red green blue yellow black brown orange purple zero six seven eight nine ten hundred thousand million north south "
    "east west spring summer autumn winter engineer teacher doctor student writer artist manager service system model language network "
    "window garden market station bridge castle island village forest mountain valley harbour theatre library museum university"
).split()


def main() -> None:
    """Trains the tokenizer and writes it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(SPLIT), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents(random.Random(0), 6000), trainer)  # noqa: S311 - text, no secret
    if tokenizer.get_vocab_size() != VOCAB_SIZE:
        raise SystemExit(f"{tokenizer.get_vocab_size()} tokens instead of {VOCAB_SIZE}: the text is too uniform")
    tokenizer.save(str(Path(__file__).with_name("tokenizer.json")), pretty=False)


def documents(rng: random.Random, count: int) -> Iterator[str]:
    """Yields ``count`` short texts: JSON in three spellings, sentences about cities, runs of common words."""
    for _ in range(count):
        indent, separators = rng.choice([(None, (",", ":")), (None, (", ", ": ")), (2, None)])
        yield json.dumps(document(rng), indent=indent, separators=separators)
        city, country = rng.choice(CITIES), rng.choice(COUNTRIES)
        yield f"{city} is the capital of {country}. {rng.choice(NAMES)} {rng.choice(SURNAMES)} lives in {city}."
        yield " ".join(rng.choices(WORDS, k=20)).capitalize() + rng.choice([".", "?", "!\n", ",", ";", ":"])


def document(rng: random.Random, depth: int = 0) -> dict[str, object]:
    """Returns one nested object."""
    return {key: value(rng, depth) for key in rng.sample(KEYS, rng.randint(2, 6))}


def value(rng: random.Random, depth: int) -> object:
    """Returns one JSON value."""
    match rng.randrange(8 if depth < 2 else 6):
        case 0:
            return f"{rng.choice(NAMES)} {rng.choice(SURNAMES)}"
        case 1:
            return rng.choice(CITIES + COUNTRIES + COMPANIES)
        case 2:
            return rng.choice([True, False, None])
        case 3:
            return rng.randrange(10 ** rng.randint(1, 6))
        case 4:
            return " ".join(rng.choices(WORDS, k=rng.randint(1, 6)))
        case 5:
            return rng.sample(SKILLS, rng.randint(1, 4))
        case 6:
            return [document(rng, depth + 1) for _ in range(rng.randint(1, 2))]
        case _:
            return document(rng, depth + 1)


if __name__ == "__main__":
    main()
