"""The exception tree of maskd: one class per thing that can go wrong, one code and one reason each.

Owns: the classes, their wire code (a name of ``grpc.StatusCode``), their reason, and what the caller does next
(``recovery``).
Knows nothing about: gRPC, protobuf, shared memory. ``rpc/status.py`` maps the tree to ``google.rpc.Status``;
``step.py`` makes an error of the status of a result.

    MaskdError
    ├── InvalidRequestError         a field is missing, out of range or contradicts another
    ├── ConfigError                 the daemon cannot start with this configuration
    ├── GrammarError                the grammar spec is wrong
    │   ├── GrammarUnsupportedError     this backend cannot do this kind or keyword
    │   ├── GrammarUnsatisfiableError   no token sequence matches
    │   ├── GrammarTooLargeError        a limit is named
    │   ├── GrammarTimeoutError         the compile passed its deadline
    │   └── GrammarPoisonedError        it killed its process twice
    ├── TokenRejectedError          the grammar does not allow this token here
    ├── TerminatedError             the sequence accepted a stop token
    ├── RollbackError               more tokens than were accepted
    ├── NotFoundError               session, grammar, sequence or vocabulary
    ├── SequenceExistsError         the id is open already, or twice in one step
    ├── StepOrderError              step numbers must rise by one
    ├── CapacityError               a session, arena or daemon limit is reached
    │   └── RateLimitedError            too many calls a second
    ├── VocabularyError             the vocabulary is malformed
    ├── VocabularyMismatchError     engine and daemon disagree about the tokens
    ├── PermissionDeniedError       wrong user, wrong or used token
    ├── DrainingError               the daemon is going away
    ├── DeadlineError               no answer in time
    ├── BackendError                the grammar library failed; the sequence is unchanged or gone
    ├── ProtocolError               the peer broke the shared-memory contract; the session is closed
    └── UnavailableError            the daemon or the session's worker is gone
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

__all__ = [
    "BackendError",
    "CapacityError",
    "ConfigError",
    "DeadlineError",
    "DrainingError",
    "GrammarError",
    "GrammarPoisonedError",
    "GrammarTimeoutError",
    "GrammarTooLargeError",
    "GrammarUnsatisfiableError",
    "GrammarUnsupportedError",
    "InvalidRequestError",
    "MaskdError",
    "NotFoundError",
    "PermissionDeniedError",
    "ProtocolError",
    "RateLimitedError",
    "RollbackError",
    "SequenceExistsError",
    "StepOrderError",
    "TerminatedError",
    "TokenRejectedError",
    "UnavailableError",
    "VocabularyError",
    "VocabularyMismatchError",
    "error_classes",
    "make_error",
]

MESSAGE_LIMIT_BYTES = 2048
"""Longest message that leaves the process. gRPC turns a status detail above 16 KiB into RESOURCE_EXHAUSTED. Both
grammar libraries put the whole grammar into their messages."""


def clip(text: str, limit_bytes: int = MESSAGE_LIMIT_BYTES) -> str:
    """Returns ``text`` cut to ``limit_bytes`` of UTF-8, with an ellipsis where something was cut."""
    raw = text.encode("utf-8", "replace")
    if len(raw) <= limit_bytes:
        return raw.decode("utf-8")
    return raw[: limit_bytes - 3].decode("utf-8", "ignore") + "…"


class MaskdError(Exception):
    """Base of every error that maskd raises on purpose.

    Args:
        message: what is wrong, with which thing, and what to do next; clipped to 2 KiB.
        metadata: the dynamic parts of the message, for programs; values are strings.
    """

    code: ClassVar[str] = "INTERNAL"
    reason: ClassVar[str] = "INTERNAL"
    recovery: ClassVar[str] = "report it"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, **metadata: object) -> None:
        super().__init__(clip(message))
        self.metadata: Mapping[str, str] = {
            key: clip(str(value), 256) for key, value in metadata.items() if value is not None
        }

    @property
    def message(self) -> str:
        """What is wrong, with which thing, and what to do next."""
        return str(self.args[0])


class InvalidRequestError(MaskdError):
    """A field is missing, out of range or contradicts another one."""

    code = "INVALID_ARGUMENT"
    reason = "INVALID_REQUEST"
    recovery = "fix the request"


class ConfigError(MaskdError):
    """The daemon cannot start with this configuration."""

    code = "INVALID_ARGUMENT"
    reason = "CONFIG_INVALID"
    recovery = "fix the configuration"


class GrammarError(MaskdError):
    """The grammar spec is malformed: not JSON, unknown type, undefined rule, bad regex.

    ``metadata`` may hold ``pointer`` (a JSON pointer into the schema), ``line`` and ``column``.
    """

    code = "INVALID_ARGUMENT"
    reason = "GRAMMAR_INVALID"
    recovery = "fix the grammar; never decode unconstrained"


class GrammarUnsupportedError(GrammarError):
    """This backend cannot do this kind or keyword. ``metadata["backends"]`` names those that can, if any."""

    code = "UNIMPLEMENTED"
    reason = "GRAMMAR_UNSUPPORTED"
    recovery = "choose another backend, or drop the keyword"


class GrammarUnsatisfiableError(GrammarError):
    """No token sequence of this vocabulary matches the grammar.

    Of a JSON schema, ``metadata`` has what contradicts itself: ``pointer`` and ``keyword``, then ``pointer_2``,
    ``keyword_2`` and so on.
    """

    reason = "GRAMMAR_UNSATISFIABLE"
    recovery = "fix the grammar; nothing can match it"


class GrammarTooLargeError(GrammarError):
    """A limit on grammars was passed; ``metadata`` names it."""

    code = "RESOURCE_EXHAUSTED"
    reason = "GRAMMAR_TOO_LARGE"
    recovery = "simplify the grammar, or raise the named limit"


class GrammarTimeoutError(GrammarError):
    """The compile passed its deadline. Not remembered: the same grammar may be sent again."""

    code = "DEADLINE_EXCEEDED"
    reason = "GRAMMAR_TIMEOUT"
    recovery = "simplify the grammar, or raise the limit"


class GrammarPoisonedError(GrammarError):
    """The grammar crashed or hung its process twice. Remembered until the daemon restarts."""

    code = "FAILED_PRECONDITION"
    reason = "GRAMMAR_POISONED"
    recovery = "change the grammar; never decode unconstrained"


class TokenRejectedError(MaskdError):
    """The grammar does not allow this token here. The sequence is unchanged."""

    code = "FAILED_PRECONDITION"
    reason = "TOKEN_REJECTED"
    recovery = "a bug, or logits without a mask: stop the sequence and report"


class TerminatedError(MaskdError):
    """The sequence accepted a stop token; only rollback, fork and close are left."""

    code = "FAILED_PRECONDITION"
    reason = "SEQUENCE_TERMINATED"
    recovery = "stop asking"


class RollbackError(MaskdError):
    """More tokens were to be rolled back than were accepted. The sequence is unchanged."""

    code = "OUT_OF_RANGE"
    reason = "ROLLBACK_TOO_FAR"
    recovery = "resend from the true history"


class NotFoundError(MaskdError):
    """A session, grammar, sequence or vocabulary that is not there (any more)."""

    code = "NOT_FOUND"
    reason = "NOT_FOUND"
    recovery = "create it again, from the engine's own token history"


class SequenceExistsError(MaskdError):
    """A sequence id that is open already, or that stands twice in one step."""

    code = "ALREADY_EXISTS"
    reason = "SEQUENCE_EXISTS"
    recovery = "never reuse a sequence id within a session; one item per sequence and step"


class StepOrderError(MaskdError):
    """Step numbers must rise by one; a step older than the last one cannot be answered again."""

    code = "ABORTED"
    reason = "STEP_OUT_OF_ORDER"
    recovery = "open a new session and restore its sequences"


class CapacityError(MaskdError):
    """A limit of the session, the arena or the daemon; ``metadata`` names it."""

    code = "RESOURCE_EXHAUSTED"
    reason = "CAPACITY"
    recovery = "queue, close something, or raise the named limit"


class RateLimitedError(CapacityError):
    """More calls a second than one peer may make."""

    reason = "RATE_LIMITED"
    recovery = "slow down"
    retryable = True


class VocabularyError(MaskdError):
    """The vocabulary is malformed: ids out of range, no stop token, unreadable file."""

    code = "INVALID_ARGUMENT"
    reason = "VOCABULARY_INVALID"
    recovery = "fix the vocabulary"


class VocabularyMismatchError(MaskdError):
    """Engine and daemon disagree about the vocabulary: fingerprint or width of the logits."""

    code = "FAILED_PRECONDITION"
    reason = "VOCABULARY_MISMATCH"
    recovery = "fix the deployment: both sides need the same tokenizer"


class PermissionDeniedError(MaskdError):
    """Wrong user, or a session token that is wrong, used or expired."""

    code = "PERMISSION_DENIED"
    reason = "PERMISSION_DENIED"
    recovery = "run as an allowed user; open a new session"


class DrainingError(MaskdError):
    """The daemon is shutting down and takes no new session."""

    code = "UNAVAILABLE"
    reason = "DRAINING"
    recovery = "retry later, or elsewhere"
    retryable = True


class DeadlineError(MaskdError):
    """No answer in time; the step may still be answered later under the same number."""

    code = "DEADLINE_EXCEEDED"
    reason = "STEP_DEADLINE"
    recovery = "wait again, or close the session"


class BackendError(MaskdError):
    """The grammar library failed on this sequence. Its neighbours are not touched."""

    code = "INTERNAL"
    reason = "BACKEND_FAILED"
    recovery = "stop the sequence; the daemon lives"


class ProtocolError(MaskdError):
    """The peer broke the shared-memory contract; the session is closed."""

    code = "INTERNAL"
    reason = "PROTOCOL_ERROR"
    recovery = "a bug in the client: report it; open a new session"


class UnavailableError(MaskdError):
    """The daemon, or the worker of this session, is gone."""

    code = "UNAVAILABLE"
    reason = "UNAVAILABLE"
    recovery = "open a new session and restore its sequences by replay; never sample unmasked"
    retryable = True


def error_classes(root: type[MaskdError] = MaskdError) -> Iterator[type[MaskdError]]:
    """Yields ``root`` and every class below it, parents first."""
    yield root
    for child in root.__subclasses__():
        yield from error_classes(child)


def make_error(reason: str, message: str, metadata: Mapping[str, str]) -> MaskdError:
    """Returns the error that came over a wire, of the class with ``reason``; MaskdError for an unknown reason."""
    cls = next((cls for cls in error_classes() if cls.reason == reason), MaskdError)
    return cls(message, **metadata)
