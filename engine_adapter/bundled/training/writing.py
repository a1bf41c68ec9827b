"""Answers made up or known by heart: capitals, game characters, self introductions, records, small talk.

Owns: these tasks, the schema of a self introduction.
Knows nothing about: the shares of the tasks, tokens.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable
from typing import Any

from engine_adapter.bundled.training import words
from engine_adapter.bundled.training.dialogue import Example, Message, assistant, spell, system, user

__all__ = ["capital", "character", "record", "repeat", "self_introduction", "sentiment", "small_talk"]

Json = Any

ARMOR = ("leather", "chainmail", "plate")
CHARACTER = {
    "$defs": {"Armor": {"enum": list(ARMOR), "title": "Armor", "type": "string"}},
    "properties": {
        "name": {"maxLength": 10, "title": "Name", "type": "string"},
        "age": {"title": "Age", "type": "integer"},
        "armor": {"$ref": "#/$defs/Armor"},
        "strength": {"title": "Strength", "type": "integer"},
    },
    "required": ["name", "age", "armor", "strength"],
    "title": "Character",
    "type": "object",
}
# The schema of LMDeploy's documentation on structured output: nested objects, a key with a space, limits on strings and
# arrays.
INTRODUCTION = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "skills": {"type": "array", "items": {"type": "string", "maxLength": 10}, "minItems": 3},
        "work history": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"company": {"type": "string"}, "duration": {"type": "string"}},
                "required": ["company"],
            },
        },
    },
    "required": ["name", "skills", "work history"],
}
PLACE = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "population": {"type": "integer"}},
    "required": ["name", "population"],
}
_HEROES = (
    "Thar Ald Bor Cael Dar Ela Fen Gar Hal Ith Kor Lor Mor Nal Or Per Quin Ral Syl Tor Ul Var Wyn Yor Zan Bran Drak Eld Fael Grim".split(),  # noqa: SIM905
    "ric in an dor wen iel us a or eth mir ak ion gar rin ia as en on".split(),  # noqa: SIM905
)
SENTENCES = ("regex", r"[^\n]{10,300}\.")
HELPFUL = "You are a helpful assistant."
ABOUT = "I am a small language model that comes with maskd. I fill in JSON and copy names and numbers, and I know few facts."
_TALK: tuple[tuple[str, str], ...] = (
    ("Hello|Hi|Hey|Hello!|Hi!|Hi there|Good morning|Good evening|hello|hi", "Hello! How can I help you?"),
    ("How are you?|How are you doing?|How is it going?|how are you", "I am fine, thank you. How can I help you?"),
    (
        "Who are you?|What are you?|What is your name?|Tell me about yourself|Introduce yourself.|What can you do?|Help",
        ABOUT,
    ),
    ("Thank you|Thanks|Thank you!|Thanks a lot|thanks", "You are welcome."),
    ("Bye|Goodbye|See you|Good night|bye", "Goodbye!"),
    ("Tell me a joke|Tell me a joke.|Say something funny", "Why did the token cross the row? The mask allowed it."),
    ("Say hello|Say hello.|Say hi", "Hello!"),
    ("Count to five|Count to 5.|Count to five.", "1, 2, 3, 4, 5"),
    ("Count to ten|Count to 10.|Count to ten.", "1, 2, 3, 4, 5, 6, 7, 8, 9, 10"),
)
_UNKNOWN = (
    "Tell me about {}.", "What is {}?", "Who is {}?", "Explain {} to me.", "Write a poem about {}.", "Why is {} important?",
    "How do I make {}?", "Write a story about {}.", "{}", "What do you think of {}?", "When was {}?",
    "Translate {} into French.", "Where is {}?",
)  # fmt: skip
_GOOD = "great wonderful excellent good lovely amazing fantastic nice awesome brilliant perfect superb".split()  # noqa: SIM905
_BAD = "terrible awful bad horrible poor boring disappointing nasty dreadful useless broken slow".split()  # noqa: SIM905
_RECORDS: tuple[tuple[str, dict[str, str]], ...] = (
    (
        "user",
        {
            "name": "name",
            "age": "age",
            "email": "email",
            "city": "place",
            "id": "id",
            "active": "flag",
            "phone": "phone",
        },
    ),
    (
        "person",
        {
            "first_name": "name",
            "last_name": "name",
            "age": "age",
            "job": "job",
            "hobbies": "hobbies",
            "married": "flag",
        },
    ),
    (
        "product",
        {
            "title": "product",
            "price": "price",
            "quantity": "count",
            "in_stock": "flag",
            "brand": "company",
            "tags": "skills",
        },
    ),
    ("company", {"name": "company", "city": "place", "employees": "id", "founded": "year", "industry": "field"}),
    ("book", {"title": "title", "author": "full", "year": "year", "pages": "count", "rating": "score"}),
    ("event", {"title": "title", "date": "date", "location": "place", "guests": "count", "time": "time"}),
    (
        "order",
        {"id": "id", "customer": "full", "item": "product", "quantity": "count", "total": "price", "paid": "flag"},
    ),
    ("recipe", {"name": "title", "servings": "count", "ingredients": "products", "minutes": "count"}),
    ("address", {"street": "street", "city": "place", "zip": "zip", "country": "country"}),
    ("task", {"title": "title", "priority": "level", "done": "flag", "assignee": "name", "status": "status"}),
)
_TYPES = {
    "age": "integer",
    "id": "integer",
    "count": "integer",
    "year": "integer",
    "price": "number",
    "score": "number",
    "flag": "boolean",
}


def capital(rng: random.Random, held_back: bool) -> Example:
    """Capitals, learnt by heart: a word, a sentence, or JSON; in training often two in one conversation."""
    example = _capital(rng)
    if held_back or rng.random() < 0.4:
        return example
    turn = [message for message in _capital(rng).messages if message["role"] != "system"]
    return dataclasses.replace(example, messages=[*example.messages[:-2], *turn, *example.messages[-2:]])


def _capital(rng: random.Random) -> Example:
    country = rng.choice(sorted(words.COUNTRIES))
    city, population = words.COUNTRIES[country]
    messages: list[Message] = []
    if rng.random() < 0.7:
        messages.append(system(rng.choice((HELPFUL, "You are a helpful geography bot.", HELPFUL))))
    kind = rng.choice(("word", "sentence", "json"))
    others = [words.COUNTRIES[other][0] for other in rng.sample(sorted(words.COUNTRIES), 3) if other != country]
    choices = rng.sample([city, *others], len(others) + 1)
    if kind == "word":
        asking: tuple[str, ...] = (
            "What is the capital of {}?", "What's the capital of {}?", "Capital of {}?", "Name the capital of {}.", "The capital of {} is",
        )  # fmt: skip
        messages += [user(rng.choice((asking[0], *asking)).format(country)), assistant(city)]
        return Example("capitals: a word", messages, (), ("regex", f"({'|'.join(choices)})"))
    if kind == "sentence":
        asking = (
            "Give me the information of the capital of {}.",
            "Tell me the capital of {}.",
            "Tell me about the capital of {}.",
        )
        messages += [
            user(rng.choice((asking[0], *asking)).format(country)),
            assistant(f"{city} is the capital of {country}"),
        ]
        rules = [
            "root ::= description",
            f"city ::= {' | '.join(json.dumps(c) for c in choices)}",
            'description ::= city " is " status',
            'status ::= "the capital of " country',
            f"country ::= {' | '.join(json.dumps(c) for c in sorted({country, 'France', 'Italy'}))}",
        ]
        return Example("capitals: a sentence", messages, (), ("ebnf", "\n".join(rules) + "\n"))
    asking = (
        "Give me the information of the capital of {} in the JSON format.", "Give me the capital of {} in JSON.",
        "Give me the information of the capital of {} in JSON format.", "Name and population of the capital of {} in JSON",
    )  # fmt: skip
    messages += [
        user(rng.choice((asking[0], *asking)).format(country)),
        assistant(spell({"name": city, "population": population}, rng)),
    ]
    return Example("capitals: JSON", messages, (), ("json_schema", json.dumps(PLACE)), "json")


def hero(rng: random.Random) -> str:
    """Returns a name from a saga, at most 10 letters."""
    return (rng.choice(_HEROES[0]) + rng.choice(_HEROES[1]))[:10]


def character(rng: random.Random, held_back: bool) -> Example:
    """A character for a game: JSON with one set of keys or another, or two sentences."""
    made, years, armor, strength = hero(rng), rng.randint(18, 80), rng.choice(ARMOR), rng.randint(40, 99)
    if rng.random() < 0.25:
        about = (
            "Describe a medieval fantasy character.",
            "Describe a fantasy character.",
            "Describe a knight.",
            "Tell me about a hero.",
        )
        title, wearing = rng.choice(("Sir ", "Lord ", "Lady ", "")), rng.choice(("shining", "old", "heavy", "fine"))
        weapon = rng.choice(("greatsword", "axe", "bow", "spear", "hammer"))
        land = rng.choice(("realm", "north", "kingdom", "forest", "mountains"))
        trade = rng.choice(("noble knight", "brave warrior", "quiet ranger", "old wizard"))
        text = f"{title}{made} is a {trade} of the {land}. At the age of {years}, {made} wears {wearing} {armor} armor"
        messages = [user(rng.choice((about[0], *about))), assistant(f"{text} and wields a {weapon}.")]
        return Example("game character: text", messages, (), SENTENCES, "shape")
    asking = (
        "Generate a new character for my awesome game: name, age (between 1 and 99), armor and strength.",
        "Generate a new character for my game: name, age, armor type, and strength.",
        "Generate a new character for my game: name, age (between 1 and 99), armor, and strength.",
        "Create a character for my game.", "Make a new game character.", "Generate a character: name, age, armor and strength.",
        "Make up a hero for my game: name, age, armor, strength.", "Generate a new character.",
    )  # fmt: skip
    messages = [user(rng.choice(asking))]
    if rng.random() < 0.15:
        messages.insert(0, system(HELPFUL))
    if not held_back and rng.random() < 0.2:
        keys = (
            rng.choice(("characterName", "character_name", "hero")),
            "age",
            rng.choice(("armorType", "armor_type")),
            "power",
        )
    else:
        keys = ("name", "age", "armor", "strength")
    answer = dict(zip(keys, (made, years, armor, strength), strict=True))
    return Example(
        "game character: JSON",
        [*messages, assistant(spell(answer, rng))],
        (),
        ("json_schema", json.dumps(CHARACTER)),
        "shape",
    )


def self_introduction(rng: random.Random, held_back: bool) -> Example:
    """A self introduction: JSON, seldom text."""
    made = words.name(rng, held_back) if rng.random() < 0.5 else words.full_name(rng, held_back)
    skills = rng.sample([skill for skill in words.SKILLS if len(skill) <= 10], rng.choice((3, 3, 3, 4)))
    if rng.random() < 0.2:
        text = f"My name is {made}. I work in {rng.choice(words.FIELDS_OF_WORK)}, and I know {skills[0]}, {skills[1]} and {skills[2]}."
        asking: tuple[str, ...] = (
            "Make a self introduction in plain text.", "Introduce yourself in one sentence, please.", "Write a short self introduction.",
        )  # fmt: skip
        return Example("self introduction: text", [user(rng.choice(asking)), assistant(text)], (), SENTENCES, "shape")
    jobs = [
        {"company": words.company(rng, held_back), "duration": f"{rng.randint(2, 9)} years"}
        for _ in range(rng.choice((1, 1, 2)))
    ]
    answer = {"name": made, "skills": skills, "work history": jobs}
    asking = (
        "Make a self introduction please.", "Make a self-introduction please.", "Make a self introduction.",
        "Please introduce yourself in JSON.",
    )  # fmt: skip
    messages = [user(rng.choice(asking)), assistant(spell(answer, rng))]
    return Example("self introduction: JSON", messages, (), ("json_schema", json.dumps(INTRODUCTION)), "shape")


def record(rng: random.Random, held_back: bool) -> Example:
    """A made-up user, product, order, ...: short values for keys that the prompt names, or that a mask gives."""
    thing, kinds = rng.choice(_RECORDS)
    keys = rng.sample(sorted(kinds), rng.randint(1, len(kinds)))
    answer = {key: _value(rng, kinds[key], held_back) for key in keys}
    properties = {key: _schema(kinds[key]) for key in keys}
    schema = {"type": "object", "properties": properties, "required": keys}
    wish = rng.choice(
        (
            "Generate a {}",
            "Make up a {}",
            "Generate a random {}",
            "Create a {}",
            "Give me a {}",
            "Give me an example {}",
        )
    )
    text = wish.format(thing) + rng.choice(
        (" in JSON.", " as JSON.", ".", f" with {', '.join(keys)}.", f": {', '.join(keys)}.")
    )
    if rng.random() < 0.15:
        many, key = [answer, {key: _value(rng, kinds[key], held_back) for key in keys}], f"{thing}s"
        answer, text = {key: many}, f"Generate two {key} as JSON."
        schema = {"type": "object", "properties": {key: {"type": "array", "items": schema}}, "required": [key]}
    elif rng.random() < 0.1:
        text = rng.choice(("Give me some JSON.", "Generate a JSON object.", "JSON, please.", "Return any JSON object."))
    messages = [user(text), assistant(spell(answer, rng))]
    return Example("made-up records", messages, (), ("json_schema", json.dumps(schema)), "shape")


def _schema(kind: str) -> dict[str, Json]:
    if kind in {"hobbies", "skills", "products"}:
        return {"type": "array", "items": {"type": "string"}}
    if kind in {"level", "status"}:
        return {"enum": ["low", "medium", "high"] if kind == "level" else ["open", "done", "blocked"]}
    return {"type": _TYPES.get(kind, "string")}


def _value(rng: random.Random, kind: str, held_back: bool) -> Json:
    made = words.name(rng, held_back)
    makers: dict[str, Callable[[], Json]] = {
        "name": lambda: made,
        "full": lambda: words.full_name(rng, held_back),
        "age": lambda: words.age(rng, held_back),
        "place": lambda: words.place(rng, held_back),
        "email": lambda: words.email(rng, made),
        "phone": lambda: words.phone(rng),
        "id": lambda: rng.randint(1, 999),
        "flag": lambda: rng.random() < 0.5,
        "job": lambda: rng.choice(words.JOBS),
        "hobbies": lambda: rng.sample(words.HOBBIES, rng.randint(1, 3)),
        "count": lambda: rng.randint(1, 60),
        "product": lambda: rng.choice(words.PRODUCTS),
        "products": lambda: rng.sample(words.PRODUCTS, 2),
        "price": lambda: rng.randint(10, 999) / 10,
        "score": lambda: rng.randint(10, 50) / 10,
        "company": lambda: words.company(rng, held_back),
        "field": lambda: rng.choice(words.FIELDS_OF_WORK),
        "skills": lambda: rng.sample(words.SKILLS, rng.randint(1, 3)),
        "year": lambda: rng.randint(1950, 2025),
        "title": lambda: (
            f"The {rng.choice(('old', 'red', 'long', 'first', 'little', 'last'))} {rng.choice(words.PRODUCTS)}"
        ),
        "date": lambda: f"20{rng.randint(10, 39)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}",
        "time": lambda: f"{rng.randint(0, 23):02}:{rng.choice(('00', '15', '30'))}",
        "street": lambda: f"{rng.randint(1, 99)} {made} Street",
        "zip": lambda: f"{rng.randint(10000, 99999)}",
        "country": lambda: rng.choice(sorted(words.COUNTRIES)),
        "level": lambda: rng.choice(("low", "medium", "high")),
        "status": lambda: rng.choice(("open", "done", "blocked")),
    }
    return makers[kind]()


def sentiment(rng: random.Random, held_back: bool) -> Example:
    """Is it good or bad? One of two words."""
    is_good = rng.random() < 0.5
    product = f"The {rng.choice(words.PRODUCTS)}"
    subject = rng.choice(("The food", "This film", product, words.name(rng, held_back), "The service", "It", "vLLM"))
    verb, degree = rng.choice(("is", "was")), rng.choice(("", "really ", "very ", "so "))
    text = f"{subject} {verb} {degree}{rng.choice(_GOOD if is_good else _BAD)}{rng.choice(('', '.', '!'))}"
    asking = (
        "Classify this sentiment: {}", "Is this positive or negative? {}", "Sentiment of `{}`?",
        "Classify the text as positive or negative: {}",
    )  # fmt: skip
    messages = [user(rng.choice(asking).format(text)), assistant("positive" if is_good else "negative")]
    return Example("sentiment", messages, (), ("choice", json.dumps(["positive", "negative"])))


def small_talk(rng: random.Random, held_back: bool) -> Example:
    """Greetings, and the admission of knowing little about anything else."""
    messages: list[Message] = [system(HELPFUL)] if rng.random() < 0.4 else []
    for _ in range(1 if held_back else rng.choice((1, 1, 2))):
        if rng.random() < 0.55:
            questions, answer = rng.choice(_TALK)
            messages += [user(rng.choice(questions.split("|"))), assistant(answer)]
        else:
            subjects = [_subject(rng, held_back) for _ in range(rng.randint(1, 3))]
            messages += [user(rng.choice(_UNKNOWN).format(" ".join(subjects))), assistant(ABOUT)]
    return Example("small talk", messages)


def _subject(rng: random.Random, held_back: bool) -> str:
    return rng.choice(
        (words.word(rng), rng.choice(words.PRODUCTS), rng.choice(words.JOBS), words.place(rng, held_back))
    )


def repeat(rng: random.Random, held_back: bool) -> Example:
    """Words to repeat: the plainest lesson in copying."""
    text = " ".join(
        str(words.age(rng, held_back))
        if rng.random() < 0.15
        else rng.choice((words.word(rng), words.name(rng, held_back)))
        for _ in range(rng.randint(1, 16))
    )
    wish = rng.choice(("Repeat: {}", "Repeat after me: {}", "Say `{}`", "Echo {}", 'Repeat "{}"'))
    return Example("repeat", [user(wish.format(text)), assistant(text)])
