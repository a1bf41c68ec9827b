"""The bundled model: its data, its chat template, its training, and what it answers to the examples that it was made
for."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

from engine_adapter.bundled.training import calls, drills, extraction, make_tokenizer, reasoning, train, words, writing
from engine_adapter.bundled.training.dialogue import END_OF_REASONING, Message, segments, system, user
from engine_adapter.bundled.training.evaluate import judge
from engine_adapter.bundled.training.forward import hidden_states, position_tables, start_with_copying
from engine_adapter.bundled.training.make_data import TASKS, examples, make
from engine_adapter.decoding.loop import DecodeLoop
from engine_adapter.decoding.request import Request
from engine_adapter.masker import Masker
from engine_adapter.model.loading import BUNDLED, LoadedModel, load_model
from engine_adapter.model.slots import SlotModel
from engine_adapter.sampling.params import SamplingParams
from maskd.grammar import GrammarSpec, ReasoningGate
from maskd.sidecar import Sidecar
from maskd.tokenizer_files import load_vocabulary

torch.set_num_threads(1)

# What instructor 1.17.0 sends for ``class UserDetail(BaseModel): name: str; age: int`` in its JSON and MD_JSON modes,
# as captured.
INSTRUCTOR_SYSTEM = """
            As a genius expert, your task is to understand the content and provide
            the parsed objects in json that match the following json_schema:


            {
  "properties": {
    "name": {
      "title": "Name",
      "type": "string"
    },
    "age": {
      "title": "Age",
      "type": "integer"
    }
  },
  "required": [
    "name",
    "age"
  ],
  "title": "UserDetail",
  "type": "object"
}

            Make sure to return an instance of the JSON, not the schema itself
"""
INSTRUCTOR_CODEBLOCK = "\n\nReturn the correct JSON response within a ```json codeblock. not the JSON_SCHEMA"
DATE_AND_WEATHER = (
    '<function=get_current_date>{"timezone": "America/New_York"}</function>\n'
    '<function=get_current_weather>{"city": "New York", "state": "NY", "unit": "fahrenheit"}</function>'
)


# -- data --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.__name__)
def test_task_when_judged_by_its_own_answer_then_right(task: Any) -> None:
    rng = random.Random(0)
    for _ in range(30):
        example = task(rng, True)
        assert judge(example, example.answer) == (True, True), example


def test_examples_when_for_training_then_held_back_names_are_not_among_them() -> None:
    rng = random.Random(0)
    held_back = {words.name(rng, True).lower() for _ in range(300)}
    assert words.is_held_back("Jason")
    stream = examples(0, held_back=False)
    held_back.add("jason")
    said = {word for _ in range(2000) for word in json.dumps(next(stream).messages).replace('"', " ").lower().split()}
    assert not said & {name for name in held_back if len(name) > 4}


def test_instructor_prompt_when_for_a_user_then_as_captured() -> None:
    schema = extraction.model_schema("UserDetail", [("name", extraction.NAME), ("age", extraction.AGE)])
    assert extraction.INSTRUCTOR.format(schema=json.dumps(schema, indent=2)) == INSTRUCTOR_SYSTEM
    assert extraction.CODEBLOCK == INSTRUCTOR_CODEBLOCK


def test_tokenizer_when_made_again_then_the_same_bytes(tmp_path: Path) -> None:
    make_tokenizer.main(tmp_path / "tokenizer.json")
    assert (tmp_path / "tokenizer.json").read_bytes() == (BUNDLED / "tokenizer.json").read_bytes()


# -- chat template -----------------------------------------------------------------------------------------------------


def test_chat_template_when_rendered_then_equals_what_training_reads() -> None:
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED)
    stream = examples(1, held_back=False)
    for _ in range(200):
        example = next(stream)
        for kwargs, enable_thinking in (
            ({}, False),
            ({"enable_thinking": False}, False),
            ({"enable_thinking": True}, True),
        ):
            rendered = tokenizer.apply_chat_template(
                list(example.prompt),
                tools=list(example.tools) or None,
                tokenize=False,
                add_generation_prompt=True,
                **kwargs,
            )
            pieces = segments(
                example.prompt, example.tools, add_generation_prompt=True, enable_thinking=enable_thinking
            )
            assert rendered == "".join(text for text, _ in pieces)
            assert rendered.endswith("<|im_start|>assistant\n" + "<think>\n" * enable_thinking)
    assert tokenizer.eos_token == "<|im_end|>"


def test_chat_template_when_given_every_form_of_message_then_reads_them_all() -> None:
    tool_calls = [
        {"function": {"name": "f", "arguments": '{"a": 1}'}},
        {"function": {"name": "g", "arguments": {"b": "ü"}}},
    ]
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "tool_calls": tool_calls},
        {"role": "tool", "content": "3"},
    ]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    assert AutoTokenizer.from_pretrained(BUNDLED).apply_chat_template(messages, tools=tools, tokenize=False) == (
        '<|im_start|>system\nBe brief.\n\nFunctions:\n{"name": "f", "parameters": {}}\n'
        "Call: <function=NAME>{...}</function><|im_end|>\n"
        "<|im_start|>user\nab<|im_end|>\n"
        '<|im_start|>assistant\n<function=f>{"a": 1}</function>\n<function=g>{"b": "ü"}</function><|im_end|>\n'
        "<|im_start|>tool\n3<|im_end|>\n"
    )


# -- training ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def untrained() -> LlamaForCausalLM:
    network = LlamaForCausalLM._from_config(AutoConfig.from_pretrained(BUNDLED), dtype=torch.float32)
    start_with_copying(network, torch.Generator().manual_seed(0))
    return network


def test_forward_when_compared_with_transformers_then_equal_to_bfloat16(untrained: LlamaForCausalLM) -> None:
    token_ids = torch.randint(3, 2000, (2, 50), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        want = untrained.model(input_ids=token_ids, use_cache=False).last_hidden_state
        got = hidden_states(untrained, token_ids, *position_tables(untrained, 50)).float()
    assert (got - want).norm() < 0.03 * want.norm()


def test_start_weights_when_a_text_repeats_itself_then_they_repeat_it(untrained: LlamaForCausalLM) -> None:
    once = torch.randperm(2000, generator=torch.Generator().manual_seed(0))[:60] + 3
    with torch.no_grad():
        logits = untrained(input_ids=torch.cat([once, once])[None]).logits[0]
    assert (logits[60:-1].argmax(-1) == once[1:]).float().mean() > 0.9


def _reasoning(message: Message) -> str:
    if "reasoning_content" not in message:
        return ""
    return f"{message['reasoning_content']}\n</think>" + "\n\n" * ("given" not in message)


def test_examples_when_reasoning_first_then_the_end_of_reasoning_has_always_the_same_tokens() -> None:
    tokenizer = Tokenizer.from_file(str(BUNDLED / "tokenizer.json"))
    end = tokenizer.encode(END_OF_REASONING).ids
    rng = random.Random(0)
    tasks = [task for task in TASKS if task.__module__ == reasoning.__name__]
    assert len(tasks) == 5
    for example in (task(rng, False) for task in tasks for _ in range(20)):
        assert example.thinks
        token_ids, targets = train.encode(example, tokenizer)
        said = [token for token in targets if token >= 0]
        places = [at for at in range(len(said)) if said[at : at + len(end)] == end]
        assert len(places) == 1 and tokenizer.decode(said[: places[0]]).endswith(
            f"{example.messages[-1]['reasoning_content']}\n"
        )
        # what a server sends is what was read in training
        if all(message["role"] != "assistant" for message in example.prompt):
            pieces = segments(example.prompt, example.tools, add_generation_prompt=True, enable_thinking=True)
            asked = tokenizer.encode("".join(text for text, _ in pieces)).ids
            assert token_ids[: len(asked)] == asked


def test_astray_when_a_value_repeats_itself_then_only_the_way_back_is_learnt() -> None:
    tokenizer = Tokenizer.from_file(str(BUNDLED / "tokenizer.json"))
    rng = random.Random(0)
    seen = 0
    while seen < 40:
        example = make(rng)
        if (bent := drills.astray(example, rng)) is None:
            continue
        seen += 1
        given, rest = str(bent.messages[-1]["given"]), bent.answer
        assert example.answer.endswith(rest) and re.search(r"(?s)(.+)\1\1", given)
        said = tokenizer.decode(
            [token for token in train.encode(bent, tokenizer)[1] if token >= 0], skip_special_tokens=False
        )
        assert said.endswith(f"{rest}<|im_end|>") and given not in said


def test_batches_when_made_then_targets_are_the_assistants_tokens() -> None:
    tokenizer = Tokenizer.from_file(str(BUNDLED / "tokenizer.json"))
    stream = examples(2, held_back=False)
    made = [next(stream) for _ in range(20)]
    seen = 0
    for batch in train.batches(made, tokenizer, 1024, torch.device("cpu")):
        for ids, targets, example in zip(batch.token_ids, batch.targets, batch.examples, strict=True):
            answers = [message for message in example.messages if message["role"] == "assistant"]
            said = tokenizer.decode(targets[targets >= 0].tolist(), skip_special_tokens=False)
            assert said == "".join(f"{_reasoning(answer)}{answer['content']}<|im_end|>" for answer in answers)
            (positions,) = (targets >= 0).nonzero(as_tuple=True)
            assert torch.equal(ids[positions + 1], targets[positions])
            seen += 1
    assert seen == len(made)


# -- what it answers ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model(device="cpu")


@pytest.fixture(scope="module")
def loop(loaded: LoadedModel) -> Iterator[DecodeLoop]:
    with ExitStack() as stack:
        vocabulary = load_vocabulary(loaded.path, vocab_size=loaded.vocab_size)
        masker = stack.enter_context(Masker(stack.enter_context(Sidecar()).connect, vocabulary, row_capacity=8))
        model = SlotModel(loaded.network, 8, 1280)
        yield stack.enter_context(DecodeLoop(model, masker, vocabulary.stop_token_ids))


def answers(
    loop: DecodeLoop,
    loaded: LoadedModel,
    prompts: Sequence[Sequence[Message]],
    spec: GrammarSpec | None = None,
    temperature: float = 0,
) -> list[str]:
    """Returns the answers, each of which must end by itself within 100 tokens."""
    generations = []
    for seed, messages in enumerate(prompts):
        prompt = "".join(text for text, _ in segments(messages, add_generation_prompt=True))
        sampling = SamplingParams(temperature=temperature, top_p=0.8 if temperature else 1.0, seed=seed)
        generations.append(
            loop.add(Request(loaded.tokenizer.encode(prompt).ids, spec, sampling=sampling, max_tokens=100))
        )
    loop.run()
    assert [generation.finish_reason for generation in generations] == ["stop"] * len(prompts)
    return [loaded.tokenizer.decode(generation.token_ids) for generation in generations]


def test_weights_when_in_the_repository_then_small(loaded: LoadedModel) -> None:
    assert loaded.trained
    assert (BUNDLED / "model.safetensors").stat().st_size <= 8e6


def test_answer_when_asked_to_extract_then_a_name_and_an_age_it_never_saw(
    loop: DecodeLoop, loaded: LoadedModel
) -> None:
    asked = [
        "Extract `Jason is 30 years old`",
        "Jason is 30 years old",
        'Extract the following entities: "Jason is 30"',
    ]
    got = answers(loop, loaded, [[user(text)] for text in asked])
    assert [json.loads(text) for text in got] == [{"name": "Jason", "age": 30}] * 3


def test_answer_when_only_instructors_prompt_holds_the_schema_then_obeyed(
    loop: DecodeLoop, loaded: LoadedModel
) -> None:
    bare, fenced = answers(
        loop,
        loaded,
        [
            [system(INSTRUCTOR_SYSTEM), user("Jason is 30 years old")],
            [
                system(INSTRUCTOR_SYSTEM.replace("UserDetail", "UserExtract")),
                user("Extract jason is 25 years old" + INSTRUCTOR_CODEBLOCK),
            ],
        ],
    )
    assert json.loads(bare) == {"name": "Jason", "age": 30}
    assert fenced.startswith("```json\n") and fenced.endswith("\n```")
    assert json.loads(fenced[8:-4]) == {"name": "jason", "age": 25}


def test_answer_when_functions_stand_in_the_prompt_then_they_are_called(loop: DecodeLoop, loaded: LoadedModel) -> None:
    prompt = [
        system(calls.instructions([calls.WEATHER, calls.DATE])),
        user("You are in New York. Please get the current date and time, and the weather."),
    ]
    assert answers(loop, loaded, [prompt]) == [DATE_AND_WEATHER]
    spec = GrammarSpec(*extraction.structural_tag([calls.WEATHER, calls.DATE]))  # type: ignore[arg-type]
    assert answers(loop, loaded, [prompt], spec) == [DATE_AND_WEATHER]


def test_answer_when_asked_for_a_capital_then_the_city(loop: DecodeLoop, loaded: LoadedModel) -> None:
    helpful, geography = system("You are a helpful assistant."), system("You are a helpful geography bot.")
    question = [helpful, user("What is the capital of France?")]
    assert answers(loop, loaded, [question], GrammarSpec("regex", "(Paris|London)")) == ["Paris"]
    assert answers(loop, loaded, [[geography, user("Give me the information of the capital of France.")]]) == [
        "Paris is the capital of France"
    ]
    schema = {
        **writing.PLACE,
        "properties": {"name": {"type": "string", "pattern": "^[\\w]+$"}, "population": {"type": "integer"}},
    }
    prompt = [helpful, user("Give me the information of the capital of France in the JSON format.")]
    (text,) = answers(loop, loaded, [prompt], GrammarSpec("json_schema", json.dumps(schema)))
    assert json.loads(text)["name"] == "Paris"


def test_answer_when_asked_to_think_first_then_a_reasoning_that_ends_and_the_usual_answer(
    loop: DecodeLoop, loaded: LoadedModel
) -> None:
    """Without a mask, and behind the daemon's reasoning gate."""
    end = tuple(loaded.tokenizer.encode(END_OF_REASONING).ids)
    schema = extraction.model_schema("UserDetail", [("name", extraction.NAME), ("age", extraction.AGE)])
    gated = GrammarSpec("json_schema", json.dumps(schema), reasoning=ReasoningGate(end))
    pieces = segments([user("Extract `Jason is 30 years old`")], add_generation_prompt=True, enable_thinking=True)
    prompt = loaded.tokenizer.encode("".join(text for text, _ in pieces)).ids
    generations = [
        loop.add(Request(prompt, spec, sampling=SamplingParams(temperature=0), max_tokens=100))
        for spec in (None, gated)
    ]
    loop.run()
    for generation in generations:
        reasoning, mark, answer = loaded.tokenizer.decode(generation.token_ids).partition(END_OF_REASONING)
        assert generation.finish_reason == "stop" and mark and reasoning == "The name is Jason. The age is 30.\n"
        assert json.loads(answer) == {"name": "Jason", "age": 30}
        (at,) = (
            at for at in range(len(generation.token_ids)) if tuple(generation.token_ids[at : at + len(end)]) == end
        )
        assert loaded.tokenizer.decode(generation.token_ids[:at]) == reasoning


@pytest.mark.parametrize(
    ("schema", "request_text"),
    [
        (writing.CHARACTER, "Generate a new character for my game: name, age (between 1 and 99), armor, and strength."),
        (writing.INTRODUCTION, "Make a self-introduction please."),
    ],
    ids=["character", "introduction"],
)
def test_answer_when_made_up_under_a_mask_then_valid_and_ended(
    loop: DecodeLoop, loaded: LoadedModel, schema: Any, request_text: str
) -> None:
    spec = GrammarSpec("json_schema", json.dumps(schema))
    for text in answers(loop, loaded, [[user(request_text)]] * 8, spec, temperature=0.8):
        jsonschema.validate(json.loads(text), schema)
