"""The grammars of a session, as the front knows them: checked here, admitted by the desk, made by the worker.

Owns: grammar ids, and the content behind each, for the case that the worker dies in one.
Knows nothing about: other sessions, protobuf, how a grammar is compiled.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from maskd.errors import (
    DeadlineError,
    GrammarError,
    GrammarTimeoutError,
    GrammarTooLargeError,
    GrammarUnsupportedError,
    InvalidRequestError,
    UnavailableError,
    clip,
)
from maskd.front.compile_desk import CompileDesk
from maskd.front.config import Config
from maskd.front.quarantine import Key
from maskd.grammar import GrammarSpec, ReasoningGate
from maskd.ipc import messages
from maskd.vocabulary import Vocabulary

if TYPE_CHECKING:
    from maskd.front.worker_process import Worker

__all__ = ["SessionGrammars"]


class SessionGrammars:
    """The grammars of one session.

    Args:
        session_id: of the session, which is open on ``worker``.
        vocabulary: of the session.
        worker: makes and holds them.
        desk: admits them.
        config: the limits.
    """

    def __init__(
        self, session_id: int, vocabulary: Vocabulary, worker: Worker, desk: CompileDesk, config: Config
    ) -> None:
        self._session_id = session_id
        self._vocabulary = vocabulary
        self._worker = worker
        self._desk = desk
        self._config = config
        self._next_id = 1
        self._keys: dict[int, Key] = {}
        self._alternates: dict[int, int] = {}

    async def create(self, spec: GrammarSpec, *, validate_only: bool) -> tuple[int, messages.GrammarCompiled]:
        """Compiles ``spec`` and returns (grammar id, what came out); the id is 0 for ``validate_only``.

        For ``when_slow`` "switch" another backend compiles it too.

        Raises:
            GrammarError: or one of its subclasses. InvalidRequestError, CapacityError: ``spec`` or the session's limit.
            NotFoundError, UnavailableError: the session ended.
        """
        self._check(spec)
        grammar_id, compiled = await self._make(spec, validate_only=validate_only)
        if spec.when_slow == "switch":
            try:
                compiled.alternate_backend = await self._make_alternate(spec, grammar_id, compiled.report.backend)
            except BaseException:
                if grammar_id:
                    self.delete(grammar_id)
                raise
        return grammar_id, compiled

    def delete(self, grammar_id: int) -> None:
        """Lets go of a grammar and of its alternate. Sequences that have it go on. Safe to repeat."""
        for dropped in (grammar_id, self._alternates.pop(grammar_id, 0)):
            self._keys.pop(dropped, None)  # a crash of a sequence that still has it names no grammar
        self._worker.send(messages.DropGrammar(self._session_id, grammar_id))

    def suspects(self, grammar_id: int) -> set[Key | None]:
        """Returns the contents that may be at fault when the worker dies in a call of ``grammar_id``.

        Grammar 0 means a batch: any grammar of the session may be at fault. None means a deleted grammar.
        """
        return {self._keys.get(grammar_id)} if grammar_id else {*self._keys.values(), None}

    def _check(self, spec: GrammarSpec) -> None:
        """Raises GrammarTooLargeError, or InvalidRequestError where ``spec`` does not fit the vocabulary."""
        texts = (spec.source, *spec.resources, *spec.resources.values())
        size = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
        if size > self._config.grammar_bytes:
            raise GrammarTooLargeError(
                f"the grammar has {size} bytes; the limit grammar_bytes is {self._config.grammar_bytes}",
                limit="grammar_bytes",
                value=self._config.grammar_bytes,
            )
        token_count = len(self._vocabulary.tokens)
        for token_id in spec.options.stop_token_ids:
            if not 0 <= token_id < token_count:
                raise InvalidRequestError(
                    f"stop token {token_id} is not in the vocabulary", field="stop_token_ids", token_id=token_id
                )
        if spec.reasoning is not None:
            self._check_gate(spec.reasoning, {*self._vocabulary.stop_token_ids, *spec.options.stop_token_ids})

    def _check_gate(self, gate: ReasoningGate, stop_token_ids: set[int]) -> None:
        for token_id in gate.end_token_ids:
            if not 0 <= token_id < len(self._vocabulary.tokens):
                wrong = "is not in the vocabulary"
            elif token_id in stop_token_ids:
                wrong = "is a stop token: an output would end there"
            else:
                continue
            raise InvalidRequestError(
                f"end-of-reasoning token {token_id} {wrong}", field="reasoning.end_token_ids", token_id=token_id
            )

    async def _make_alternate(self, spec: GrammarSpec, grammar_id: int, backend: str) -> str:
        """Has another backend than ``backend`` compile ``spec``, for slow sequences of ``grammar_id``.

        Tries the backends in their order and returns the name of the first that can.

        Raises:
            GrammarUnsupportedError: none can.
        """
        refusals = []
        for other in self._config.backends:
            if other == backend:
                continue
            try:
                alternate_id, _ = await self._make(
                    dataclasses.replace(spec, backend=other), validate_only=not grammar_id, alternate_of=grammar_id
                )
            except GrammarError as error:
                refusals.append(f"{other}: {error.message}")
                continue
            if alternate_id:
                self._alternates[grammar_id] = alternate_id
            return other
        raise GrammarUnsupportedError(
            f"when_slow is 'switch', and no backend but {backend} does this grammar; give 'wait' or 'fail'. "
            + clip("; ".join(refusals), 900),
            backends=backend,
        )

    async def _make(
        self, spec: GrammarSpec, *, validate_only: bool, alternate_of: int = 0
    ) -> tuple[int, messages.GrammarCompiled]:
        fingerprint = self._vocabulary.fingerprint
        verdict = await self._desk.admit(fingerprint, spec)
        if validate_only and verdict is not None:
            return 0, messages.GrammarCompiled(verdict.report, verdict.seconds, cached=False)
        grammar_id, key = 0, (fingerprint, spec.digest())
        if not validate_only:
            grammar_id, self._next_id = self._next_id, self._next_id + 1
            self._keys[grammar_id] = key
        try:
            compiled = await self._worker.request(
                messages.CompileGrammar(
                    session_id=self._session_id,
                    grammar_id=grammar_id,
                    spec=spec,
                    verdict=verdict,
                    solo=self._desk.is_suspect(key),
                    alternate_of=alternate_of,
                ),
                self._config.compile_seconds,
            )
        except BaseException as error:  # also when the caller has left and never learns the id
            if grammar_id and not isinstance(error, UnavailableError):  # else the worker is gone
                self.delete(grammar_id)
            if not isinstance(error, DeadlineError):
                raise
            raise GrammarTimeoutError(
                f"the compile did not end within compile_seconds = {self._config.compile_seconds}",
                limit="compile_seconds",
                value=self._config.compile_seconds,
            ) from None
        assert isinstance(compiled, messages.GrammarCompiled)
        if verdict is not None:  # the worker only loaded it: the client hears of the real compile
            seconds = 0.0 if compiled.cached else verdict.seconds
            compiled = messages.GrammarCompiled(verdict.report, seconds, compiled.cached)
        return grammar_id, compiled
