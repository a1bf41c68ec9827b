"""The worker's threads for long work: whatever a job raises is the answer of that job, and the thread does the next
one."""

from __future__ import annotations

import select
from typing import Any

import pytest
from structlog.testing import capture_logs

from maskd.errors import BackendError, GrammarError
from maskd.worker.pool import WorkPool


class PanicError(BaseException):
    """What a panic of Rust is in Python: no ``Exception``."""


def outcome(pool: WorkPool, job: Any) -> Any:
    """Runs ``job`` and returns what came of it."""
    came: list[Any] = []
    pool.submit(job, lambda result, _: came.append(result))
    assert select.select([pool.done_fd], [], [], 60)[0]
    pool.finish()
    return came[0]


@pytest.mark.parametrize(
    "error", [GrammarError("wrong"), RuntimeError("x"), MemoryError(), SystemExit(1), PanicError("x")], ids=repr
)
def test_job_when_it_raises_anything_then_that_is_its_answer_and_the_thread_lives(error: BaseException) -> None:
    """One thread, so that a thread that died would be missed."""

    def job() -> None:
        raise error

    pool = WorkPool("compile", 1)
    with capture_logs():
        answer = outcome(pool, job)
    assert answer is error if isinstance(error, GrammarError) else isinstance(answer, BackendError)
    assert outcome(pool, lambda: 7) == 7
