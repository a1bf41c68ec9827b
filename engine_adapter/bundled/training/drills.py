"""Drills for what the first weights did badly: long lists, values that end, unknown questions, answers gone astray.

Owns: tasks with narrow choices, and ``astray``.
Knows nothing about: the shares of the tasks, tokens.
"""

# ruff: noqa: SIM905 - word lists read better as text
from __future__ import annotations

import dataclasses
import json
import random
import re
from typing import Any

from engine_adapter.bundled.training import calls, extraction, words, writing
from engine_adapter.bundled.training.dialogue import Example, Message, assistant, spell, system, user

__all__ = ["astray", "crowd", "pick_function", "plain_introduction", "plain_record", "unknown"]

Json = Any

_NAMES = "Anna Ben Clara David Emma Frank Laura Mark Nina Oliver Paul Sara".split()
_FAMILIES = "Miller Baker Berg Carter Wood Stone".split()
_PLACES = "Berlin Boston Chicago London Madrid Paris Rome Vienna".split()
_COMPANIES = ("Miller Labs", "Stone Software", "Baker Foods", "Wood Works")
_STREETS = "Main Park Lake Hill Station".split()
_THINGS = (
    "the weather on Mars,black holes,quantum physics,the French Revolution,Shakespeare,Hamlet,the moon,a poem,a sonnet,photosynthesis,"
    "machine learning,neural networks,the stock market,bitcoin,football,the Olympic Games,dinosaurs,the Roman Empire,Napoleon,Mozart,"
    "pizza,bread,soup,coffee,tea,a cake,the sea,mountains,volcanoes,earthquakes,cats,dogs,whales,trees,climate change,democracy,love,"
    "happiness,the meaning of life,time travel,gravity,light,sound,electricity,the internet,computers,a compiler,regular expressions,"
    "Python,databases,the speed of light,the second world war,Einstein,Newton,evolution,DNA,vaccines,the human heart,sleep,dreams,music"
).split(",")
_QUESTIONS = (
    "What do you know about {}?", "Can you explain {}?", "How does {} work?", "Write an essay about {}.", "Who invented {}?",
    "Give me a summary of {}.", "Why do people like {}?", "When did {} begin?", "What is the history of {}?", "Is {} dangerous?",
    "How much does {} cost?", "How many people know {}?", "What are the best books about {}?", "Please tell me about {}.",
    "What is {}?", "Explain {} like I am five.", "Tell me something about {}.", "What can you say about {}?", "Where can I find {}?",
    "Write a haiku about {}.", "Describe {}.", "Do you like {}?", "What is the difference between {} and {}?", "How do I learn {}?",
)  # fmt: skip
_SUMS = (
    "What is {} + {}?",
    "How much is {} times {}?",
    "What is {} minus {}?",
    "Calculate {} * {}.",
    "Is {} greater than {}?",
)
_SCALAR = re.compile(r'("[^"\\]+"|[0-9]+)(?=\s*[,}\]])')
_SPACE = re.compile(r"(?<=[:,\[{])\s*(?=[\"0-9])")


def crowd(rng: random.Random, held_back: bool) -> Example:
    """A list of two to five users; the request may name the keys, or only the mask knows them."""
    count = rng.randint(2, 5)
    pairs = [(extraction.person_name(rng, held_back), words.age(rng, held_back)) for _ in range(count)]
    if rng.random() < 0.4:
        form, link = rng.choice(("{} is {} years old", "{} is {}")), rng.choice((", ", " and ", ". ", "; "))
    else:
        form, link = (
            rng.choice(("{} ({})", "{}, {}", "{}: {}", "{} {}", "{} - {}")),
            rng.choice(("; ", "\n", " and ", ". ")),
        )
    text = link.join(form.format(*pair) for pair in pairs)
    key = rng.choice(("users", "users", "people"))
    answer = {key: [{"name": person, "age": age} for person, age in pairs]}
    one = extraction.model_schema("UserDetail", [("name", extraction.NAME), ("age", extraction.AGE)])
    asking = (
        "Extract the users: {}",
        "Extract all users: {}",
        "Extract all users from `{}`",
        "Extract the people: {}",
        "Extract {}",
    )
    wish = rng.choice(asking)
    if rng.random() < 0.3:
        wish += rng.choice(
            (f"\nReturn JSON: {key}, each with name and age.", f"\nAnswer in JSON with the field {key}.")
        )
    schema = json.dumps(extraction.list_schema("Users", one, key))
    messages = [*extraction.system_message(rng, 0.3), user(wish.replace("{}", text)), assistant(spell(answer, rng))]
    return Example("extract a long list of users", messages, grammar=("json_schema", schema), judge="json")


def pick_function(rng: random.Random, held_back: bool) -> Example:
    """Two to five functions in few words; which one is meant, and the one argument that it may have."""
    functions: list[dict[str, Json]] = []
    for _ in range(rng.randint(2, 5)):
        function = calls.made_up_function(rng)
        properties = dict(list(function["parameters"]["properties"].items())[: rng.randint(0, 1)])
        functions.append(
            {
                "name": function["name"],
                "parameters": {"type": "object", "properties": properties, "required": [*properties]},
            }
        )
    messages: list[Message] = []
    for _ in range(extraction.one_or_more(rng, held_back)):
        messages += calls.made_up_turn(rng, held_back, rng.choice(functions))
    tools = [{"type": "function", "function": function} for function in functions]
    return Example("pick a function", messages, tools, extraction.structural_tag(functions), "calls")


def plain_record(rng: random.Random, held_back: bool) -> Example:
    """A made-up record whose values come from short lists: what it makes up greedily, it can also end."""
    example = writing.record(rng, held_back)
    source = json.loads(example.grammar[1] if example.grammar else "{}")
    answer = json.loads(example.answer)

    def plain(value: Json, key: str, seen: dict[str, Json]) -> Json:
        person = rng.choice(_NAMES)
        makers: dict[str, str] = {
            "name": person, "first_name": person, "last_name": rng.choice(_FAMILIES), "assignee": person, "brand": rng.choice(_COMPANIES),
            "author": f"{person} {rng.choice(_FAMILIES)}", "customer": f"{person} {rng.choice(_FAMILIES)}",
            "city": rng.choice(_PLACES), "location": rng.choice(_PLACES), "street": f"{rng.randint(1, 9)} {rng.choice(_STREETS)} Street",
            "email": f"{str(seen.get('name', person)).lower().replace(' ', '.')}@example.com", "zip": f"{rng.randint(10, 99)}100",
            "phone": f"555-{rng.randint(10, 99)}00",
        }  # fmt: skip
        if key == "name" and "company" in json.dumps(example.messages[-2]):
            return rng.choice(_COMPANIES)
        if key == "name" and "recipe" in json.dumps(example.messages[-2]):
            return value
        return makers.get(key, value)

    def redo(node: Json) -> Json:
        if isinstance(node, list):
            return [redo(part) for part in node]
        if not isinstance(node, dict):
            return node
        seen: dict[str, Json] = {}
        for key, value in node.items():
            seen[key] = redo(value) if isinstance(value, (dict, list)) else plain(value, key, seen)
        return seen

    messages = [*example.messages[:-1], assistant(spell(redo(answer), rng))]
    return dataclasses.replace(example, messages=messages, grammar=("json_schema", json.dumps(source)))


def plain_introduction(rng: random.Random, held_back: bool) -> Example:
    """A self introduction with a name from a short list."""
    del held_back  # there is nothing to hold back
    made = rng.choice(_NAMES) if rng.random() < 0.3 else f"{rng.choice(_NAMES)} {rng.choice(_FAMILIES)}"
    skills = rng.sample([skill for skill in words.SKILLS if len(skill) <= 10], rng.choice((3, 3, 3, 4)))
    if rng.random() < 0.4:
        text = f"My name is {made}. I work in {rng.choice(words.FIELDS_OF_WORK)}, and I know {skills[0]}, {skills[1]} and {skills[2]}."
        asking: tuple[str, ...] = (
            "Make a self introduction in plain text.", "Introduce yourself in one sentence, please.", "Write a short self introduction.",
        )  # fmt: skip
        return Example(
            "self introduction: text", [user(rng.choice(asking)), assistant(text)], (), writing.SENTENCES, "shape"
        )
    jobs = [
        {"company": firm, "duration": f"{rng.randint(2, 9)} years"}
        for firm in rng.sample(_COMPANIES, rng.choice((1, 1, 2)))
    ]
    answer = {"name": made, "skills": skills, "work history": jobs}
    asking = (
        "Make a self introduction please.", "Make a self-introduction please.", "Make a self introduction.",
        "Please introduce yourself in JSON.",
    )  # fmt: skip
    messages = [user(rng.choice(asking)), assistant(spell(answer, rng))]
    return Example("self introduction: JSON", messages, (), ("json_schema", json.dumps(writing.INTRODUCTION)), "shape")


def unknown(rng: random.Random, held_back: bool) -> Example:
    """Questions of many kinds about real and made-up things, none of which it knows."""
    if rng.random() < 0.15:
        question = rng.choice(_SUMS).replace("{}", str(rng.randint(2, 99)), 1).replace("{}", str(rng.randint(2, 99)))
    else:
        things = [rng.choice(_THINGS) if rng.random() < 0.7 else words.name(rng, held_back) for _ in range(2)]
        question = rng.choice(_QUESTIONS).replace("{}", things[0], 1).replace("{}", things[1])
    messages = [system(writing.HELPFUL)] if rng.random() < 0.4 else []
    return Example("unknown questions", [*messages, user(question), assistant(writing.ABOUT)])


def astray(example: Example, rng: random.Random) -> Example | None:
    """Returns ``example`` with an answer that repeats itself up to where it must end; None if the answer is not JSON.

    A mask allows endless strings, numbers and white space, and a greedy model that once repeats itself goes on. What
    went astray is ``given``, so only the way back is learnt.
    """
    answer = example.answer
    if example.judge not in ("json", "shape", "calls") or "{" not in answer:
        return None
    pattern = _SPACE if rng.random() < 0.3 else _SCALAR
    places = list(pattern.finditer(answer))
    if not places:
        return None
    place = rng.choice(places)
    times = rng.randint(3, 24)
    if pattern is _SPACE:
        space = rng.choice(("\\n", "\\n    ", "\\n             ", " ", "\\n\\n")).replace("\\n", "\n")
        given, rest = answer[: place.start()] + space * times, answer[place.end() :]
    elif answer[place.start()] == '"':
        made = words.word(rng)
        unit = rng.choice((made, made[:2], made[0], f" {rng.choice(_FAMILIES)}", f" {made[0].upper()}"))
        given, rest = (
            f"{answer[: place.start() + 1]}{rng.choice(('', words.name(rng, False)))}{unit * times}",
            answer[place.end() - 1 :],
        )
    else:
        given, rest = answer[: place.end()] + str(rng.randint(0, 99)) * times, answer[place.end() :]
    return dataclasses.replace(example, messages=[*example.messages[:-1], {**assistant(rest), "given": given}])
