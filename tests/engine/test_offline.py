"""The offline interfaces run the scripts of published documents; only imports and the model's name change."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
import torch
from pydantic import BaseModel

from engine_adapter.lmdeploy import pipeline
from engine_adapter.lmdeploy.messages import GenerationConfig, PytorchEngineConfig, TurbomindEngineConfig
from engine_adapter.offline import TARGET_VARIABLE
from engine_adapter.tensorrt_llm import LLM
from engine_adapter.tensorrt_llm.sampling_params import GuidedDecodingParams, SamplingParams
from maskd.errors import GrammarError
from tests.conftest import SHARED, Daemon

torch.set_num_threads(1)
_SUBSTITUTES = (
    (r"\bfrom lmdeploy\b", "from engine_adapter.lmdeploy"),
    (r"\bfrom tensorrt_llm\b", "from engine_adapter.tensorrt_llm"),
    ("internlm/internlm2-chat-1_8b|nvidia/Llama-3.1-8B-Instruct-FP8", "bundled"),
)


class City(BaseModel):
    name: str
    population: int


@pytest.fixture(autouse=True)
def one_daemon(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TARGET_VARIABLE, daemon.target)


@pytest.fixture(scope="module")
def llm(daemon: Daemon) -> Iterator[LLM]:
    with LLM("bundled", guided_decoding_backend="llguidance", max_batch_size=4, target=daemon.target) as made:
        yield made


def scripts(name: str, word: str) -> list[str]:
    """The Python blocks of a document that have ``word``."""
    path = SHARED / "seeds" / name
    if not path.exists():
        pytest.skip(f"{name} is not here")
    blocks = re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)
    return [block for block in blocks if word in block]


def run_script(source: str) -> dict[str, Any]:
    """Runs a script as ``python script.py`` would; returns its names. Whatever it started is closed."""
    for pattern, substitute in _SUBSTITUTES:
        source = re.sub(pattern, substitute, source)
    names: dict[str, Any] = {"__name__": "__main__"}
    try:
        exec(compile(source, "script", "exec"), names)
    finally:
        for name in ("pipe", "llm"):
            if name in names:
                names[name].close()
    return names


@pytest.mark.parametrize("name", ["lmdeploy-structured-output.md", "lmdeploy-structured-output.zh.md"])
def test_script_of_lmdeploy_then_the_answer_is_valid(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (script,) = scripts(name, "pipeline(")
    names = run_script(script)
    (response,) = names["response"]
    jsonschema.validate(json.loads(response.text), names["guide"])
    assert response.finish_reason == "stop" and response.index == 0
    assert response.generate_token_len == len(response.token_ids) < 512 and response.input_token_len > 5
    assert "Response(" in capsys.readouterr().out


@pytest.mark.parametrize("index", range(5))
def test_script_of_tensorrt_llm_then_the_output_is_valid(index: int, capsys: pytest.CaptureFixture[str]) -> None:
    names = run_script(scripts("tensorrt-llm-guided-decoding.md", "LLM(")[index])
    if index == 0:
        return  # makes an engine, and nothing with it
    output = names["output"].outputs[0]
    assert capsys.readouterr().out == output.text + "\n"
    if index == 1:
        jsonschema.validate(json.loads(output.text), names["json_schema"])
    elif index == 2:
        assert output.text in ("Paris", "London")
    elif index == 3:
        assert re.fullmatch("(London|Paris|Berlin|Rome) is the capital of (England|France|Germany|Italy)", output.text)
    else:
        schemas = {
            tool["function"]["name"]: tool["function"]["parameters"]
            for key, tool in names.items()
            if key.startswith("tool_")
        }
        for name, arguments in re.findall("<function=(.*?)>(.*?)</function>", output.text, re.DOTALL):
            jsonschema.validate(json.loads(arguments), schemas[name])


def test_pipeline_when_given_several_prompts_then_answers_in_their_order() -> None:
    formats = [
        {"type": "regex_schema", "regex_schema": "(Paris|London)"},
        {"type": "json_object"},
        City,
        {"type": "json_schema", "json_schema": City.model_json_schema()},
    ]
    with pipeline("bundled", TurbomindEngineConfig(max_batch_size=4, session_len=256)) as pipe:
        configs = [GenerationConfig(response_format=each, max_new_tokens=60) for each in formats]
        responses = pipe(["Which city?", [{"role": "user", "content": "Any object."}], "A city.", "A city."], configs)
        one = pipe("Hello", GenerationConfig(max_new_tokens=4, do_sample=True, random_seed=3, logprobs=2))
        pieces = list(pipe.stream_infer("Which city?", configs[0]))
        with pytest.raises(ValueError, match="2 prompts have 1"):
            pipe(["a", "b"], configs[:1])
        with pytest.raises(GrammarError):
            pipe("a", GenerationConfig(response_format={"type": "regex", "regex": "("}))
    assert [response.index for response in responses] == [0, 1, 2, 3]
    assert responses[0].text in ("Paris", "London") and "".join(piece.text for piece in pieces) == responses[0].text
    assert isinstance(json.loads(responses[1].text), dict)
    assert City.model_validate_json(responses[2].text) and City.model_validate_json(responses[3].text)
    assert one.generate_token_len <= 4 and one.logprobs is not None and len(one.logprobs) == one.generate_token_len
    assert all(token_id in logprobs for token_id, logprobs in zip(one.token_ids, one.logprobs, strict=True))


def test_llm_when_given_every_kind_of_constraint_then_outputs_match(llm: LLM) -> None:
    tag = {
        "type": "structural_tag",
        "format": {"type": "tag", "begin": "<a>", "content": {"type": "regex", "pattern": "[0-9]{2}"}, "end": "</a>"},
    }
    constraints = [
        GuidedDecodingParams(json=City),
        GuidedDecodingParams(json=City(name="a", population=1)),
        GuidedDecodingParams(json=json.dumps(City.model_json_schema())),
        GuidedDecodingParams(grammar='root ::= "yes" | "no"'),
        GuidedDecodingParams(grammar='start: "yes" | "no"'),
        GuidedDecodingParams(structural_tag=json.dumps(tag)),
        GuidedDecodingParams(json_object=True),
    ]
    outputs = llm.generate(
        ["Tell:"] * 7,
        [SamplingParams(max_tokens=60, temperature=1.0, seed=1, guided_decoding=each) for each in constraints],
    )
    texts = [output.outputs[0].text for output in outputs]
    assert all(City.model_validate_json(text) for text in texts[:3])
    assert texts[3] in ("yes", "no") and texts[4] in ("yes", "no")
    assert re.fullmatch("<a>[0-9]{2}</a>", texts[5]) and isinstance(json.loads(texts[6]), dict)
    assert {output.outputs[0].finish_reason for output in outputs} == {"stop"}


def test_sampling_fields_of_both_libraries_then_they_do_what_they_do_there(llm: LLM) -> None:
    """Least lengths, banned words, stop tokens, biases, the best of several; the fields of each in its own spelling."""
    letters = GuidedDecodingParams(regex="[ab]{1,9}")
    (b,) = llm.tokenizer.encode("b")
    bias = [0.0] * (b + 1)
    bias[b] = 100.0

    def text(**options: Any) -> str:
        return str(llm.generate("Tell:", SamplingParams(guided_decoding=letters, seed=1, **options)).outputs[0].text)

    assert set(text(bad="b", temperature=1.0, min_tokens=3)) == {"a"}
    assert text(embedding_bias=bias, min_tokens=5, bad_token_ids=[]).startswith("b")
    assert text(embedding_bias=bias, stop_token_ids=[b]) == ""
    output = llm.generate(
        "Tell:", SamplingParams(guided_decoding=letters, temperature=1.0, seed=1, n=2, best_of=4, logprobs=0)
    )
    means = [sum(token.logprob for token in each.logprobs) / len(each.logprobs) for each in output.outputs]
    assert len(means) == 2 and means[0] >= means[1]
    assert text(repetition_penalty=1.3, temperature=0.5)
    with pipeline("bundled", PytorchEngineConfig(max_batch_size=2, session_len=128)) as pipe:
        formats: Any = {"response_format": {"type": "regex_schema", "regex_schema": "[ab]{1,9}"}}
        banned = pipe("Tell:", GenerationConfig(**formats, bad_words=["b"], min_new_tokens=3, repetition_penalty=1.1))
        assert set(banned.text) == {"a"} and banned.generate_token_len >= 1
        stopped = pipe("Tell:", GenerationConfig(**formats, bad_words=["a"], stop_token_ids=[b], bad_token_ids=[]))
        assert "a" not in stopped.text and b not in stopped.token_ids
        with pytest.raises(ValueError, match="n is 2"):
            pipe("Tell:", GenerationConfig(n=2))
        with pytest.raises(TypeError, match="logits_processors"):
            GenerationConfig(logits_processors=[])  # type: ignore[call-arg]


def test_llm_when_asked_for_several_outputs_then_streams_and_awaits_them(llm: LLM) -> None:
    async def both() -> tuple[list[str], Any]:
        params = SamplingParams(
            max_tokens=20, temperature=1.0, seed=4, n=2, guided_decoding=GuidedDecodingParams(regex="[a-z]{3,8}")
        )
        lengths = [output.outputs[1].text async for output in llm.generate_async("Tell:", params, streaming=True)]
        return lengths, await llm.generate_async({"prompt": "Tell:"}, params)

    growing, final = asyncio.run(both())
    assert growing[-1] == final.outputs[1].text and growing == sorted(growing, key=len) and final.finished
    assert all(re.fullmatch("[a-z]{3,8}", output.text) for output in final.outputs)


def test_parameters_when_contradictory_or_unknown_then_refused(llm: LLM) -> None:
    with pytest.raises(ValueError, match="only one of json and regex"):
        GuidedDecodingParams(json={}, regex="a")
    with pytest.raises(TypeError, match="beam"):
        SamplingParams(beam_width=4)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="tp is 2"):
        PytorchEngineConfig(tp=2)
    with pytest.raises(FileNotFoundError, match="no directory here"):
        LLM("nvidia/Llama-3.1-8B-Instruct-FP8")
    with pytest.raises(GrammarError):
        llm.generate("a", SamplingParams(guided_decoding=GuidedDecodingParams(regex="(")))
