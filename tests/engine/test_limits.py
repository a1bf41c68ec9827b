"""What an output must not have, and when it must not end: stop tokens, least tokens, banned words, the best of
several."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine_adapter.engine import Engine
from engine_adapter.engine.generation import TextRequest
from engine_adapter.sampling.banned_words import BannedWords, TokenPrefixes
from engine_adapter.sampling.params import SamplingParams
from maskd.grammar import GrammarSpec
from tests.conftest import Daemon, byte_vocabulary
from tests.reasoning_model import PLAIN, make_directory

torch.set_num_threads(1)
PROMPT = "Tell me:"
VOCABULARY = byte_vocabulary()
PREFIXES = TokenPrefixes(VOCABULARY)


@pytest.fixture(scope="module")
def engine(daemon: Daemon) -> Iterator[Engine]:
    with Engine(target=daemon.target, slots=4, device="cpu", context_length=256) as made:
        yield made


def seeded(seed: int, **options: float) -> SamplingParams:
    return SamplingParams(seed=seed, **options)  # type: ignore[arg-type]


# -- least tokens ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grammar", [None, GrammarSpec("regex", "[a-z]*")])
def test_output_when_a_least_length_is_asked_for_then_no_stop_token_comes_before(
    engine: Engine, grammar: GrammarSpec | None
) -> None:
    """The stop token is made the likeliest one: with no least length it comes at once."""
    stop = dict.fromkeys(engine._vocabulary.stop_token_ids, 100.0)
    sampling = SamplingParams(temperature=0.0, logit_bias=stop)
    lengths = [
        len(engine.submit(TextRequest(PROMPT, grammar, sampling, 30, min_tokens=least)).result(60)[0].token_ids)
        for least in (0, 7)
    ]
    assert lengths == [0, 7]


def test_output_when_its_grammar_ends_before_the_least_length_then_it_ends(engine: Engine) -> None:
    """The mask wins; no error, no dead end."""
    (choice,) = engine.submit(
        TextRequest(PROMPT, GrammarSpec("regex", "(Paris|London)"), seeded(1), 30, min_tokens=20)
    ).result(60)
    assert choice.text in ("Paris", "London") and choice.finish_reason == "stop"


def test_output_when_a_stop_string_comes_before_the_least_length_then_it_goes_on(engine: Engine) -> None:
    grammar = GrammarSpec("regex", "ababababab")
    (short,) = engine.submit(TextRequest(PROMPT, grammar, seeded(1), stop=("b",))).result(60)
    (long,) = engine.submit(TextRequest(PROMPT, grammar, seeded(1), stop=("b",), min_tokens=2)).result(60)
    assert (short.text, short.stop_string) == ("a", "b")
    assert len(long.token_ids) > 2 and long.text.startswith("a") and long.stop_string == "b"


def test_output_when_closed_before_its_budget_then_not_before_its_least_length(engine: Engine) -> None:
    """What steers to the end takes no stop token that may not be drawn yet."""
    grammar = GrammarSpec("json_schema", json.dumps({"type": "array", "items": {"type": "integer"}, "maxItems": 2}))
    for least in (0, 12):
        request = TextRequest(PROMPT, grammar, seeded(3), 16, min_tokens=least, close_before_budget=True)
        (choice,) = engine.submit(request).result(60)
        assert (
            isinstance(json.loads(choice.text), list)
            and choice.finish_reason in ("stop", "length")
            and len(choice.token_ids) >= least
        )


# -- stop tokens and banned words --------------------------------------------------------------------------------------


def test_output_when_given_a_stop_token_then_it_ends_there_without_it(engine: Engine) -> None:
    letters = GrammarSpec("regex", "jqxzvkwjqxzvkw")
    (whole,) = engine.submit(TextRequest(PROMPT, letters, seeded(2))).result(60)
    stop = next(token_id for token_id in whole.token_ids[1:] if token_id != whole.token_ids[0])
    (cut,) = engine.submit(TextRequest(PROMPT, letters, seeded(2), stop_token_ids=(stop,))).result(60)
    assert cut.token_ids == whole.token_ids[: whole.token_ids.index(stop)] and cut.finish_reason == "stop"


def test_output_when_words_are_banned_then_it_has_none_however_they_are_cut(engine: Engine) -> None:
    """Of two letters each in turn is banned; a word of several letters too; and what the grammar wants wins."""
    pair = GrammarSpec("regex", "[ab]{12}")
    for banned, left in (("a", "b" * 12), ("b", "a" * 12)):
        assert engine.submit(TextRequest(PROMPT, pair, seeded(1), banned_words=(banned,))).result(60)[0].text == left
    for seed in range(5):
        (choice,) = engine.submit(
            TextRequest(PROMPT, pair, seeded(seed, temperature=2.0), banned_words=("ab",))
        ).result(60)
        assert "ab" not in choice.text and len(choice.text) == 12
    (choice,) = engine.submit(
        TextRequest(PROMPT, GrammarSpec("regex", "Paris"), seeded(1), banned_words=("ari",))
    ).result(60)
    assert choice.text == "Paris"
    letters = engine.tokenizer.encode("q")
    (choice,) = engine.submit(
        TextRequest(PROMPT, GrammarSpec("regex", "[q-r]{3}"), seeded(1), banned_token_ids=tuple(letters))
    ).result(60)
    assert not set(letters) & set(choice.token_ids)


@given(
    words=st.lists(st.text(alphabet="Paris", min_size=1, max_size=4), min_size=1, max_size=3)
    | st.lists(st.text(alphabet="Paris", min_size=1, max_size=4), min_size=16, max_size=24),
    text=st.text(alphabet="Paris", max_size=8),
)
def test_banned_words_when_a_token_is_not_forbidden_then_it_completes_none(words: list[str], text: str) -> None:
    """A token is forbidden exactly if the text has a word with it that it did not have without."""
    banned = BannedWords(words, PREFIXES)
    forbidden = set(banned.forbidden(list(text.encode())))
    for token_id, token in PREFIXES.texts.items():
        before, after = text.encode(), text.encode() + token
        completes = any(after.count(word.encode(), max(0, len(before) - len(word) + 1)) for word in words)
        assert completes == (token_id in forbidden), (words, text, token)


def test_banned_words_when_there_are_thousands_then_they_cost_no_seconds() -> None:
    """Each word alone may have many tokens that begin with its rest."""
    words = [f"{chr(97 + n % 26)}{n:06d}" + "x" * (n % 990) for n in range(10_000)]
    started = time.process_time()
    banned = BannedWords(words, PREFIXES)
    for _ in range(100):
        banned.forbidden(list(b"qqq0001ab" * 120))
    assert time.process_time() - started < 5


# -- the best of several -----------------------------------------------------------------------------------------------


def test_best_of_when_asked_for_then_the_likeliest_are_kept(engine: Engine) -> None:
    """All of them are generated; the mean log probability of their tokens decides."""
    word = GrammarSpec("regex", "[a-z]{4,9}")
    all_of_them = engine.submit(TextRequest(PROMPT, word, seeded(5), n=4, logprobs=0)).result(60)
    means = [
        (sum(token.logprob for token in choice.logprobs or ()) / len(choice.token_ids), choice.text)
        for choice in all_of_them
    ]
    generation = engine.submit(TextRequest(PROMPT, word, seeded(5), n=2, best_of=4))
    generation.result(60)
    assert [choice.text for choice in generation.best] == [text for _, text in sorted(means, reverse=True)[:2]]
    assert [(choice.index, choice.logprobs) for choice in generation.best] == [(0, None), (1, None)]
    assert generation.completion_tokens == sum(len(choice.token_ids) for choice in all_of_them)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_tokens": 31}, "min_tokens is 31; give 0 to 30"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"best_of": 1, "n": 2}, "best_of is 1"),
        ({"stop_token_ids": (10**6,)}, "stop_token_ids has token id 1000000"),
        ({"banned_token_ids": (-1,)}, "banned_token_ids"),
        ({"sampling": SamplingParams(logit_bias={10**6: 1.0})}, "logit_bias has token id 1000000"),
    ],
)
def test_submit_when_a_limit_makes_no_sense_then_it_is_named(
    engine: Engine, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        engine.submit(TextRequest(PROMPT, max_tokens=30, **options))  # type: ignore[arg-type]


def test_engine_when_the_model_says_nonsense_about_sampling_then_refused(daemon: Daemon, tmp_path: Path) -> None:
    directory = make_directory(tmp_path, PLAIN)
    (directory / "generation_config.json").unlink()
    (directory / "generation_config.json").write_text('{"top_p": 7}')
    with pytest.raises(ValueError, match=r"generation_config\.json: top_p is 7"):
        Engine(directory, target=daemon.target, device="cpu")
