"""Makes the bundled tokenizer: a byte-level BPE of 2,048 tokens, trained on the examples that the model is taught.

Owns: the vocabulary and how text is cut.
Knows nothing about: the network.

Run ``python -m engine_adapter.bundled.training.make_tokenizer``. It overwrites ``tokenizer.json`` and gives the same
bytes each time. Every byte is a token, so any text can be encoded. Words are cut from the spaces and marks around them,
and digits stand alone. So a name has the same tokens in a sentence and between quotes, and copying it is copying
tokens.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from engine_adapter.bundled.training import words
from engine_adapter.bundled.training.dialogue import segments, spell
from engine_adapter.bundled.training.make_data import SPELLED, make

VOCAB_SIZE = 2048
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SPLIT = r"\p{Lu}?\p{Ll}+|\p{L}+|\p{N}|[^\p{L}\p{N}]+"
"""Words without their space, parts of camelCase, single digits, runs of marks and white space (so that `": "` becomes a
token)."""


def main(output: Path = Path(__file__).parents[1] / "tokenizer.json") -> None:
    """Trains the tokenizer and writes it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=16,
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents(random.Random(0), 12000), trainer)  # noqa: S311 - text, no secret
    if tokenizer.get_vocab_size() != VOCAB_SIZE:
        raise SystemExit(f"{tokenizer.get_vocab_size()} tokens instead of {VOCAB_SIZE}: the text is too uniform")
    tokenizer.save(str(output), pretty=False)


def documents(rng: random.Random, count: int) -> Iterator[str]:
    """Yields the texts of ``count`` examples, and as many made-up words in quotes and in JSON of all spellings."""
    for _ in range(count):
        example = make(rng, tasks=SPELLED)
        text = "".join(piece for piece, _ in segments(example.messages, example.tools))
        for mark in SPECIAL_TOKENS:
            text = text.replace(mark, "")
        yield text
        yield spell({words.word(rng): [words.name(rng, held_back=False), {"name": words.word(rng)}, None, True]}, rng)


if __name__ == "__main__":
    main()
