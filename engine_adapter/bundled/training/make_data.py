"""What the bundled model is taught: the shares of the tasks, and a stream of examples that any seed gives again.

Owns: the shares of the tasks.
Knows nothing about: tokens, training.

Run ``python -m engine_adapter.bundled.training.make_data --count 20`` to look at some, or with ``--output FILE`` to
write them as JSON lines. Training makes its examples as it goes, so no data lies on disk. These scripts make
everything; nothing is downloaded.

A hash divides names and made-up words into two parts (``words.is_held_back``). Measured examples are of the part that
is never trained on. Tables learnt by heart (capitals, states, time zones) are in both.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from engine_adapter.bundled.training import calls, drills, extraction, reasoning, writing
from engine_adapter.bundled.training.dialogue import Example

__all__ = ["SPELLED", "TASKS", "WARM_UP", "examples", "make"]

Task = Callable[[random.Random, bool], Example]

SPELLED: dict[Task, float] = {
    extraction.user_detail: 14,
    extraction.hidden_schema: 10,
    extraction.instructor: 12,
    extraction.codeblock: 8,
    extraction.short_schema: 7,
    extraction.people: 4,
    extraction.key_value: 7,
    extraction.tool: 7,
    calls.weather_and_date: 2.5,
    calls.weather_and_date_tools: 3,
    calls.made_up_functions: 5,
    writing.capital: 10,
    writing.character: 4,
    writing.self_introduction: 4,
    writing.record: 5,
    writing.sentiment: 2,
    writing.small_talk: 3,
    writing.repeat: 5,
}
"""The tasks whose texts the tokenizer was made of, and their shares. They stay as they are: other texts would give
other tokens, which the weights do not know."""

TASKS: dict[Task, float] = {
    **SPELLED,
    extraction.instructor: 10,
    extraction.codeblock: 6,
    extraction.people: 6,
    extraction.key_value: 9,
    calls.weather_and_date: 1.5,
    calls.weather_and_date_tools: 2,
    calls.made_up_functions: 6,
    writing.capital: 9,
    writing.character: 3,
    writing.self_introduction: 1.5,
    writing.record: 1,
    writing.sentiment: 5,
    drills.crowd: 5,
    drills.pick_function: 8,
    drills.plain_record: 4,
    drills.plain_introduction: 3,
    drills.unknown: 3,
    reasoning.user_detail: 3,
    reasoning.varied_facts: 4,
    reasoning.schema_in_request: 2,
    reasoning.capital: 2,
    reasoning.function_call: 3,
}
"""Task to its share of the examples."""

WARM_UP: dict[Task, float] = {
    extraction.user_detail: 3,
    extraction.key_value: 4,
    extraction.people: 2,
    extraction.hidden_schema: 1,
    writing.repeat: 10,
}
"""Short examples that are mostly copying, for the first steps: copying is learnt sooner where there is little else to
look at."""


def make(rng: random.Random, *, held_back: bool = False, tasks: dict[Task, float] = TASKS) -> Example:
    """Returns one example of a task drawn by its share."""
    return rng.choices(list(tasks), list(tasks.values()))[0](rng, held_back)


def examples(seed: int, *, held_back: bool, tasks: dict[Task, float] = TASKS) -> Iterator[Example]:
    """Yields examples without end, the same for the same seed."""
    rng = random.Random(f"{seed} {held_back}")  # noqa: S311 - text, no secret
    while True:
        yield make(rng, held_back=held_back, tasks=tasks)


def main() -> None:
    """Prints or writes examples."""
    parser = argparse.ArgumentParser(description="Make examples of what the bundled model is taught.")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--held-back", action="store_true", help="names and words that training never sees")
    parser.add_argument("--output", type=Path, help="write JSON lines here instead of printing")
    arguments = parser.parse_args()
    stream = examples(arguments.seed, held_back=arguments.held_back)
    lines = (json.dumps(dataclasses.asdict(next(stream)), ensure_ascii=False) for _ in range(arguments.count))
    if arguments.output:
        arguments.output.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return
    for line in lines:
        example = json.loads(line)
        sys.stdout.write(f"\n--- {example['task']}\n")
        for message in example["messages"]:
            sys.stdout.write(f"{message['role']}: {message['content']}\n")


if __name__ == "__main__":
    main()
