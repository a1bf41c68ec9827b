"""Reasoning first: examples of other tasks whose answer follows a short reasoning in plain sentences.

Owns: the sentences of reasoning.
Knows nothing about: the shares of the tasks, tokens.

The reasoning says what the text states, or which functions are wanted. The answer repeats it in the form asked for.
Only the last turn of a conversation has a reasoning.
"""

from __future__ import annotations

import dataclasses
import json
import random
import re
from collections.abc import Mapping
from typing import Any

from engine_adapter.bundled.training import calls, extraction, words, writing
from engine_adapter.bundled.training.dialogue import Example

__all__ = ["capital", "function_call", "schema_in_request", "user_detail", "varied_facts"]

Json = Any

_LABELS = {key: field.keys[0].replace("_", " ") for field in (extraction.NAME, *extraction.FACTS) for key in field.keys}
_CALL = re.compile(r"(?:<function=([^>]*)>)?(\{.*?\})(?:</function>|$)", re.MULTILINE)


def user_detail(rng: random.Random, held_back: bool) -> Example:
    """A name and an age, or a list of them."""
    task = rng.choice((extraction.user_detail, extraction.user_detail, extraction.people))
    example = task(rng, held_back)
    return _reasoned(example, _stated(json.loads(example.answer)), rng, held_back)


def varied_facts(rng: random.Random, held_back: bool) -> Example:
    """Any facts, whose keys only the mask knows."""
    example = extraction.hidden_schema(rng, held_back)
    return _reasoned(example, _stated(json.loads(example.answer)), rng, held_back)


def schema_in_request(rng: random.Random, held_back: bool) -> Example:
    """Any facts or made-up keys, with the schema in the request or in Instructor's prompt."""
    task = rng.choice((extraction.short_schema, extraction.short_schema, extraction.key_value, extraction.instructor))
    example = task(rng, held_back)
    return _reasoned(example, _stated(json.loads(example.answer)), rng, held_back)


def capital(rng: random.Random, held_back: bool) -> Example:
    """Capitals, as a word, a sentence or JSON."""
    example = writing.capital(rng, held_back)
    asked = str(example.messages[-2]["content"])
    country, (city, population) = next(
        (c, facts) for c, facts in words.COUNTRIES.items() if re.search(rf"\b{c}\b", asked)
    )
    reasoning = f"The capital of {country} is {city}."
    return _reasoned(
        example, reasoning + (f" It has {population} people." if example.judge == "json" else ""), rng, held_back
    )


def function_call(rng: random.Random, held_back: bool) -> Example:
    """The weather and the date, made-up functions, Instructor's TOOLS mode."""
    tasks = calls.weather_and_date, calls.weather_and_date_tools, calls.made_up_functions, extraction.tool
    (task,) = rng.choices(tasks, (1, 2, 3, 2))
    example = task(rng, held_back)
    said = [(name, json.loads(arguments)) for name, arguments in _CALL.findall(example.answer)]
    names = " and ".join(name for name, _ in said if name)
    facts: dict[str, Json] = {key: value for _, arguments in said for key, value in arguments.items()}
    return _reasoned(example, (f"I call {names}. " if names else "") + _stated(facts), rng, held_back)


def _reasoned(example: Example, reasoning: str, rng: random.Random, held_back: bool) -> Example:
    message = {**example.messages[-1], "reasoning_content": reasoning}
    if not held_back and rng.random() < 0.3:
        message["given"] = ""  # a mask that begins behind the reasoning may know no blank line
    return dataclasses.replace(example, task=f"think first: {example.task}", messages=[*example.messages[:-1], message])


def _stated(answer: Mapping[str, Json]) -> str:
    """Returns a sentence for each value, or for each user of a list."""
    users = [part for value in answer.values() if isinstance(value, list) for part in value if isinstance(part, dict)]
    if users:
        return " ".join(f"{user['name']} is {user['age']}." for user in users)
    return " ".join(f"The {_LABELS.get(key, key)} is {_words(value)}." for key, value in answer.items())


def _words(value: Json) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, bool):
        return "true" if value else "false"
    return " and ".join(value) if isinstance(value, list) else str(value)
