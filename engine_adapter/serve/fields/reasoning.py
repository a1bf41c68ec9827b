"""Reasoning in requests: the spellings in which clients turn it on, off and short, and the prompt that comes of them.

``chat_template_kwargs`` and ``enable_thinking`` are those of vLLM, SGLang and LMDeploy, ``reasoning_effort`` is
OpenAI's (``none`` = off), ``think`` is Ollama's.
Knows nothing about: answers, engines; ``engine_adapter.steering.reasoning`` knows the model's marks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from engine_adapter.engine.generation import Reasoning
from engine_adapter.serve.errors import RequestError
from engine_adapter.serve.tools.plan import Plan
from engine_adapter.text.reasoning_prompts import ReasoningPrompts

__all__ = ["prompt_of", "template_variables"]

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
    """Returns the variables of the chat template that a request asks for; ``enable_thinking`` among them, if it says
    anything about it.

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


def prompt_of(
    prompts: ReasoningPrompts,
    messages: Sequence[Mapping[str, Any]],
    make_plan: Callable[[bool], Plan],
    variables: Mapping[str, Any],
    max_tokens: int | None = None,
) -> tuple[Plan, str, Reasoning | None]:
    """Returns how to decode a request, its prompt, and whether it begins with reasoning.

    Args:
        prompts: of the model.
        messages: of the conversation.
        make_plan: given whether the output comes behind reasoning: then its beginning cannot stand in the prompt.
        variables: of the chat template.
        max_tokens: of the reasoning.

    Raises:
        RequestError, ValueError: the plan or the template refuses.
    """
    if max_tokens is not None and max_tokens < 0:
        raise RequestError(
            f"the limit of the reasoning is {max_tokens}; give 0 or more", "thinking_token_budget", code="invalid_value"
        )
    plan = make_plan(False)
    prompt, reasons = prompts.render(messages, plan.tools, **variables)
    if not reasons:
        return plan, prompt + plan.opening, None
    return (make_plan(True) if plan.opening else plan), prompt, Reasoning(max_tokens)
