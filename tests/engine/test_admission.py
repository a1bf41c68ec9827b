"""Requests on their way into the batch: which of them wait for which."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

from engine_adapter.decoding.admission import Admission
from engine_adapter.decoding.request import Generation
from maskd.grammar import GrammarSpec

KNOWN, ENDLESS = GrammarSpec("regex", "known"), GrammarSpec("regex", "endless")


class Masker:
    """Compiles ``ENDLESS`` until it is told to end."""

    def __init__(self) -> None:
        self.end = threading.Event()

    def knows(self, spec: GrammarSpec) -> bool:
        return spec == KNOWN

    def open(self, spec: GrammarSpec) -> int:
        assert spec == KNOWN or self.end.wait(60)
        return 1

    def report(self, handle: int) -> None:
        """Nothing to say."""


def generation(spec: GrammarSpec | None) -> Generation:
    request: Any = SimpleNamespace(grammar=spec, logprobs=None)
    return Generation(request)


def test_known_grammar_when_others_compile_without_end_then_it_does_not_wait_for_them() -> None:
    """Nor does a request without a grammar."""
    masker: Any = Masker()
    admission = Admission(masker, lambda *_: None)
    try:
        for _ in range(8):
            admission.add(generation(ENDLESS))
        for spec in (KNOWN, None):
            wanted = generation(spec)
            admission.add(wanted)
            admission.wait(60)
            taken = admission.take()
            assert taken is not None and taken.generation is wanted
    finally:
        masker.end.set()
        admission.close()
