"""The grammars of a worker: made on threads, kept in the cache, and given to sessions that wait.

Owns: the grammar cache, the compile threads. Used by one thread, the data path.
Knows nothing about: the event loop, steps, how a session came to be.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import structlog

from maskd.backends.base import Backend, BatchFill, Grammar, Serializer
from maskd.backends.gate import GatedFill, GatedGrammar
from maskd.errors import CapacityError, GrammarError, GrammarUnsupportedError, MaskdError, NotFoundError
from maskd.grammar import GrammarSpec
from maskd.ipc import messages
from maskd.sequences import HeldGrammar
from maskd.vocabulary import Vocabulary
from maskd.worker.grammar_cache import CompileOutcome, GrammarCache
from maskd.worker.pool import STACK_BYTES, WorkPool
from maskd.worker.session import WorkerSession

__all__ = ["WorkerGrammars"]

_log = structlog.get_logger()


class WorkerGrammars:
    """Makes the grammars of a worker's sessions.

    Args:
        options: from the front.
        named: backends by name, for the vocabulary of the worker, as the nursery built them.

    Attributes:
        done_fd: readable when ``finish`` has something to do.
    """

    def __init__(self, options: messages.SpawnWorker, named: Mapping[str, Backend]) -> None:
        self._named = named
        self._row_seconds = options.row_seconds
        self._cache = GrammarCache(options.cache_bytes)
        self._gated_fills: dict[int, GatedFill] = {}
        self._grammars_per_session = options.grammars_per_session
        self._pool = WorkPool("compile", options.compile_threads, STACK_BYTES)
        self.done_fd = self._pool.done_fd
        self.finish = self._pool.finish

    def compile(
        self,
        message: messages.CompileGrammar,
        session: WorkerSession,
        is_open: Callable[[], bool],
        answer: Callable[[messages.Failure | messages.GrammarCompiled], None],
    ) -> None:
        """Makes the grammar of ``message`` for ``session``.

        Args:
            message: from the front.
            session: gets the grammar before ``answer`` is called.
            is_open: whether the session is still there, when the grammar is.
            answer: called once with what came out, now or by ``finish``.

        Raises:
            CapacityError, GrammarUnsupportedError: nothing was begun, and ``answer`` is not called.
        """
        grammars = session.table.grammars
        if message.grammar_id and len(grammars) + len(session.awaited_grammars) >= self._grammars_per_session:
            raise CapacityError(
                f"the session holds its {self._grammars_per_session} grammars, or has them compiled; delete one first",
                limit="grammars_per_session",
                value=self._grammars_per_session,
            )
        spec, verdict = message.spec, message.verdict
        named = self._named
        name = verdict.report.backend if verdict is not None else spec.backend
        backend = named.get(name)
        if backend is None:
            raise GrammarUnsupportedError(
                f"no backend {name!r} here; give one of {', '.join(named)}", backends=", ".join(named)
            )
        key = (session.vocabulary.fingerprint, spec.digest())

        def compiled(result: CompileOutcome) -> None:
            outcome, wanted = result.grammar, message.grammar_id in session.awaited_grammars
            session.awaited_grammars.discard(message.grammar_id)
            if isinstance(outcome, MaskdError):
                answer(messages.failure_of(outcome))
            elif not is_open():
                answer(messages.failure_of(NotFoundError("the session ended during the compile", kind="session")))
            else:
                if wanted:  # else dropped while it compiled, or for a report only
                    grammar = self._held(
                        message, outcome, named.get(outcome.report.backend, backend), session.vocabulary
                    )
                    grammars[message.grammar_id] = grammar
                    if message.alternate_of in grammars:
                        grammars[message.alternate_of] = grammars[message.alternate_of].with_alternate(grammar)
                answer(messages.GrammarCompiled(outcome.report, result.seconds, result.cached))

        if message.grammar_id:
            session.awaited_grammars.add(message.grammar_id)
        if self._cache.request(key, compiled):
            self._pool.submit(functools.partial(_make, backend, spec, verdict), functools.partial(self._finish, key))

    def _held(
        self, message: messages.CompileGrammar, grammar: Grammar, backend: Backend, vocabulary: Vocabulary
    ) -> HeldGrammar:
        """Returns ``grammar``, which ``backend`` compiled, as a session holds it: behind its gate, if it has one."""
        spec, verdict = message.spec, message.verdict
        batch: BatchFill | None = backend if isinstance(backend, BatchFill) and not message.solo else None
        if spec.reasoning is not None:
            forbidden = grammar.stop_token_ids.union(vocabulary.stop_token_ids)
            grammar = GatedGrammar(grammar, spec.reasoning, len(vocabulary.tokens), vocabulary.vocab_size, forbidden)
            if batch is not None:  # one for all grammars of a backend, to fill them together
                batch = self._gated_fills.setdefault(id(batch), GatedFill(batch))
        slow = verdict is not None and verdict.slowest_mask_seconds > self._row_seconds / 2
        return HeldGrammar.of(message.grammar_id, grammar, batch, slow=slow, when_slow=spec.when_slow)

    def _finish(self, key: tuple[bytes, bytes], outcome: Grammar | MaskdError, seconds: float) -> None:
        if isinstance(outcome, MaskdError) and not isinstance(outcome, GrammarError):
            _log.warning("compile failed", reason=outcome.reason)
        self._cache.finish(key, outcome, seconds)


def _make(backend: Backend, spec: GrammarSpec, verdict: messages.Compiled | None) -> Grammar:
    """Returns the grammar, from the artefact of its verdict if there is one; else compiles it."""
    if verdict is not None and verdict.artefact and isinstance(backend, Serializer):
        return backend.deserialize(verdict.artefact, spec, verdict.report)
    return backend.compile(spec)
