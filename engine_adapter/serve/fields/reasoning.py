"""Conversations to plans: reasoning as clients ask for it, the rendered prompt, and the tools.

Owns: the spellings in which clients turn reasoning on, off and short.
Knows nothing about: answers, engines, the marks that end a model's reasoning.

``chat_template_kwargs`` and ``enable_thinking`` are those of vLLM, SGLang and LMDeploy, ``reasoning_effort`` is
OpenAI's (``none`` = off), ``think`` is Ollama's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from engine_adapter.engine.generation import Reasoning
from engine_adapter.serve.errors import RequestError
from engine_adapter.serve.fields.conversation import read_messages
from engine_adapter.serve.tools.plan import Plan, plan_output, read_tools
from engine_adapter.text.reasoning_prompts import ReasoningPrompts
from maskd.grammar import GrammarSpec

__all__ = ["plan_of", "template_variables"]

_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
_OURS = (
    "messages",
    "tools",
    "documents",
    "chat_template",
    "add_generation_prompt",
    "continue_final_message",
    "tokenize",
    "return_dict",
)


def template_variables(
    kwargs: Mapping[str, Any] | None, effort: str | None, enabled: bool | None, effort_field: str = "reasoning_effort"
) -> dict[str, Any]:
    """Returns the variables of the chat template that a request asks for; ``enable_thinking`` only if it is given.

    Args:
        kwargs: ``chat_template_kwargs``.
        effort: OpenAI's word for how much to reason; "none" turns it off, any other on.
        enabled: the same as a switch; it beats ``effort``, and ``kwargs`` beats both.
        effort_field: where ``effort`` stands in the body.

    Raises:
        RequestError: an unknown effort, or a variable that is the server's.
    """
    variables: dict[str, Any] = {}
    if effort is not None:
        if effort not in _EFFORTS:
            raise RequestError(
                f"{effort_field} is {effort!r}; give one of {', '.join(_EFFORTS)}", effort_field, code="invalid_value"
            )
        variables = {"enable_thinking": effort != "none", "reasoning_effort": effort}
    if enabled is not None:
        variables["enable_thinking"] = enabled
    for name in kwargs or ():
        if name in _OURS:
            raise RequestError(
                f"chat_template_kwargs.{name} is not for clients; leave it out", f"chat_template_kwargs.{name}"
            )
    return variables | dict(kwargs or {})


def plan_of(
    prompts: ReasoningPrompts,
    messages: Sequence[Any],
    variables: Mapping[str, Any],
    *,
    bounded: bool,
    grammar: GrammarSpec | None,
    format_field: str = "response_format",
    tools: Sequence[Any] | None = None,
    tool_choice: Any = None,
    parallel: bool | None = None,
    reasoning_limit: int | None = None,
) -> Plan:
    """Returns how to decode the answer to a conversation, with its prompt.

    Args:
        prompts: of the model.
        messages: as they stand in the body.
        variables: of the chat template.
        tools: as they stand in the body.
        reasoning_limit: most tokens of the reasoning; None = no limit.
        bounded, grammar, format_field, tool_choice, parallel: see ``plan_output``.

    Raises:
        RequestError, ValueError: the messages, the tools or the choice cannot be read, or the template refuses them.
    """
    make_plan = partial(
        plan_output,
        read_tools(tools or ()),
        tool_choice,
        parallel=parallel,
        grammar=grammar,
        format_field=format_field,
        bounded=bounded,
    )
    conversation = read_messages(messages)
    if reasoning_limit is not None and reasoning_limit < 0:
        message = f"the limit of the reasoning is {reasoning_limit}; give 0 or more"
        raise RequestError(message, "thinking_token_budget", code="invalid_value")
    plan = make_plan()
    prompt, reasons = prompts.render(conversation, plan.tools, **variables)
    if not reasons:
        return dataclasses.replace(plan, prompt=prompt + plan.opening)
    if plan.opening:  # the reasoning stands before the beginning of the call, so the prompt cannot have it
        plan = make_plan(behind_reasoning=True)
    return dataclasses.replace(plan, prompt=prompt, reasoning=Reasoning(reasoning_limit))
