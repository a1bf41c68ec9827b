"""One mutant against the tests: a forked process that imports the mutant in place of its file.

Owns: the processes, their limits, and which tests run which line.
Knows nothing about: what a mutant changes, what is said about it.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import resource
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import hypothesis
import pytest

from tests.mutants.mutations import Mutant

__all__ = ["Baseline", "measure", "survives"]

_MEMORY_BYTES = 8 << 30


@dataclass(frozen=True)
class Baseline:
    """What the tests of one file do when nothing is changed.

    Attributes:
        seconds: node id to the processor time of a test, its fixtures included.
        lines: node id to the lines of the file that the test runs.
    """

    root: Path
    seconds: dict[str, float]
    lines: dict[str, list[int]]


def measure(root: Path, file: str, test_files: Sequence[str]) -> Baseline:
    """Runs ``test_files`` twice: for the time, then for the lines of ``file``. Raises RuntimeError if they fail."""
    seconds, modules = _answer_of(lambda: _timed(test_files))
    for name in modules:  # once, for every mutant to come
        importlib.import_module(name)
    gc.freeze()
    lines = _answer_of(lambda: _traced(root, file, test_files))
    return Baseline(root, seconds, lines)


def survives(file: str, mutant: Mutant, baseline: Baseline) -> bool:
    """Returns whether every test that runs the mutant's line passes. A test that no longer ends has noticed."""
    changed = set(range(mutant.line, mutant.last_line + 1))
    wanted = [name for name, lines in baseline.lines.items() if mutant.runs_at_import or changed.intersection(lines)]
    if not wanted:
        return True
    wanted.sort(key=baseline.seconds.__getitem__)

    def trial() -> int:
        resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY_BYTES, _MEMORY_BYTES))
        sys.meta_path.insert(0, _Import(baseline.root / file, file[:-3].replace("/", "."), mutant.source))
        only = _Only({name: baseline.seconds[name] for name in wanted})
        return _pytest(list(dict.fromkeys(name.partition("::")[0] for name in wanted)), only)

    return _fork(trial) == 0


# -- inside a forked process -------------------------------------------------------------------------------------------


def _pytest(test_files: Sequence[str], *plugins: object) -> int:
    """Runs tests, the same examples each time, up to the first failure, which is not made smaller."""
    profile = hypothesis.settings(
        derandomize=True, database=None, deadline=None, phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck), report_multiple_bugs=False,
    )  # fmt: skip
    hypothesis.settings.register_profile("mutants", profile)
    hypothesis.settings.load_profile("mutants")
    # Neither plugins nor the project's configuration: reading them takes longer than most of the tests.
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    bare = [
        "-c",
        os.devnull,
        "--rootdir",
        ".",
        "--noconftest",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:unraisableexception",
    ]
    options = [*bare, "-x", "-q", "-W", "error", "--tb=no", "--assert=plain", "--import-mode=importlib"]
    return int(pytest.main([*options, *test_files], plugins=plugins))


def _timed(test_files: Sequence[str]) -> tuple[dict[str, float], list[str]]:
    clock = _Clock()
    if _pytest(test_files, clock):
        raise RuntimeError
    return clock.seconds, [name for name in sys.modules if "." not in name and _is_of_a_package(name)]


def _traced(root: Path, file: str, test_files: Sequence[str]) -> dict[str, list[int]]:
    tracer = _Tracer(str(root / file))
    _pytest(test_files, tracer)  # slowed down, so tests may fail; the other run says whether they pass
    return {name: sorted(lines) for name, lines in tracer.lines.items()}


def _is_of_a_package(name: str) -> bool:
    spec = getattr(sys.modules[name], "__spec__", None)
    return spec is not None and "site-packages" in str(spec.origin)


class _Clock:
    """Takes the time of every test."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        started = time.process_time()
        result = yield
        self.seconds[item.nodeid] = time.process_time() - started
        return result


class _Tracer:
    """Notes which lines of a file every test runs, on any thread."""

    def __init__(self, file: str) -> None:
        self.lines: dict[str, set[int]] = {}
        self._file = file
        self._current: set[int] = set()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self._current = self.lines[item.nodeid] = set()
        threading.settrace(self._on_call)
        sys.settrace(self._on_call)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            threading.settrace(None)  # type: ignore[arg-type]

    def _on_call(self, frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
        return self._on_line if frame.f_code.co_filename == self._file else None

    def _on_line(self, frame: FrameType, event: str, argument: object) -> Callable[..., Any]:
        self._current.add(frame.f_lineno)
        return self._on_line


class _Only:
    """Runs the given tests, in this order, each for ten times as long as it takes when nothing is changed."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds = seconds
        self._order = {name: at for at, name in enumerate(seconds)}
        _limit(3)  # for what is imported

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted((one for one in items if one.nodeid in self._order), key=lambda one: self._order[one.nodeid])

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        _limit(self._seconds[item.nodeid])


def _limit(seconds: float) -> None:
    """Ends this process if it goes on for much longer: by the processor's clock, or by the wall's if it sleeps."""
    resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time() + 10 * seconds) + 2, resource.RLIM_INFINITY))
    signal.alarm(int(20 * seconds) + 20)


class _Import(MetaPathFinder):
    """Imports one module from other source."""

    def __init__(self, path: Path, name: str, source: bytes) -> None:
        self._path, self._name, self._source = path, name, source

    def find_spec(self, name: str, path: Sequence[str] | None, target: object = None) -> ModuleSpec | None:
        if name != self._name:
            return None
        spec = PathFinder.find_spec(name, path)
        assert spec is not None
        spec.loader = _Loader(name, str(self._path), self._source)
        return spec


class _Loader(SourceFileLoader):
    def __init__(self, name: str, path: str, source: bytes) -> None:
        super().__init__(name, path)
        self._source = source

    def get_code(self, fullname: str) -> CodeType:
        return compile(self._source, self.path, "exec", dont_inherit=True)


# -- processes ---------------------------------------------------------------------------------------------------------


def _answer_of(call: Callable[[], Any]) -> Any:
    """Returns what ``call`` returns in a forked process, which can be written as JSON."""
    with tempfile.TemporaryFile("w+") as file, tempfile.TemporaryFile("w+") as output:

        def answer() -> int:
            json.dump(call(), file)
            file.flush()
            return 0

        code = _fork(answer, output.fileno())
        file.seek(0)
        output.seek(0)
        if code:
            raise RuntimeError(f"without a mutant, the tests fail:\n{output.read()}")
        return json.load(file)


def _fork(work: Callable[[], int], output: int | None = None) -> int:
    """Returns the exit code of ``work`` in a forked process, -N if signal N ended it. Nothing that it started stays."""
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            os.setpgid(0, 0)
            silence = os.open(os.devnull, os.O_RDWR)
            os.dup2(silence, 0)
            for descriptor in (1, 2):
                os.dup2(silence if output is None else output, descriptor)
            code = work()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    try:
        _, status = os.waitpid(pid, 0)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(status)
