"""Instructor's modes, through every provider whose package takes the server's address."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import groq
import instructor
import openai
import pytest
from mistralai.client import Mistral
from pydantic import BaseModel

ASK: Any = [{"role": "user", "content": "Jason is 30 years old"}]


class UserDetail(BaseModel):
    name: str
    age: int


class Weather(BaseModel):
    city: str


class Number(BaseModel):
    value: int


def of_openai(url: str, mode: instructor.Mode) -> Any:
    return instructor.from_openai(openai.OpenAI(base_url=url + "/v1", api_key="any", max_retries=0), mode=mode)


def of_provider(name: str, url: str, mode: instructor.Mode) -> Any:
    return instructor.from_provider(f"{name}/llama3.1", base_url=url + "/v1", api_key="any", mode=mode)


def of_groq(url: str, mode: instructor.Mode) -> Any:
    return instructor.from_groq(groq.Groq(base_url=url, api_key="any", max_retries=0), mode=mode)


def of_mistral(url: str, mode: instructor.Mode) -> Any:
    return instructor.from_mistral(Mistral(api_key="any", server_url=url), mode=mode)


CLIENTS = {
    "openai": of_openai,
    "ollama": lambda url, mode: of_provider("ollama", url, mode),
    "together": lambda url, mode: of_provider("together", url, mode),
    "anyscale": lambda url, mode: of_provider("anyscale", url, mode),
    "groq": of_groq,
    "mistral": of_mistral,
}
MASKED = [
    ("openai", "JSON_SCHEMA"),
    ("openai", "TOOLS"),
    ("openai", "RESPONSES_TOOLS"),
    ("ollama", "TOOLS"),
    ("together", "TOOLS"),
    ("anyscale", "JSON_SCHEMA"),
    ("groq", "TOOLS"),
    ("groq", "JSON_SCHEMA"),
    ("mistral", "TOOLS"),
    ("mistral", "JSON_SCHEMA"),
]
PROMPTED = [(name, mode) for name in ("openai", "ollama", "groq") for mode in ("JSON", "MD_JSON")]


def user_of(url: str, name: str, mode: str, **options: Any) -> UserDetail:
    client = CLIENTS[name](url, instructor.Mode[mode])
    user = client.chat.completions.create(
        model="llama3.1", messages=ASK, response_model=UserDetail, max_retries=0, **options
    )
    assert isinstance(user, UserDetail)
    return user


@pytest.mark.parametrize(("name", "mode"), MASKED)
def test_masked_mode_when_used_then_an_instance_comes_back(url: str, name: str, mode: str) -> None:
    """The schema is on the wire, so even random weights give an instance, at the first try."""
    user_of(url, name, mode)


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize(("name", "mode"), PROMPTED)
def test_prompted_mode_when_used_then_the_model_obeys(url: str, name: str, mode: str) -> None:
    """The schema is in the prompt only."""
    assert user_of(url, name, mode, temperature=0).model_dump() == {"name": "Jason", "age": 30}


def test_mistral_tools_when_named_as_before_then_they_work(url: str) -> None:
    """The older name of the mode warns, and is TOOLS."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        user_of(url, "mistral", "MISTRAL_TOOLS")


def test_partial_when_streamed_then_the_last_one_is_whole(url: str) -> None:
    """``create_partial`` reads the pieces of the arguments."""
    client = of_openai(url, instructor.Mode.TOOLS)
    users = list(client.chat.completions.create_partial(model="m", messages=ASK, response_model=UserDetail))
    assert len(users) > 2
    UserDetail.model_validate(users[-1].model_dump())


def test_incomplete_when_the_limit_is_small_then_it_is_said(url: str) -> None:
    """``length`` becomes an exception of its own; a bad request is not tried again and again."""
    client = of_openai(url, instructor.Mode.TOOLS)
    fields: Any = {"model": "m", "messages": ASK, "response_model": UserDetail, "max_retries": 0, "max_tokens": 2}
    with pytest.raises(Exception, match="incomplete") as caught:
        client.chat.completions.create(**fields, extra_body={"close_before_budget": False})
    assert "incomplete" in str(caught.value).lower()


@pytest.mark.usefixtures("trained")
def test_parallel_tools_when_used_then_every_call_is_an_instance(url: str) -> None:
    """``auto``: the model decides to call."""
    client = of_openai(url, instructor.Mode.PARALLEL_TOOLS)
    ask: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
    kinds = Iterable[Weather | Number]
    calls = list(
        client.chat.completions.create(model="m", messages=ask, response_model=kinds, max_retries=0, temperature=0)
    )
    assert calls and all(isinstance(call, Weather | Number) for call in calls)
