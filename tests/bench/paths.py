"""The ways to get the rows of a batch step, each as an engine would do it: in its own process, or from the daemon.

A path has ``step(k)``, which accepts the tokens of step k of the walk and leaves the rows of the batch in ``rows``.
What an
engine keeps between steps (its batch as arrays, the addresses of its rows) is kept here too, and made before the clock
runs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Protocol

import llguidance
import llguidance.numpy
import numpy as np
import xgrammar
from numpy.typing import NDArray

from maskd.client import Client, Session
from maskd.grammar import GrammarOptions, GrammarSpec
from maskd.json_schema.compiler.compiler import compile_ebnf, compile_schema
from maskd.shm import layout as lay
from maskd.step import ROLLBACK_ALL, Action, Item
from maskd.v1 import mask_service_pb2 as pb
from maskd.vocabulary import Vocabulary
from tests.bench.workload import SCHEMA, Walk


class Path(Protocol):
    """One way. ``worker_seconds`` is the worker's own time for the last step, 0 in process."""

    rows: NDArray[np.int32]
    worker_seconds: float

    def step(self, k: int) -> None: ...
    def close(self) -> None: ...


# -- in process: the libraries used directly, with the grammar that the daemon's compiler makes of the schema ---------


def xgrammar_matchers(vocabulary: Vocabulary) -> Callable[[], xgrammar.GrammarMatcher]:
    """Compiles the schema with xgrammar; every call of what is returned makes a matcher."""
    tokens = list(vocabulary.tokens)
    for token_id in vocabulary.special_token_ids:
        tokens[token_id] = b""
    info = xgrammar.TokenizerInfo(
        tokens,
        vocab_type=xgrammar.VocabType.RAW,
        vocab_size=vocabulary.vocab_size,
        stop_token_ids=list(vocabulary.stop_token_ids),
    )
    grammar = compile_ebnf(json.loads(SCHEMA), GrammarOptions()).ebnf
    compiled = xgrammar.GrammarCompiler(info, max_threads=1).compile_grammar(grammar)
    return lambda: xgrammar.GrammarMatcher(compiled)


def llguidance_matchers(vocabulary: Vocabulary) -> Callable[[], llguidance.LLMatcher]:
    """The same with llguidance; complete rows, not only the canonical tokens of forced text."""

    class Wrapper:
        is_tokenizer_wrapper = True
        bos_token_id = None
        eos_token_id = vocabulary.stop_token_ids[0]

        def __init__(self) -> None:
            self.tokens = list(vocabulary.tokens)
            self.special_token_ids = list(vocabulary.special_token_ids)

        def __call__(self, text: str) -> list[int]:
            raise NotImplementedError

    tokenizer = llguidance.LLTokenizer(Wrapper(), eos_token=list(vocabulary.stop_token_ids))
    grammar = compile_schema(json.loads(SCHEMA), GrammarOptions()).lark
    template = llguidance.LLMatcher(tokenizer, json.dumps({"grammars": [{"lark_grammar": grammar}]}), log_level=0)
    assert not template.is_error(), template.get_error()
    return template.deep_copy


class _InProcess:
    worker_seconds = 0.0

    def __init__(self, walk: Walk, vocab_size: int) -> None:
        self.rows = np.zeros((walk.batch, vocab_size // 32), dtype=np.int32)
        self._tokens = walk.tokens.tolist()
        self._restarts = [np.flatnonzero(row).tolist() for row in walk.restarts]

    def close(self) -> None:
        pass


class XgrammarLoop(_InProcess):
    """accept_token and fill_next_token_bitmask, sequence by sequence."""

    def __init__(self, walk: Walk, vocab_size: int, matcher: Callable[[], xgrammar.GrammarMatcher]) -> None:
        super().__init__(walk, vocab_size)
        self._matchers = [matcher() for _ in range(walk.batch)]
        self._row_views = list(self.rows)
        for one, prefix in zip(self._matchers, walk.prefixes, strict=True):
            assert all(one.accept_token(token_id) for token_id in prefix)

    def step(self, k: int) -> None:
        for i in self._restarts[k]:
            self._matchers[i].reset()
        for matcher, token_id, row in zip(self._matchers, self._tokens[k], self._row_views, strict=True):
            if not matcher.accept_token(token_id):
                raise AssertionError
            matcher.fill_next_token_bitmask(row)


class XgrammarBatch(XgrammarLoop):
    """BatchGrammarMatcher: one native call for the tokens, one for the rows."""

    def __init__(self, walk: Walk, vocab_size: int, matcher: Callable[[], xgrammar.GrammarMatcher]) -> None:
        super().__init__(walk, vocab_size, matcher)
        self._batch = xgrammar.BatchGrammarMatcher(max_threads=1)

    def step(self, k: int) -> None:
        for i in self._restarts[k]:
            self._matchers[i].reset()
        if not all(self._batch.batch_accept_token(self._matchers, self._tokens[k])):
            raise AssertionError
        self._batch.batch_fill_next_token_bitmask(self._matchers, self.rows)


class LlguidanceLoop(_InProcess):
    """consume_token and unsafe_compute_mask_ptr, sequence by sequence, into rows whose addresses are known."""

    def __init__(self, walk: Walk, vocab_size: int, matcher: Callable[[], llguidance.LLMatcher]) -> None:
        super().__init__(walk, vocab_size)
        self._matchers = [matcher() for _ in range(walk.batch)]
        self._addresses = [row.ctypes.data for row in self.rows]
        self._row_bytes = 4 * self.rows.shape[1]
        for one, prefix in zip(self._matchers, walk.prefixes, strict=True):
            assert all(one.consume_token(token_id) for token_id in prefix)

    def step(self, k: int) -> None:
        row_bytes = self._row_bytes
        for i in self._restarts[k]:
            self._matchers[i].reset()
        for matcher, token_id, address in zip(self._matchers, self._tokens[k], self._addresses, strict=True):
            if not matcher.consume_token(token_id):
                raise AssertionError
            matcher.unsafe_compute_mask_ptr(address, row_bytes)


class LlguidanceBatch(LlguidanceLoop):
    """LLExecutor: one native call for the tokens, one for the rows."""

    def __init__(self, walk: Walk, vocab_size: int, matcher: Callable[[], llguidance.LLMatcher]) -> None:
        super().__init__(walk, vocab_size, matcher)
        self._executor = llguidance.LLExecutor(1)
        self._pairs = [(one, i) for i, one in enumerate(self._matchers)]

    def step(self, k: int) -> None:
        for i in self._restarts[k]:
            self._matchers[i].reset()
        if not all(self._executor.consume_token_par(list(zip(self._matchers, self._tokens[k], strict=True)))):
            raise AssertionError
        llguidance.numpy.fill_next_token_bitmask_par(self._executor, self._pairs, self.rows)


# -- the daemon ------------------------------------------------------------------------------------------------------


class _Daemon:
    """A session whose sequences stand where the walk begins."""

    def __init__(self, walk: Walk, session: Session, backend: str) -> None:
        self._session = session
        self._tokens = walk.tokens.tolist()
        self._restarts = [set(np.flatnonzero(row).tolist()) for row in walk.restarts]
        grammar = session.create_grammar(GrammarSpec("json_schema", SCHEMA, backend))
        self._open = [
            Item(1 + i, Action.OPEN, grammar.grammar_id, accept=prefix, row=i) for i, prefix in enumerate(walk.prefixes)
        ]
        self.rows = np.zeros((walk.batch, 0), dtype=np.int32)
        self.worker_seconds = 0.0

    def _items(self, k: int) -> list[Item]:
        restarts = self._restarts[k]
        return [
            Item(1 + i, rollback=ROLLBACK_ALL if i in restarts else 0, accept=(token_id,), row=i)
            for i, token_id in enumerate(self._tokens[k])
        ]

    def close(self) -> None:
        self._session.close()


class SessionItems(_Daemon):
    """A list of ``Item``, through whatever transport the session has; every ``Result`` is looked at."""

    def __init__(self, walk: Walk, session: Session, backend: str) -> None:
        super().__init__(walk, session, backend)
        assert session.step(self._open, timeout_seconds=60).ok

    def step(self, k: int) -> None:
        reply = self._session.step(self._items(k))
        for result in reply.results:
            if result.status:
                raise AssertionError(result)
        self.rows, self.worker_seconds = reply.rows, reply.worker_seconds


class SessionArrays(_Daemon):
    """The batch as arrays: what an engine with a core to think of does."""

    def __init__(self, walk: Walk, session: Session, backend: str) -> None:
        super().__init__(walk, session, backend)
        assert session.step(self._open, timeout_seconds=60).ok
        self._walk_tokens = list(walk.tokens)
        self._rollbacks = [row * np.int32(ROLLBACK_ALL) if row.any() else None for row in walk.restarts]
        self._items_array = np.zeros(walk.batch, dtype=lay.ITEM_DTYPE)
        self._items_array["sequence_id"] = 1 + np.arange(walk.batch)
        self._items_array["row"] = self._items_array["accept_offset"] = np.arange(walk.batch)
        self._items_array["accept_count"] = 1

    def step(self, k: int) -> None:
        items, rollback = self._items_array, self._rollbacks[k]
        if rollback is not None:
            items["rollback"] = rollback
        self._session.submit_arrays(items, self._walk_tokens[k])
        if rollback is not None:
            items["rollback"] = 0
        reply = self._session.collect()
        if not reply.ok:
            raise AssertionError(reply.results)
        self.rows, self.worker_seconds = reply.rows, reply.worker_seconds


class Unary:
    """StepSequences, one call a step: protobuf in and out, rows in the message."""

    def __init__(self, walk: Walk, client: Client, fingerprint: bytes, vocab_size: int, backend: str) -> None:
        self._stub = client._calls.stub
        opened = self._stub.CreateSession(
            pb.CreateSessionRequest(
                vocabulary_fingerprint=fingerprint,
                vocab_size=vocab_size,
                transport=pb.TRANSPORT_INLINE,
                row_capacity=walk.batch,
            )
        )
        self._session_id, self._stride = opened.session_id, opened.row_stride_words
        spec = pb.GrammarSpec(json_schema=SCHEMA, backend=backend)
        grammar = self._stub.CreateGrammar(pb.CreateGrammarRequest(session_id=self._session_id, grammar=spec))
        self._tokens = walk.tokens.tolist()
        self._restarts = [set(np.flatnonzero(row).tolist()) for row in walk.restarts]
        self._number = 0
        self._send(
            [
                pb.Item(
                    sequence_id=1 + i,
                    action=pb.ACTION_OPEN,
                    grammar_id=grammar.grammar_id,
                    accept_token_ids=prefix,
                    row_wanted=True,
                )
                for i, prefix in enumerate(walk.prefixes)
            ]
        )

    def _send(self, items: list[pb.Item]) -> None:
        self._number += 1
        answer = self._stub.StepSequences(
            pb.StepSequencesRequest(session_id=self._session_id, step=self._number, items=items)
        )
        for result in answer.results:
            if result.status:
                raise AssertionError(result)
        self.rows = np.frombuffer(answer.rows, dtype=np.int32).reshape(-1, self._stride)
        self.worker_seconds = answer.worker_milliseconds / 1e3

    def step(self, k: int) -> None:
        restarts = self._restarts[k]
        self._send(
            [
                pb.Item(
                    sequence_id=1 + i,
                    rollback_count=-1 if i in restarts else 0,
                    accept_token_ids=[token_id],
                    row_wanted=True,
                )
                for i, token_id in enumerate(self._tokens[k])
            ]
        )

    def close(self) -> None:
        self._stub.DeleteSession(pb.DeleteSessionRequest(session_id=self._session_id))
