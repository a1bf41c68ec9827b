"""Looks into processes, and waits that only a hang lets fail."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from evil_backend import orders_of

from maskd import backends
from maskd.backends.base import Grammar
from maskd.bitmask import allowed_token_ids, row_stride_words
from maskd.client import Client, Session
from maskd.errors import MaskdError
from maskd.grammar import GrammarSpec
from maskd.v1 import mask_service_pb2 as pb
from maskd.v1 import mask_service_pb2_grpc
from maskd.vocabulary import Vocabulary

_TICKS = os.sysconf("SC_CLK_TCK")


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@contextlib.contextmanager
def raw_stub(daemon: Any) -> Iterator[Any]:
    """The calls of the service without our client, as an engine in another language makes them."""
    with grpc.insecure_channel(daemon.target, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        yield mask_service_pb2_grpc.MaskServiceStub(channel)  # type: ignore[no-untyped-call]


def grammar_request(session: Session, spec: GrammarSpec) -> pb.CreateGrammarRequest:
    """Asks for the regex ``spec``."""
    grammar = pb.GrammarSpec(regex=spec.source, backend=spec.backend)
    return pb.CreateGrammarRequest(session_id=session.session_id, grammar=grammar)


def grammar_count(daemon: Any, session: Session) -> int:
    """Grammars that ``session`` holds, by its worker's account."""
    with raw_stub(daemon) as stub:
        return int(stub.GetSession(pb.GetSessionRequest(session_id=session.session_id)).grammar_count)


def can(call: Callable[[], object]) -> bool:
    try:
        call()
    except MaskdError:
        return False
    return True


def alive(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def cpu_seconds(pid: int) -> float:
    """User and system time of ``pid`` and of its buried children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / _TICKS


def descriptors(pid: int) -> dict[int, str]:
    found = {}
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found[int(path.name)] = str(path.readlink())
    return found


def memory_kb(pid: int) -> int:
    return int(
        next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")).split()[
            1
        ]
    )


def segments(pid: int) -> int:
    """Mappings of segments; the interpreter's own memory comes and goes."""
    return Path(f"/proc/{pid}/maps").read_text().count("/memfd:maskd-")


def maps(pid: int) -> int:
    return len(Path(f"/proc/{pid}/maps").read_text().splitlines())


def open_session(client: Client, vocabulary: Vocabulary, rows: int = 8, transport: str = "shm") -> Session:
    fingerprint = client.upload_vocabulary(vocabulary)
    return client.open_session(fingerprint, vocab_size=vocabulary.vocab_size, row_capacity=rows, transport=transport)  # type: ignore[arg-type]


class Oracle:
    """What the library says in process: the tokens allowed after ``history``."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._backends = {name: backends.load(name)(vocabulary, threads=1) for name in ("llguidance", "xgrammar")}
        self._grammars: dict[GrammarSpec, Grammar] = {}

    def allowed(self, spec: GrammarSpec, history: Sequence[int], backend: str = "llguidance") -> list[int]:
        if spec not in self._grammars:
            name = spec.backend if spec.backend in self._backends else backend
            _, source = orders_of(spec.source)
            self._grammars[spec] = self._backends[name].compile(dataclasses.replace(spec, source=source, backend=name))
        matcher = self._grammars[spec].matcher()
        assert matcher.accept(list(history)) == len(history)
        if matcher.is_terminated:
            return []
        row = np.zeros(row_stride_words(self._vocabulary.vocab_size), dtype=np.int32)
        matcher.fill_bitmask(row)
        return [token_id for token_id in allowed_token_ids(row).tolist() if token_id < len(self._vocabulary.tokens)]
