"""Fields of bodies to fields of ``TextRequest``.

Owns: sampling parameters, the many fields that ask for a grammar, stop strings, limits.
Knows nothing about: prompts, tools, answers.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import msgspec

from engine_adapter.sampling.params import SamplingParams
from engine_adapter.serve.errors import RequestError
from engine_adapter.serve.fields.body import CommonFields, Defaults, OwnFields
from engine_adapter.structured_output.response_format import (
    ResponseFormatError,
    grammar_of,
    grammar_of_structured_outputs,
)
from maskd.grammar import GrammarSpec

__all__ = ["grammar_of_fields", "limits_of", "read_format", "sampling", "sampling_of", "shape_of", "stop_strings"]

_NAMES = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
    "json_schema": "json",
    "regex": "regex",
    "ebnf": "grammar",
    "grammar": "grammar",
    "structural_tag": "structural_tag",
}
_JSON_KINDS = ("json_schema", "json_object", "structural_tag")
_DRAWING = {"top_p", "top_k", "min_p", "typical_p"}
_MOST_STOPS = 16
_MOST_BAD_WORDS, _LONGEST_BAD_WORD = 10_000, 1_000
_MOST_DIGITS = 20
_UNSUPPORTED: dict[str, tuple[Any, str]] = {
    "ignore_eos": (False, "min_tokens keeps an output going"),
    "include_stop_str_in_output": (False, "stop strings are cut off"),
    "allowed_token_ids": ([], "a grammar or logit_bias says what is allowed"),
    "use_beam_search": (False, "n and best_of sample"),
    "length_penalty": (1, "it belongs to beam search"),
    "no_repeat_ngram_size": (0, "repetition_penalty and frequency_penalty are there"),
    "prompt_logprobs": (0, "log probabilities are those of the output"),
}
"""Fields that are refused: the value that changes nothing, and what to use instead."""


def read_format(response_format: Any, field: str = "response_format") -> GrammarSpec | None:
    """Returns the grammar of ``response_format``, which stands in ``field`` of the body.

    Raises:
        RequestError: it cannot be read.
    """
    try:
        return grammar_of(response_format)
    except ResponseFormatError as error:
        param = error.field if error.field.startswith(field) else f"{field}.{error.field}"
        message = str(error) if error.field.startswith(field) else f"{field}.{error}"
        raise RequestError(message, param, code="response_format_invalid") from None


def grammar_of_fields(fields: CommonFields) -> GrammarSpec | None:
    """Returns the grammar that the fields ask for, in any spelling.

    Raises:
        RequestError: it cannot be read, or there are two.
    """
    given: dict[str, GrammarSpec | None] = {}
    if fields.response_format is not None:
        given["response_format"] = read_format(fields.response_format)
    try:
        if fields.structured_outputs is not None:
            given["structured_outputs"] = grammar_of_structured_outputs(fields.structured_outputs)
        for name, key in _NAMES.items():
            value = getattr(fields, name)
            if value is not None:
                given[name] = grammar_of_structured_outputs({key: value}, field=name)
    except ResponseFormatError as error:
        raise RequestError(str(error), error.field, code="response_format_invalid") from None
    grammars = {name: grammar for name, grammar in given.items() if grammar is not None}
    if len(grammars) > 1:
        raise RequestError(
            f"only one of {' and '.join(grammars)} can be given", list(grammars)[1], code="response_format_invalid"
        )
    return next(iter(grammars.values()), None)


def shape_of(fields: OwnFields, grammar: GrammarSpec | None, defaults: Defaults) -> dict[str, Any]:
    """Returns, as arguments of ``TextRequest``, ``grammar`` and what the fields want of it and of its outputs.

    A grammar keeps a bound of its own on white space (``disable_any_whitespace``, ``bounded``).

    Raises:
        RequestError: the backend is a module. InvalidRequestError: ``max_whitespace`` is out of range.
    """
    backend = fields.guided_decoding_backend or "auto"
    if ":" in backend:  # the daemon would refuse it too: it loads only the modules it was started with
        raise RequestError(
            f"guided_decoding_backend is {backend!r}; give auto, xgrammar or llguidance", "guided_decoding_backend"
        )
    if grammar is not None:
        options = grammar.options
        if grammar.kind in _JSON_KINDS:
            if options.max_whitespace is None:
                most = defaults.max_whitespace if fields.max_whitespace is msgspec.UNSET else fields.max_whitespace
                options = dataclasses.replace(options, max_whitespace=most)
            order, formats = fields.property_order or defaults.property_order, fields.formats or options.formats
            options = dataclasses.replace(options, property_order=order, formats=formats)
        resources = {
            address: json.dumps(document, ensure_ascii=False) for address, document in (fields.resources or {}).items()
        }
        grammar = dataclasses.replace(grammar, backend=backend, options=options, resources=resources)
    close = defaults.close_before_budget if fields.close_before_budget is None else fields.close_before_budget
    return {"grammar": grammar, "close_before_budget": close, "when_slow": fields.when_slow}


def sampling_of(
    fields: CommonFields, model_sampling: Mapping[str, float], *, is_several: bool = False
) -> SamplingParams:
    """Returns how the fields want tokens drawn; see ``sampling``, also for the errors."""
    return sampling(
        model_sampling,
        fields,
        is_several=is_several,
        top_k=max(0, fields.top_k) if fields.top_k is not None else None,  # vLLM and Mistral write -1 for all
        seed=fields.seed if fields.seed is not None else fields.random_seed,
        logit_bias=_logit_bias(fields.logit_bias),
    )


def _logit_bias(given: dict[str, float] | None) -> dict[int, float] | None:
    for token_id in given or ():
        if not (token_id.isascii() and token_id.isdigit() and len(token_id) <= _MOST_DIGITS):
            raise RequestError(
                f"logit_bias has the key {token_id[:40]!r}; give token ids", "logit_bias", code="invalid_value"
            )
    return {int(token_id): bias for token_id, bias in given.items()} if given else None


def limits_of(fields: CommonFields) -> dict[str, Any]:
    """Returns, as arguments of ``TextRequest``, how outputs end, and what they must not have.

    Raises:
        RequestError: too many stop strings, or a field that the engine cannot serve.
    """
    for name, (neutral, instead) in _UNSUPPORTED.items():
        if getattr(fields, name) not in (None, neutral):
            raise RequestError(f"{name} is not supported; {instead}", name, code="unsupported_parameter")
    words = fields.bad_words or []
    if len(words) > _MOST_BAD_WORDS or any(len(word) > _LONGEST_BAD_WORD for word in words):
        raise RequestError(
            f"bad_words takes {_MOST_BAD_WORDS:,} words of at most {_LONGEST_BAD_WORD:,} characters",
            "bad_words",
            code="invalid_value",
        )
    return {
        "stop": stop_strings(fields.stop),
        "min_tokens": fields.min_tokens or 0,
        "stop_token_ids": tuple(fields.stop_token_ids or ()),
        "banned_words": tuple(words),
        "ignore_special": fields.skip_special_tokens is not False,
    }


def sampling(
    model_sampling: Mapping[str, float], fields: msgspec.Struct, *, is_several: bool = False, **respelled: Any
) -> SamplingParams:
    """Returns the parameters that ``fields`` gives, over the model's own, over OpenAI's defaults.

    Some models ask for the likeliest token each time. They are sampled from all the same if the request asks for
    several outputs, or says which tokens may be drawn.

    Args:
        model_sampling: what the model's files say.
        fields: has some of the parameters, under the names of ``SamplingParams``; None = not given.
        is_several: whether the request asks for several outputs.
        respelled: parameters that stand in ``fields`` in another form; they replace those.

    Raises:
        FieldError: a value out of range.
    """
    names = [each.name for each in dataclasses.fields(SamplingParams)]
    given = {name: getattr(fields, name, None) for name in names} | respelled
    values = {name: value for name, value in given.items() if value is not None}
    defaults = dict(model_sampling)
    if defaults.get("temperature") == 0 and (is_several or values.keys() & _DRAWING):
        defaults["temperature"] = 1.0
    return SamplingParams(**{**defaults, **values})


def stop_strings(given: str | list[str] | None) -> tuple[str, ...]:
    """Returns the stop strings of a body, without empty ones.

    Raises:
        RequestError: too many.
    """
    stop = (given,) if isinstance(given, str) else tuple(given or ())
    if len(stop) > _MOST_STOPS:
        raise RequestError(f"stop has {len(stop)} strings; give at most {_MOST_STOPS}", "stop")
    return tuple(text for text in stop if text)
