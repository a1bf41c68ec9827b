"""What OpenAI's routes have in common: the shape of an error, and the fields of a request to the engine.

Owns: ``OPENAI``, ``ConversationFields``, ``text_request``.
Knows nothing about: any one route.
"""

from __future__ import annotations

from typing import Any

from engine_adapter.engine.generation import TextRequest
from engine_adapter.serve.answer import sse
from engine_adapter.serve.core import Core
from engine_adapter.serve.errors import Dialect, HttpFailure
from engine_adapter.serve.fields.body import CommonFields
from engine_adapter.serve.fields.generation import limits_of, sampling_of, shape_of
from engine_adapter.serve.tools.plan import Plan

__all__ = ["DONE", "OPENAI", "ConversationFields", "text_request"]

DONE = "data: [DONE]\n\n"
"""The last event of a stream."""


def _error_body(failure: HttpFailure) -> dict[str, Any]:
    return {"error": {"message": failure.message, "type": failure.type, "param": failure.param, "code": failure.code}}


OPENAI = Dialect(error_body=_error_body, stream_error=lambda failure: sse(_error_body(failure)) + DONE)


class ConversationFields(CommonFields, kw_only=True):
    """What chat completions and responses have in common."""

    tools: list[Any] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None


def text_request(
    core: Core, body: CommonFields, plan: Plan, *, is_several: bool = False, **further: Any
) -> TextRequest:
    """Returns the request of ``body`` to the engine.

    Args:
        core: knows the model and the defaults.
        body: says how tokens are drawn and how outputs end.
        plan: has the grammar, the prompt and the reasoning.
        is_several: whether the client wants more than one output.
        further: arguments of ``TextRequest`` that no two routes spell alike.

    Raises:
        RequestError, FieldError, InvalidRequestError: a field is wrong.
    """
    return TextRequest(
        prompt=plan.prompt,
        reasoning=plan.reasoning,
        sampling=sampling_of(body, core.engine.model_sampling, is_several=is_several),
        **limits_of(body),
        **shape_of(body, plan.grammar, core.defaults),
        **further,
    )
