"""A backend that misbehaves on request: ``--backends evil_backend:create`` with this directory in PYTHONPATH.

It wraps llguidance. A regex whose source starts with ``(?:evil…){0}``, which matches nothing and means nothing to other
backends, does what the JSON says that stands there in hex:

    do        nothing | hang | hold (hangs with the GIL) | spin | sleep | burn (without the GIL) | eat | abort | segv
              raise | threads (four of them burn, for ever)
              eat_abort (eats, and aborts without a word when there is no more)
              gasp (says what Rust says then, and aborts)
    in        compile | open | fill | accept | rollback | fork
    at        tokens accepted when it happens; missing = always
    seconds   for sleep and burn
    slow      seconds of processor time that the call takes first, always and everywhere, so that it runs in the slow
              lane
    once      path of a file: only who creates it misbehaves
    jail      true: in compile children too, not only in workers (always so for "in": "compile")
    means     another regex, which this backend takes it for

A vocabulary made by ``evil_vocabulary`` does it too, when this backend is built for it.
"""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskd import backends
from maskd.backends.base import Backend, Grammar, Matcher
from maskd.grammar import GrammarReport, GrammarSpec
from maskd.vocabulary import Vocabulary

NAME = "evil_backend:create"
_ORDERS = b"\x00evil"


def burn(seconds: float) -> None:
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        hashlib.pbkdf2_hmac("sha256", b"salt", b"pepper", 2000)


def misbehave(orders: dict[str, Any]) -> None:
    if "once" in orders:
        try:
            os.close(os.open(orders["once"], os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
    match orders.get("do"):
        case "hang":
            while True:
                time.sleep(1000)
        case "hold":
            ctypes.PyDLL(None).sleep(100_000)
        case "spin":
            while True:
                pass
        case "burn":
            burn(orders["seconds"])
        case "threads":
            threading.stack_size(1 << 20)
            threads = [
                threading.Thread(target=hashlib.pbkdf2_hmac, args=("sha256", b"", b"", 1 << 30)) for _ in range(4)
            ]
            for thread in threads:
                thread.start()
            threads[0].join()
        case "sleep":
            time.sleep(orders["seconds"])
        case "eat" | "eat_abort":
            eaten = []
            try:
                while True:
                    eaten.append(np.ones(1 << 21, dtype=np.int64))
            except MemoryError:
                if orders["do"] == "eat":
                    raise
                os.abort()
        case "gasp":
            os.write(2, b"memory allocation of 549755813888 bytes failed\n")
            os.abort()
        case "abort":
            os.abort()
        case "segv":
            ctypes.string_at(0)
        case "raise":
            raise RuntimeError("a surprise of the library")


class EvilMatcher:
    def __init__(self, inner: Matcher, orders: dict[str, Any], accepted: int = 0) -> None:
        self._inner, self._orders, self._accepted = inner, orders, accepted
        self._in_jail = Path("/proc/self/comm").read_text() == "maskd-jail\n"

    def _maybe(self, where: str) -> None:
        orders = self._orders
        if orders.get("in") == where and "slow" in orders:
            burn(orders["slow"])
        if (
            orders.get("in") == where
            and orders.get("at", self._accepted) == self._accepted
            and (orders.get("jail") or not self._in_jail)
        ):
            misbehave(orders)

    def fill_bitmask(self, row: NDArray[np.int32]) -> None:
        self._maybe("fill")
        self._inner.fill_bitmask(row)

    def accept(self, token_ids: Sequence[int]) -> int:
        self._maybe("accept")
        accepted = self._inner.accept(token_ids)
        self._accepted += accepted
        return accepted

    def rollback(self, token_count: int) -> None:
        self._maybe("rollback")
        self._inner.rollback(token_count)
        self._accepted -= token_count

    def fork(self) -> EvilMatcher:
        self._maybe("fork")
        return EvilMatcher(self._inner.fork(), self._orders, self._accepted)

    @property
    def is_terminated(self) -> bool:
        return self._inner.is_terminated


class EvilGrammar:
    def __init__(self, inner: Grammar, orders: dict[str, Any]) -> None:
        self._inner, self._orders = inner, orders
        self.report: GrammarReport = dataclasses.replace(inner.report, backend=NAME)
        self.stop_token_ids = inner.stop_token_ids

    def matcher(self) -> EvilMatcher:
        matcher = EvilMatcher(self._inner.matcher(), self._orders)
        matcher._maybe("open")
        return matcher


class EvilBackend:
    name = NAME

    def __init__(self, inner: Backend) -> None:
        self._inner = inner

    def compile(self, spec: GrammarSpec) -> EvilGrammar:
        orders, source = orders_of(spec.source)
        if orders.get("in") == "compile":
            misbehave(orders)
        return EvilGrammar(self._inner.compile(dataclasses.replace(spec, source=source, backend="auto")), orders)

    def fill_bitmasks(self, matchers: Sequence[EvilMatcher], rows: NDArray[np.int32], indices: Sequence[int]) -> None:
        for matcher, index in zip(matchers, indices, strict=True):
            matcher.fill_bitmask(rows[index])


def create(vocabulary: Vocabulary, *, threads: int) -> EvilBackend:
    for token in vocabulary.tokens:
        if token.startswith(_ORDERS):
            misbehave(json.loads(token.removeprefix(_ORDERS)))
    return EvilBackend(backends.load("llguidance")(vocabulary, threads=threads))


def evil(inner: str, **orders: Any) -> GrammarSpec:
    """The spec of a regex that misbehaves as ``orders`` say."""
    if "in_" in orders:
        orders["in"] = orders.pop("in_")
    hexed = json.dumps(orders, sort_keys=True).encode().hex()
    return GrammarSpec("regex", f"(?:evil{hexed}){{0}}{inner}", backend=NAME)


def evil_vocabulary(**orders: Any) -> Vocabulary:
    """A vocabulary of bytes on which this backend does what ``orders`` say; ``salt`` makes it another one."""
    tokens = [bytes([byte]) for byte in range(256)] + [_ORDERS + json.dumps(orders, sort_keys=True).encode(), b"<stop>"]
    return Vocabulary(tokens, 300, (257,), (), "evil")


def orders_of(source: str) -> tuple[dict[str, Any], str]:
    """The orders in a regex, and what this backend takes it for."""
    found = re.match(r"\(\?:evil([0-9a-f]+)\)\{0\}", source)
    if found is None:
        return {}, source
    orders = json.loads(bytes.fromhex(found[1]))
    return orders, orders.get("means", source[found.end() :])
