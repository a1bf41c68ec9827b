"""Tools and ``tool_choice`` to a grammar: under every choice, a call's arguments are masked to its function's schema.

Owns: reading both spellings of tools (chat completions nest them, responses do not), and the plan.
Knows nothing about: HTTP, how an engine decodes.

How a choice is decoded:

- ``none``: as if there were no tools.
- One named tool: the prompt ends with the beginning of its call, and the output is its arguments.
- ``required`` (Mistral: ``any``): one or more tagged calls and nothing else.
- ``auto``: text in which a tag can only open a call of one of the tools.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from engine_adapter.engine.generation import Reasoning
from engine_adapter.serve.errors import RequestError
from engine_adapter.serve.tools.calls import BEGIN, END, ArgumentsReader, PlainReader, Reader, TaggedReader
from engine_adapter.structured_output.bounded import bounded_schema
from engine_adapter.structured_output.response_format import ResponseFormatError, grammar_of
from maskd.grammar import GrammarOptions, GrammarSpec

__all__ = ["Plan", "Tool", "plan_output", "read_tools"]

_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")


@dataclass(frozen=True)
class Tool:
    """One tool.

    Attributes:
        name: unique among the tools.
        param: where it stands in the body.
        description: for the model.
        parameters: JSON schema of the arguments; None = it is a custom tool, whose input is text.
        strict: forbid properties that an object schema does not name.
        input_grammar: of a custom tool; None = any text.
    """

    name: str
    param: str
    description: str = ""
    parameters: Mapping[str, Any] | None = None
    strict: bool = False
    input_grammar: GrammarSpec | None = None

    @property
    def is_custom(self) -> bool:
        """Whether its input is text."""
        return self.parameters is None

    @property
    def schema_param(self) -> str:
        """Where its schema or grammar stands in the body."""
        return f"{self.param}.{'custom.format' if self.is_custom else 'function.parameters'}"

    def for_template(self) -> dict[str, Any]:
        """Returns it as chat templates want it."""
        function: dict[str, Any] = {"name": self.name, "description": self.description}
        if self.parameters is not None:
            function["parameters"] = dict(self.parameters)
        return {"type": "function", "function": function}


@dataclass(frozen=True)
class Plan:
    """How the outputs of one request are decoded and read.

    Attributes:
        grammar: of the output.
        error_places: where the parts of the grammar's source stand in the body; see ``errors.located``.
        reader: makes the reader of one output.
        tools: for the chat template; None = do not mention any.
        opening: the beginning of a call that stands at the end of the prompt.
        prompt: of the model, with the opening; text or token ids.
        reasoning: set if the output begins with reasoning.
    """

    grammar: GrammarSpec | None
    error_places: Mapping[str, str] = field(default_factory=lambda: {"": "response_format"})
    reader: Callable[[], Reader] = PlainReader
    tools: Sequence[Mapping[str, Any]] | None = None
    opening: str = ""
    prompt: str | Sequence[int] = ""
    reasoning: Reasoning | None = None

    def read(self, text: str) -> Reader:
        """Returns the reader of a whole output."""
        reader = self.reader()
        reader.feed(text)
        reader.finish()
        return reader


def read_tools(given: Sequence[Any]) -> list[Tool]:
    """Reads the ``tools`` of a body.

    Raises:
        RequestError: a tool that cannot be read, or two of one name.
    """
    tools = [_read_tool(tool, f"tools[{index}]") for index, tool in enumerate(given)]
    names = [tool.name for tool in tools]
    for tool in tools:
        if names.count(tool.name) > 1:
            raise RequestError(f"two tools are called {tool.name!r}", tool.param)
    return tools


def plan_output(
    tools: Sequence[Tool],
    tool_choice: Any,
    *,
    parallel: bool | None,
    grammar: GrammarSpec | None,
    format_field: str,
    bounded: bool,
    behind_reasoning: bool = False,
) -> Plan:
    """Returns how to decode a request with ``tools``, whose answers without calls match ``grammar``.

    Args:
        tools: may be empty.
        tool_choice: as it stands in the body; None = ``auto`` if there are tools.
        parallel: whether one output may hold several calls; None = yes.
        grammar: of the content; None = any text.
        format_field: where ``grammar`` stands in the body.
        bounded: narrow schemas so that calls are short, and allow one call only: for models that were not trained.
        behind_reasoning: the output begins with reasoning, so the beginning of a named call is part of the output.

    Raises:
        RequestError: a choice that is unknown or cannot be combined.
    """
    mode, chosen = _read_choice(tool_choice, tools)
    if mode == "none" or not chosen:
        return Plan(grammar, {"": format_field})
    listed = [tool.for_template() for tool in tools]
    if mode == "named" and not behind_reasoning:
        return _named(chosen[0], listed)
    tags = [_tag(tool, bounded) for tool in chosen]
    error_places = {"": "tools"}
    for index, tool in enumerate(chosen):
        for inside in ("", "/elements/0"):
            error_places[f"/format{inside}/tags/{index}/content/json_schema"] = tool.schema_param
    single = bounded or parallel is False or mode == "named"
    calls: dict[str, Any] = {"type": "tags_with_separator", "tags": tags, "separator": "\n", "at_least_one": True}
    if single:
        calls["stop_after_first"] = True
    if mode in ("required", "named"):
        structure: dict[str, Any] = calls
    elif grammar is not None:
        content = _as_format(grammar)
        if content is None:
            message = f"tools cannot be combined with a {format_field} of kind {grammar.kind}; set tool_choice"
            raise RequestError(message, format_field)
        structure = {"type": "or", "elements": [calls, content]}
        error_places["/format/elements/1"] = format_field
    else:
        structure = {"type": "triggered_tags", "triggers": [BEGIN], "tags": tags}
        if single:
            structure["stop_after_first"] = True
    strict = all(tool.strict or tool.is_custom for tool in chosen)
    source = json.dumps({"type": "structural_tag", "format": structure}, ensure_ascii=False)
    options = GrammarOptions(
        max_whitespace=1 if bounded else None, additional_properties="forbid" if strict or bounded else "allow"
    )
    spec = GrammarSpec("structural_tag", source, options=options)
    return Plan(spec, error_places, partial(TaggedReader, {tool.name: tool.is_custom for tool in chosen}), listed)


# -- reading ---------------------------------------------------------------------------------------------------------


def _read_tool(given: Any, param: str) -> Tool:
    if not isinstance(given, Mapping):
        raise RequestError(f"{param} is not an object", param)
    kind = given.get("type", "function")
    if kind not in ("function", "custom"):
        raise RequestError(f"{param}.type is {kind!r}; give function or custom", f"{param}.type")
    inner = given.get(kind)
    holder = given if inner is None else inner
    where = param if inner is None else f"{param}.{kind}"
    if not isinstance(holder, Mapping):
        raise RequestError(f"{where} is not an object", where)
    name = holder.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise RequestError(f"{where}.name is {name!r}; give 1 to 128 of A-Z a-z 0-9 _ . : / -", f"{where}.name")
    description = str(holder.get("description") or "")
    if kind == "custom":
        return Tool(name, param, description, input_grammar=_input_grammar(holder.get("format"), f"{where}.format"))
    parameters = holder.get("parameters")
    if parameters is None:
        parameters = {"type": "object", "properties": {}}
    if not isinstance(parameters, Mapping):
        raise RequestError(f"{where}.parameters is not a JSON schema object", f"{where}.parameters")
    if parameters.get("type", "object") != "object":
        raise RequestError(
            f"{where}.parameters has type {parameters['type']!r}; arguments are an object", f"{where}.parameters#/type"
        )
    if "type" not in parameters and "$ref" not in parameters:
        parameters = {"type": "object", **parameters}
    strict = holder.get("strict")
    if strict not in (None, True, False):
        raise RequestError(f"{where}.strict is {strict!r}; give true or false", f"{where}.strict")
    return Tool(name, param, description, parameters=parameters, strict=bool(strict))


def _input_grammar(given: Any, param: str) -> GrammarSpec | None:
    if given is None:
        return None
    try:
        grammar = grammar_of(given)
    except ResponseFormatError as error:
        raise RequestError(f"{param}: {error}", f"{param}.{error.field}", code="response_format_invalid") from None
    if grammar is not None and grammar.kind not in ("lark", "ebnf", "regex"):
        raise RequestError(f"{param} is {grammar.kind}; give text, or a grammar with syntax lark or regex", param)
    return grammar


def _read_choice(given: Any, tools: Sequence[Tool]) -> tuple[str, Sequence[Tool]]:
    """Returns none, auto, required or named, and the tools that may be called."""
    if given is None:
        return "auto", tools
    if isinstance(given, str):
        if given not in ("none", "auto", "required", "any"):
            raise RequestError(
                f"tool_choice is {given!r}; give none, auto, required, any, or an object that names a tool",
                "tool_choice",
            )
        mode = "required" if given == "any" else given
        if mode == "required" and not tools:
            raise RequestError(f"tool_choice is {given!r}, but there are no tools", "tools")
        return mode, tools
    if not isinstance(given, Mapping):
        raise RequestError("tool_choice is neither a string nor an object", "tool_choice")
    if given.get("type") == "allowed_tools":
        allowed = given.get("allowed_tools", given)
        entries = allowed.get("tools") if isinstance(allowed, Mapping) else None
        allowed_mode = allowed.get("mode", "auto") if isinstance(allowed, Mapping) else None
        if not isinstance(entries, list) or allowed_mode not in ("auto", "required"):
            raise RequestError(
                "tool_choice.allowed_tools needs a mode, auto or required, and a list of tools", "tool_choice"
            )
        return str(allowed_mode), [_find(_chosen_name(entry), tools) for entry in entries]
    return "named", [_find(_chosen_name(given), tools)]


def _chosen_name(given: Any) -> Any:
    if isinstance(given, Mapping):
        inner = given.get(str(given.get("type", "function")), given)
        if isinstance(inner, Mapping):
            return inner.get("name")
    return None


def _find(name: Any, tools: Sequence[Tool]) -> Tool:
    for tool in tools:
        if tool.name == name:
            return tool
    raise RequestError(
        f"tool_choice names {name!r}; tools has {', '.join(tool.name for tool in tools) or 'none'}", "tool_choice"
    )


# -- grammars --------------------------------------------------------------------------------------------------------


def _named(tool: Tool, listed: Sequence[Mapping[str, Any]]) -> Plan:
    spec = tool.input_grammar
    if tool.parameters is not None:
        options = GrammarOptions(additional_properties="forbid" if tool.strict else "allow")
        spec = GrammarSpec("json_schema", json.dumps(tool.parameters, ensure_ascii=False), options=options)
    reader = partial(ArgumentsReader, tool.name, tool.is_custom)
    return Plan(spec, {"": tool.schema_param}, reader, listed, f"{BEGIN}{tool.name}>")


def _tag(tool: Tool, bounded: bool) -> dict[str, Any]:
    content: dict[str, Any] | None
    if tool.parameters is not None:
        schema = dict(tool.parameters)
        if tool.strict:
            schema.setdefault("additionalProperties", False)
        content = {"type": "json_schema", "json_schema": bounded_schema(schema) if bounded else schema}
    elif tool.input_grammar is None:
        content = {"type": "any_text"}
    else:
        content = _as_format(tool.input_grammar)
        if content is None:
            instead = "must be named in tool_choice and cannot come behind reasoning"
            cure = "give it a regex, or reasoning_effort none"
            raise RequestError(f"a tool with a {tool.input_grammar.kind} grammar {instead}; {cure}", tool.param)
    return {"type": "tag", "begin": f"{BEGIN}{tool.name}>", "content": content, "end": END}


def _as_format(grammar: GrammarSpec) -> dict[str, Any] | None:
    """Returns the part of a structural tag that allows what ``grammar`` allows; None if there is none for its kind."""
    if grammar.kind in ("json_schema", "json_object"):
        schema = json.loads(grammar.source) if grammar.source else {"type": "object"}
        return {"type": "json_schema", "json_schema": schema}
    if grammar.kind == "regex":
        return {"type": "regex", "pattern": grammar.source}
    if grammar.kind == "ebnf":
        return {"type": "grammar", "grammar": grammar.source}
    if grammar.kind == "choice":
        texts = json.loads(grammar.source)
        return {"type": "or", "elements": [{"type": "const_string", "value": text} for text in texts]}
    return None
