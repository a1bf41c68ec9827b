"""Measures the bundled model on held-back examples, without masks, with them, and closed before the budget.

Owns: the modes, the table that is printed.
Knows nothing about: training.

Run ``python -m engine_adapter.bundled.training.evaluate``. It starts a daemon unless ``--target`` names one. Decoding
is greedy; masks allow only the properties of the schema. "right" is the verdict of ``Example.judge``. "parses" says
that the answer ended within its budget and has the form asked for, right or wrong. An answer with reasoning has twice
the budget, and a reasoning gate ends the reasoning after the first half.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema
import torch
from rich.console import Console
from rich.progress import track

from engine_adapter.bundled.training.dialogue import END_OF_REASONING, Example, segments
from engine_adapter.bundled.training.make_data import TASKS
from engine_adapter.decoding.loop import DecodeLoop
from engine_adapter.decoding.request import Request
from engine_adapter.masker import Masker
from engine_adapter.model.loading import LoadedModel, load_model
from engine_adapter.model.slots import SlotModel
from engine_adapter.sampling.params import SamplingParams
from engine_adapter.steering.closing import ClosingVocabulary, steering_for
from engine_adapter.steering.reasoning import AfterReasoning
from maskd.grammar import GrammarOptions, GrammarSpec, ReasoningGate
from maskd.sidecar import Sidecar
from maskd.tokenizer_files import load_vocabulary

CONTEXT_LENGTH = 1280
MAX_TOKENS = 160
MODES = ("", ", masked", ", closed")
OPTIONS = GrammarOptions(additional_properties="forbid")
_CALL = re.compile(r"<function=([^>]*)>")
_FENCED = re.compile(r"```(?:json)?\s*(.*?)\s*```", re.DOTALL)


@dataclass
class Score:
    """Answers of one task: how many, how many of the form asked for, how many right."""

    count: int = 0
    parsed: int = 0
    right: int = 0
    wrong: list[tuple[str, str]] = field(default_factory=list)

    def add(self, example: Example, text: str, *, finished: bool) -> None:
        """Counts one answer; keeps it as (wanted, got) if it is wrong."""
        parsed, right = judge(example, text) if finished else (False, False)
        self.count, self.parsed, self.right = self.count + 1, self.parsed + parsed, self.right + right
        if not right:
            self.wrong.append((example.answer, text))


def judge(example: Example, text: str) -> tuple[bool, bool]:
    """Returns whether ``text`` is of the form asked for, and whether it is right."""
    if example.judge == "text":
        kind, source = example.grammar or ("", "")
        parses = (
            text in json.loads(source)
            if kind == "choice"
            else re.fullmatch(source, text) is not None
            if kind == "regex"
            else True
        )
        return parses, text == example.answer
    if example.judge == "calls":
        calls = _calls(text)
        return calls is not None, calls == _calls(example.answer)
    kind, source = example.grammar or ("", "")
    if kind == "regex":
        return (re.fullmatch(source, text) is not None,) * 2
    try:
        value = json.loads(fenced[-1] if (fenced := _FENCED.findall(text)) else text)
        if kind == "json_schema":
            jsonschema.validate(value, json.loads(source))
    except (ValueError, jsonschema.ValidationError):
        return False, False
    if example.judge == "shape":
        return True, all(not isinstance(leaf, str) or leaf.strip() for leaf in _leaves(value))
    wanted = json.loads(fenced[-1] if (fenced := _FENCED.findall(example.answer)) else example.answer)
    return True, value == wanted


def _calls(text: str) -> list[tuple[str, Any]] | None:
    """Returns the function calls in ``text``; None if there are none or arguments are no JSON object."""
    decoder, calls, position = json.JSONDecoder(), [], 0
    while match := _CALL.search(text, position):
        try:
            arguments, position = decoder.raw_decode(text, match.end())
        except ValueError:
            return None
        calls.append((match[1], arguments))
    return calls if calls and all(isinstance(arguments, dict) for _, arguments in calls) else None


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return [leaf for part in value.values() for leaf in _leaves(part)]
    if isinstance(value, list):
        return [leaf for part in value for leaf in _leaves(part)]
    return [value]


def held_back_examples(per_task: int, seed: int) -> list[Example]:
    """Returns ``per_task`` examples of each task, of names and words that training never saw."""
    rng = random.Random(f"evaluate {seed}")  # noqa: S311 - text, no secret
    return [task(rng, True) for task in TASKS for _ in range(per_task)]


def decode(
    loop: DecodeLoop, loaded: LoadedModel, examples: Sequence[Example], mode: str, closing: ClosingVocabulary
) -> Iterator[tuple[str, bool]]:
    """Yields the answers to ``examples`` in one of ``MODES``, and whether each ended by itself."""
    end = tuple(loaded.tokenizer.encode(END_OF_REASONING).ids)
    generations = []
    for example in examples:
        pieces = segments(example.prompt, example.tools, add_generation_prompt=True, enable_thinking=example.thinks)
        spec = None
        if mode and example.grammar:
            gate = ReasoningGate(end, MAX_TOKENS) if example.thinks else None
            spec = GrammarSpec(*example.grammar, options=OPTIONS, reasoning=gate)  # type: ignore[arg-type]
        steering = steering_for(spec, closing) if spec and mode == MODES[2] else None
        request = Request(
            loaded.tokenizer.encode("".join(text for text, _ in pieces)).ids,
            spec,
            sampling=SamplingParams(temperature=0),
            max_tokens=MAX_TOKENS * (1 + example.thinks),
            steering=AfterReasoning(steering, end) if steering and example.thinks else steering,
        )
        generations.append(loop.add(request))
    for example, generation in zip(
        examples, track(generations, f"answers{mode}", console=Console(stderr=True), transient=True), strict=True
    ):
        while generation.finish_reason is None:
            loop.step()
        if generation.error:
            raise generation.error
        text = loaded.tokenizer.decode(generation.token_ids)
        _, mark, answer = text.partition(END_OF_REASONING)
        has_ended = generation.finish_reason == "stop" and (bool(mark) or not example.thinks)
        yield (answer.lstrip("\n") if example.thinks else text), has_ended


def main() -> None:
    """Prints the table, or JSON."""
    parser = argparse.ArgumentParser(
        description="Measure the bundled model without masks, with them, and with close_before_budget."
    )
    parser.add_argument("--per-task", type=int, default=40, help="examples of each task")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--model", type=Path, help="directory of another model; default: the bundled one")
    parser.add_argument("--target", help="a running maskd")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--wrong", type=int, default=0, help="show so many wrong answers of each task")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    examples = held_back_examples(arguments.per_task, arguments.seed)
    scores: dict[str, tuple[Score, ...]] = {}
    with ExitStack() as stack:
        loaded = load_model(arguments.model)
        vocabulary = load_vocabulary(loaded.path, vocab_size=loaded.vocab_size)
        connect = arguments.target or stack.enter_context(Sidecar()).connect
        masker = stack.enter_context(Masker(connect, vocabulary, row_capacity=arguments.slots))
        model = SlotModel(loaded.network, arguments.slots, CONTEXT_LENGTH)
        loop = stack.enter_context(DecodeLoop(model, masker, vocabulary.stop_token_ids))
        closing = ClosingVocabulary(vocabulary)
        for index, mode in enumerate(MODES):
            asked = [example for example in examples if example.grammar or not mode]
            for example, (text, has_ended) in zip(asked, decode(loop, loaded, asked, mode, closing), strict=True):
                scores.setdefault(example.task, tuple(Score() for _ in MODES))[index].add(
                    example, text, finished=has_ended
                )
    if arguments.json:
        rows = {task: [[s.count, s.parsed, s.right] for s in modes] for task, modes in scores.items()}
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        return
    show(scores, arguments.wrong)


def show(scores: Mapping[str, tuple[Score, ...]], wrong_count: int) -> None:
    """Prints the table as Markdown, and some wrong answers."""
    console = Console(highlight=False)
    heads = (f"{what}{mode}" for mode in MODES for what in ("parses", "right"))
    rows = [("task", "examples", *heads), ("---",) * (2 + 2 * len(MODES))]
    total = tuple(Score() for _ in MODES)
    for task, modes in sorted(scores.items()):
        rows.append((task, str(modes[0].count), *(_share(n, s.count) for s in modes for n in (s.parsed, s.right))))
        for whole, part in zip(total, modes, strict=True):
            whole.count, whole.parsed, whole.right = (
                whole.count + part.count,
                whole.parsed + part.parsed,
                whole.right + part.right,
            )
    rows.append(("all", str(total[0].count), *(_share(n, s.count) for s in total for n in (s.parsed, s.right))))
    console.print("\n".join(f"| {' | '.join(row)} |" for row in rows), soft_wrap=True)
    for name, score in zip(MODES, total, strict=True):
        console.print(f"{score.parsed} of {score.count}{name or ', no mask'} parse, {score.right} are right")
    for task, modes in sorted(scores.items()):
        for name, score in zip(MODES, modes, strict=True):
            for wanted, got in score.wrong[:wrong_count]:
                console.print(f"{task}{name}\n  wanted {wanted!r}\n  got    {got!r}", soft_wrap=True, markup=False)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "–"


if __name__ == "__main__":
    main()
