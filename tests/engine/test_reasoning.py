"""Reasoning: what chat templates say about it, where it ends among tokens, and answers that begin behind it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from engine_adapter.engine import Engine
from engine_adapter.engine.generation import Reasoning, TextRequest
from engine_adapter.lmdeploy import GenerationConfig, PytorchEngineConfig, pipeline
from engine_adapter.model.loading import BUNDLED
from engine_adapter.sampling.params import SamplingParams
from engine_adapter.steering.reasoning import ReasoningEnd
from engine_adapter.tensorrt_llm import LLM, GuidedDecodingParams
from engine_adapter.tensorrt_llm import SamplingParams as TensorRtParams
from engine_adapter.text.reasoning_prompts import ReasoningPrompts
from engine_adapter.text.tokenizer import TextTokenizer
from maskd.grammar import GrammarSpec
from tests.conftest import Daemon
from tests.reasoning_model import ALWAYS, IF_ASKED, PLAIN, UNLESS_TOLD, make_directory

torch.set_num_threads(1)
CITY = GrammarSpec("regex", "(Paris|London)")
ASK = [{"role": "user", "content": "Which city?"}]
LIMIT = 7


def sampled(seed: int = 1, **options: float) -> SamplingParams:
    return SamplingParams(seed=seed, **options)  # type: ignore[arg-type]


# -- templates ---------------------------------------------------------------------------------------------------------


def prompts(directory: Path, template: str, end: str | None = None) -> ReasoningPrompts:
    made = make_directory(directory, template)
    return ReasoningPrompts(TextTokenizer(Tokenizer.from_file(str(made / "tokenizer.json")), made), end)


@pytest.mark.parametrize(
    ("template", "end", "variables", "tail", "reasons"),
    [
        (PLAIN, None, {}, "assistant\n", False),
        (PLAIN, None, {"enable_thinking": True}, "assistant\n", False),
        (PLAIN, "</think>", {}, "assistant\n<think>\n", True),
        (PLAIN, "</think>", {"enable_thinking": False}, "assistant\n", False),
        (PLAIN, "END.", {}, "assistant\n", True),
        (ALWAYS, None, {}, "assistant\n<think>\n", True),
        (ALWAYS, None, {"enable_thinking": False}, "assistant\n<think>\n", True),
        (ALWAYS, "", {}, "assistant\n<think>\n", False),
        (IF_ASKED, None, {}, "assistant\n", False),
        (IF_ASKED, None, {"enable_thinking": False}, "assistant\n", False),
        (IF_ASKED, None, {"enable_thinking": True}, "assistant\n<think>\n", True),
        (UNLESS_TOLD, None, {}, "assistant\n<think>\n", True),
        (UNLESS_TOLD, None, {"enable_thinking": True}, "assistant\n<think>\n", True),
        (UNLESS_TOLD, None, {"enable_thinking": False}, "</think>\n\n", False),
    ],
)
def test_prompt_when_rendered_then_says_whether_reasoning_follows(
    tmp_path: Path, template: str, end: str | None, variables: dict[str, Any], tail: str, reasons: bool
) -> None:
    """Whatever marks stand in the messages: anybody may write them."""
    made = prompts(tmp_path, template, end)
    for text in ("Which city?", "<think>", "</think>", "<think>\n</think>\n\n"):
        prompt, said = made.render([{"role": "user", "content": text}], **variables)
        assert (prompt.endswith(tail), said) == (True, reasons), prompt


@pytest.mark.parametrize(
    ("template", "text", "reasons"),
    [
        (IF_ASKED, "x<think>\n", True),
        (IF_ASKED, "x", False),
        (UNLESS_TOLD, "x", True),
        (UNLESS_TOLD, "<think>\n\n</think>\n\n", False),
        (PLAIN, "x<think>\n", False),
    ],
)
def test_prompt_when_somebody_else_rendered_it_then_its_end_says_so(
    tmp_path: Path, template: str, text: str, reasons: bool
) -> None:
    assert prompts(tmp_path, template).follows(text) is reasons


def test_end_of_reasoning_when_it_has_no_tokens_then_refused(tmp_path: Path) -> None:
    """The bundled tokenizer has bytes for everything, so the tokenizer is one without."""

    class Silent(TextTokenizer):
        def encode_piece(self, text: str) -> list[int]:
            return []

    tokenizer = Silent(Tokenizer.from_file(str(BUNDLED / "tokenizer.json")), BUNDLED)
    with pytest.raises(ValueError, match="has no tokens"):
        ReasoningPrompts(tokenizer, "</think>")


# -- the end among tokens ----------------------------------------------------------------------------------------------


@given(end=st.lists(st.integers(0, 2), min_size=1, max_size=4), token_ids=st.lists(st.integers(0, 2), max_size=30))
def test_end_when_looked_for_then_it_is_the_first_and_everything_before_is_reasoning(
    end: list[int], token_ids: list[int]
) -> None:
    """Ends that begin within themselves, and outputs that stop within one."""
    found = next((at for at in range(len(token_ids)) if token_ids[at : at + len(end)] == end), None)
    search = ReasoningEnd(end)
    reasoning: list[int] = []
    for count, token_id in enumerate(token_ids, 1):
        if search.is_over:
            break
        reasoning += search.accept(token_id)
        assert search.is_over == (found is not None and count == found + len(end))
    reasoning += search.finish()
    assert reasoning == token_ids[: found if found is not None else len(token_ids)]


# -- answers -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_directory(tmp_path_factory.mktemp("model"), IF_ASKED)


@pytest.fixture(scope="module")
def engine(daemon: Daemon, directory: Path) -> Iterator[Engine]:
    with Engine(directory, target=daemon.target, slots=4, device="cpu", context_length=512) as made:
        yield made


def reasoning_prompt(engine: Engine) -> str:
    prompt, reasons = engine.prompts.render(ASK, enable_thinking=True)
    assert reasons
    return prompt


@pytest.mark.parametrize("backend", ["xgrammar", "llguidance"])
def test_answer_when_reasoning_comes_first_then_the_grammar_begins_behind_it(engine: Engine, backend: str) -> None:
    """Text, reasoning, counts, log probabilities and pieces agree; what was thought is no part of the answer."""
    grammar = GrammarSpec("regex", "(Paris|London)", backend)
    request = TextRequest(
        reasoning_prompt(engine), grammar, sampled(2), 60, logprobs=1, n=2, reasoning=Reasoning(LIMIT)
    )
    generation = engine.submit(request)
    deltas = list(generation)
    end = list(engine.prompts.end_token_ids)
    for choice in generation.result(60):
        assert choice.text in ("Paris", "London") and choice.finish_reason == "stop"
        assert choice.reasoning_token_count <= LIMIT + len(end)
        assert choice.token_ids[choice.reasoning_token_count - len(end) : choice.reasoning_token_count] == end
        thought = engine.tokenizer.decode(choice.token_ids[: choice.reasoning_token_count - len(end)])
        assert choice.reasoning == thought.strip() != ""
        mine = [delta for delta in deltas if delta.index == choice.index]
        assert "".join(delta.reasoning for delta in mine) == choice.reasoning
        assert "".join(delta.text for delta in mine) == choice.text
        assert sum(delta.is_reasoning for delta in mine) == choice.reasoning_token_count
        assert choice.logprobs is not None and len(choice.logprobs) == len(choice.token_ids)
    assert generation.reasoning_tokens == sum(choice.reasoning_token_count for choice in generation.choices)


def test_answer_when_there_is_no_grammar_then_the_limit_of_the_reasoning_holds_too(engine: Engine) -> None:
    for limit in (0, LIMIT):
        request = TextRequest(reasoning_prompt(engine), None, sampled(3), 60, reasoning=Reasoning(limit))
        (choice,) = engine.submit(request).result(60)
        assert choice.reasoning_token_count <= limit + len(engine.prompts.end_token_ids)
        assert "</think>" not in (choice.reasoning or "")
        # Cut short, the model may write the mark once more within its answer.
        assert not choice.text[:1].isspace() and not choice.text.startswith("</think>")


def test_answer_when_it_is_cut_within_the_reasoning_then_there_is_no_text(engine: Engine) -> None:
    (choice,) = engine.submit(
        TextRequest(reasoning_prompt(engine), CITY, sampled(4), 5, reasoning=Reasoning(50))
    ).result(60)
    assert (choice.text, choice.finish_reason, choice.reasoning_token_count) == ("", "length", 5) and choice.reasoning


@pytest.mark.parametrize("limit", [None, 10**6, 3])
def test_answer_when_closed_before_the_budget_then_reasoning_leaves_it_room(engine: Engine, limit: int | None) -> None:
    """With the whole budget to think in, or with none; the document is whole every time."""
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "tags": {"type": "array", "items": {"type": "string"}, "minItems": 2},
        },
        "required": ["name", "tags"],
    }
    grammar = GrammarSpec("json_schema", json.dumps(schema))
    for seed in range(3):
        request = TextRequest(
            reasoning_prompt(engine),
            grammar,
            sampled(seed, temperature=1.5),
            70,
            close_before_budget=True,
            reasoning=Reasoning(limit),
        )
        (choice,) = engine.submit(request).result(60)
        assert choice.finish_reason == "stop" and set(json.loads(choice.text)) >= {"name", "tags"}
        assert choice.reasoning_token_count > 3 if limit is None else choice.reasoning_token_count


def test_stop_strings_when_they_come_in_the_reasoning_then_they_end_nothing(engine: Engine) -> None:
    request = TextRequest(
        reasoning_prompt(engine), GrammarSpec("regex", "ab+c"), sampled(5), 60, reasoning=Reasoning(LIMIT)
    )
    (choice,) = engine.submit(request).result(60)
    assert choice.reasoning
    stopped = TextRequest(
        request.prompt, request.grammar, sampled(5), 60, stop=(choice.reasoning[0], "b"), reasoning=Reasoning(LIMIT)
    )
    (cut,) = engine.submit(stopped).result(60)
    assert (cut.reasoning, cut.text) == (choice.reasoning, "" if choice.reasoning[0] == "a" else "a")


def test_reasoning_when_the_model_has_none_then_refused(daemon: Daemon, tmp_path: Path) -> None:
    directory = make_directory(tmp_path, PLAIN)
    with (
        Engine(directory, target=daemon.target, slots=1, device="cpu", context_length=64) as plain,
        pytest.raises(ValueError, match="reasoning_end"),
    ):
        plain.submit(TextRequest("x", reasoning=Reasoning()))
    with pytest.raises(ValueError, match="reasoning_parser is 'telepathy'"):
        LLM(tmp_path, reasoning_parser="telepathy", target=daemon.target)


def test_scripts_when_the_model_reasons_then_answers_have_both(daemon: Daemon, directory: Path) -> None:
    """LMDeploy's and TensorRT-LLM's interfaces; the answer is whole, as both close before the budget."""
    with LLM(directory, reasoning_parser="qwen3", target=daemon.target, max_batch_size=2, max_seq_len=256) as llm:
        params = TensorRtParams(max_tokens=40, guided_decoding=GuidedDecodingParams(regex="(Paris|London)"))
        thought, plain = llm.generate(
            [llm.tokenizer.apply_chat_template(ASK, enable_thinking=on) for on in (True, False)], params
        )
    assert thought.outputs[0].text in ("Paris", "London") and thought.outputs[0].reasoning
    assert plain.outputs[0].text in ("Paris", "London") and plain.outputs[0].reasoning is None
    with pipeline(
        directory,
        PytorchEngineConfig(max_batch_size=2, session_len=256),
        reasoning_parser="intern-s1",
        target=daemon.target,
    ) as pipe:
        config = GenerationConfig(
            max_new_tokens=40, response_format={"type": "regex_schema", "regex_schema": "(Paris|London)"}
        )
        response = pipe("Which city?", config, enable_thinking=True)
        pieces = list(pipe.stream_infer("Which city?", config, chat_template_kwargs={"enable_thinking": True}))
        silent = pipe("Which city?", config)
    assert re.fullmatch("Paris|London", response.text) and response.reasoning_content
    assert "".join(piece.reasoning_content or "" for piece in pieces) == response.reasoning_content
    assert silent.reasoning_content is None and silent.text in ("Paris", "London")
