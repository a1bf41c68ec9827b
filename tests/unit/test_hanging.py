"""How long a call is stuck, by what the kernel says about the threads of its process."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from maskd.front import hanging
from maskd.front.hanging import Thread, is_stopped, look, stuck_seconds

PASSED = 0.05
MAIN, CALL, OTHER = 1, 2, 3


def judged(call: tuple[str, float], *others: tuple[str, float], passed: float = PASSED) -> float:
    """The judgement over threads of (state, processor time since the last look)."""
    threads = dict(zip((CALL, OTHER, MAIN), (call, *others), strict=False))
    before = {number: Thread("S", 7.0) for number in threads}
    now = {number: Thread(state, 7.0 + had) for number, (state, had) in threads.items()}
    return stuck_seconds(passed, before, now, CALL)


@pytest.mark.parametrize(
    ("call", "others", "counts"),
    [
        (("R", 0.05), [("S", 0.0)], 0.05),  # a busy loop on a core of its own
        (("R", 0.005), [("S", 0.0)], 0.005),  # on a tenth of a core
        (("R", 0.0), [("R", 0.05)], 0.0),  # it waits for the core, a neighbour has it
        (("D", 0.001), [("S", 0.0)], 0.001),  # it waits for a page from a disk
        (("R", 3.0), [("S", 0.0)], PASSED),  # the front was frozen, and knows of less
        (("S", 0.0), [("S", 0.0)], PASSED),  # all asleep, the interpreter held or not: it is not the machine
        (("S", 0.0), [("R", 0.03)], 0.03),  # another thread has the interpreter, and some of a core
        (("S", 0.0), [("R", 0.0)], 0.0),  # another thread has the interpreter, and no core
        (("S", 0.0), [("R", 0.05), ("R", 0.05)], PASSED),  # no more than what passed
        (("S", 0.0), [("D", 0.0)], 0.0),  # another thread has the interpreter, and waits for a page from a disk
        (("T", 0.0), [("T", 0.0)], 0.0),  # SIGSTOP
        (("t", 0.0), [("S", 0.0)], 0.0),  # a debugger
    ],
)
def test_call_when_judged_then_only_time_that_it_had_counts(
    call: tuple[str, float], others: list[tuple[str, float]], counts: float
) -> None:
    assert judged(call, *others) == pytest.approx(counts)


def test_call_when_its_thread_is_unknown_then_it_is_taken_for_asleep() -> None:
    """A mark without a thread, or a thread that has ended, is never a way not to be judged."""
    assert stuck_seconds(PASSED, {}, {MAIN: Thread("S", 1.0)}, CALL) == PASSED
    assert stuck_seconds(PASSED, {}, {}, CALL) == PASSED


def test_thread_when_it_is_new_then_its_time_counts_from_its_start() -> None:
    assert (
        stuck_seconds(PASSED, {MAIN: Thread("S", 1.0)}, {MAIN: Thread("S", 1.0), CALL: Thread("R", 0.02)}, CALL) == 0.02
    )


def test_look_when_this_process_works_and_sleeps_then_time_and_state_are_its_own() -> None:
    before = look(os.getpid())[os.getpid()]
    hashlib.pbkdf2_hmac("sha256", b"", b"", 100_000)
    after = look(os.getpid())[os.getpid()]
    assert before.state == after.state == "R" and after.seconds > before.seconds
    assert not is_stopped(look(os.getpid()))


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="the kernel keeps no nanoseconds")
def test_look_when_the_kernel_keeps_nanoseconds_then_they_are_the_threads_own() -> None:
    """Not those of another thread, nor those for which it waited for a core. The kernel may be late by a tick."""
    found: list[tuple[float, float]] = []

    def work() -> None:
        while time.thread_time() < 0.2:
            pass
        found.append((look(os.getpid())[threading.get_native_id()].seconds, time.thread_time()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert 0.15 <= found[0][0] <= found[0][1]


def test_look_when_the_kernel_keeps_no_nanoseconds_then_ticks_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those in user code and those in the kernel; the name of a process may look like fields."""
    monkeypatch.setattr(hanging, "Path", lambda path: tmp_path / path.lstrip("/"))
    for thread, name in ((7, "python"), (8, "a) b (c)")):
        task = tmp_path / f"proc/7/task/{thread}"
        task.mkdir(parents=True)
        fields = ["S", *map(str, range(4, 14)), "300", str(thread), *map(str, range(16, 53))]  # from field 3 on
        (task / "stat").write_text(f"{thread} ({name}) {' '.join(fields)}\n")
    ticks = os.sysconf("SC_CLK_TCK")
    assert look(7) == {
        7: Thread("S", pytest.approx(307 / ticks)),  # type: ignore[arg-type]
        8: Thread("S", pytest.approx(308 / ticks)),  # type: ignore[arg-type]
    }


def test_look_when_a_process_is_stopped_and_then_gone_then_it_says_so() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    try:
        os.kill(child.pid, signal.SIGSTOP)
        deadline = time.monotonic() + 60
        while not is_stopped(look(child.pid)):
            assert time.monotonic() < deadline
        assert stuck_seconds(PASSED, {}, look(child.pid), child.pid) == 0.0
    finally:
        child.kill()
        child.wait()
    assert look(child.pid) == {} and not is_stopped({})
