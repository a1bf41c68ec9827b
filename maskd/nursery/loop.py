"""The nursery's loop: load vocabularies, fork workers, fork compile children and bury them in time.

The process stays single-threaded and never computes a mask, so forking it is safe, and a fork is worth having: libraries
and tokenizers are there, shared copy-on-write.
Owns: the children. Knows nothing about: gRPC, sessions, why a worker died.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import select
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
import structlog

from maskd import backends, control
from maskd.backends.auto import AutoBackend
from maskd.backends.base import Backend
from maskd.errors import (
    BackendError,
    CapacityError,
    GrammarTimeoutError,
    GrammarUnsupportedError,
    MaskdError,
    NotFoundError,
    UnavailableError,
)
from maskd.nursery.jail import BASELINE_BYTES, out_of_memory, run_child
from maskd.vocabulary import Vocabulary
from maskd.worker.process import run_worker

__all__ = ["NurseryLoop"]

_CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)
"""xgrammar's runtime catches SIGSEGV to print a stack, which takes seconds in which everybody waits: a crash is to end at once."""
_FAILED = 70
_LAST_WORDS_BYTES = 4096
_OUT_OF_MEMORY = re.compile(
    rb"memory allocation of \d+ bytes failed|bad_alloc|cannot allocate memory|out of memory|MemoryError", re.IGNORECASE
)
"""What Rust, C++, glibc and Python say before they abort for lack of memory."""
_log = structlog.get_logger()
_Verdict: msgspec.msgpack.Decoder[control.Compiled | control.Failure] = msgspec.msgpack.Decoder(control.Compiled | control.Failure)


@dataclass
class _Job:
    """A compile under way."""

    request: int
    pid: int
    deadline: float
    limits: control.CompileLimits
    out: int
    words: int
    verdict: bytearray = field(default_factory=bytearray)
    last_words: bytearray = field(default_factory=bytearray)
    killed: bool = False


class NurseryLoop:
    """Runs until the front closes the control channel; its children die with it.

    Args:
        channel: socket to the front.
        backend_names: what ``auto`` tries, in this order.
        native_threads: threads that a worker's library may use for a batch.
    """

    def __init__(self, channel: socket.socket, *, backend_names: Sequence[str], native_threads: int) -> None:
        self._channel = channel
        self._reader = control.FrameReader(channel, control.ToNursery)
        self._factories = {name: backends.load(name) for name in backend_names}
        self._native_threads = native_threads
        self._loaded: dict[bytes, tuple[Vocabulary, Mapping[str, Backend]]] = {}
        self._jobs: dict[int, _Job] = {}  # by each of their two pipes
        self._poll = select.poll()
        self._poll.register(channel, select.POLLIN)
        self._wake, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        self._poll.register(self._wake, select.POLLIN)

    def run(self) -> None:
        """Serves until the front is gone."""
        self._send(control.Ready(os.getpid(), tuple(self._factories)))
        with contextlib.suppress(UnavailableError, BrokenPipeError, ConnectionResetError):
            while True:
                now = time.monotonic()
                wait = min((job.deadline - now for job in self._jobs.values() if not job.killed), default=60.0)
                for fd, _ in self._poll.poll(max(0.0, wait * 1000)):
                    self._on_readable(fd)
                self._kill_late()

    def _on_readable(self, fd: int) -> None:
        if fd == self._channel.fileno():
            for message, fds in self._reader.read():
                self._handle(message, fds)
        elif fd == self._wake:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake, 4096)
            self._reap()
        elif fd in self._jobs:
            job = self._jobs[fd]
            if fd == job.words:
                if not self._listen(job):
                    self._poll.unregister(fd)
            elif data := os.read(fd, 1 << 20):
                job.verdict += data
            else:
                self._finish(job)

    def _kill_late(self) -> None:
        now = time.monotonic()
        for job in self._jobs.values():
            if now >= job.deadline and not job.killed:
                job.killed = True
                os.kill(job.pid, signal.SIGKILL)  # its pipe ends, and ``_finish`` answers

    def _reap(self) -> None:
        """Buries workers; compile children are buried by ``_finish``, which needs their status."""
        jobs = {job.pid for job in self._jobs.values()}
        with contextlib.suppress(ChildProcessError):
            while True:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if found is None or found.si_pid in jobs:
                    return
                os.waitpid(found.si_pid, 0)
                self._send(control.WorkerExited(found.si_pid, found.si_status if found.si_code != os.CLD_EXITED else 0))

    # -- messages --------------------------------------------------------------------------------------------------

    def _handle(self, message: object, fds: list[int]) -> None:
        match message:
            case control.LoadVocabulary():
                self._reply(message.request, self._load(message))
            case control.SpawnWorker() | control.Compile():
                try:
                    if isinstance(message, control.Compile):
                        self._compile(message)
                    else:
                        self._spawn(message, *fds)
                except OSError as error:  # no descriptor, no memory or no process left: others go on
                    failure = CapacityError(f"no room for another process: {error.strerror}", limit="processes")
                    self._reply(message.request, control.failure_of(failure))
            case control.CancelCompile():
                for job in self._jobs.values():
                    if job.request == message.compile:
                        job.deadline = 0.0

    def _load(self, message: control.LoadVocabulary) -> control.Failure | None:
        try:
            vocabulary = Vocabulary.from_bytes(message.data, message.name)
            named: dict[str, Backend] = {name: create(vocabulary, threads=self._native_threads) for name, create in self._factories.items()}
        except MaskdError as error:
            return control.failure_of(error)
        except Exception as error:
            _log.exception("a backend cannot use the vocabulary")
            return control.failure_of(BackendError(f"a backend cannot use the vocabulary: {type(error).__name__}"))
        self._loaded[vocabulary.fingerprint] = (vocabulary, {**named, "auto": AutoBackend(list(named.values()))})
        return None

    def _spawn(self, message: control.SpawnWorker, channel_fd: int, marker_fd: int) -> None:
        if min(channel_fd, marker_fd) < 0:
            for fd in {channel_fd, marker_fd} - {-1}:
                os.close(fd)
            self._reply(message.request, control.failure_of(CapacityError("no descriptor for a worker", limit="descriptors")))
            return
        try:
            pid = os.fork()
            if pid == 0:
                self._run_forked(lambda: run_worker(channel_fd, marker_fd, message, self._loaded), [channel_fd, marker_fd])
        finally:
            os.close(channel_fd)
            os.close(marker_fd)
        self._reply(message.request, control.Spawned(pid))

    def _compile(self, message: control.Compile) -> None:
        loaded = self._loaded.get(message.fingerprint)
        if loaded is None:
            self._reply(message.request, control.failure_of(NotFoundError("the vocabulary is not loaded", kind="vocabulary")))
            return
        vocabulary, named = loaded
        backend = named.get(message.spec.backend)
        if backend is None:
            names = ", ".join(named)
            self._reply(
                message.request,
                control.failure_of(
                    GrammarUnsupportedError(f"no backend {message.spec.backend!r} here; give one of {names}", backends=names)
                ),
            )
            return
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
            out, out_write = self._pipe(ours, theirs)
            words, words_write = self._pipe(ours, theirs)
            pid = os.fork()
            if pid == 0:
                ends = (out_write, words_write)
                self._run_forked(lambda: run_child(*ends, backend, named, vocabulary, message.spec, message.limits), [*ends])
            ours.pop_all()
        job = _Job(message.request, pid, time.monotonic() + message.limits.seconds, message.limits, out, words)
        for fd in (out, words):
            self._jobs[fd] = job
            self._poll.register(fd, select.POLLIN)

    @staticmethod
    def _pipe(ours: contextlib.ExitStack, theirs: contextlib.ExitStack) -> tuple[int, int]:
        """Makes a pipe from a child: the end that we read, which does not block, and the end that it writes."""
        read, write = os.pipe2(os.O_CLOEXEC)
        ours.callback(os.close, read)
        theirs.callback(os.close, write)
        os.set_blocking(read, False)
        return read, write

    def _run_forked(self, body: object, keep: list[int]) -> None:
        """Runs ``body`` in the child that was just forked; never returns."""
        status = _FAILED
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, *_CRASHES):
                signal.signal(number, signal.SIG_DFL)
            for fd in (self._channel.fileno(), self._wake, *self._jobs):
                if fd not in keep:
                    os.close(fd)
            body()  # type: ignore[operator]
            status = 0
        except BaseException:
            _log.exception("a child failed")
        finally:
            os._exit(status)

    @staticmethod
    def _listen(job: _Job) -> bool:
        """Reads what a child prints to its stderr; returns whether there may be more."""
        try:
            data = os.read(job.words, 1 << 16)
        except BlockingIOError:
            return True
        job.last_words += data
        del job.last_words[:-_LAST_WORDS_BYTES]
        return bool(data)

    def _finish(self, job: _Job) -> None:
        _, status, usage = os.wait4(job.pid, 0)
        self._listen(job)
        for fd in (job.out, job.words):
            del self._jobs[fd]
            with contextlib.suppress(KeyError):  # it may have ended before
                self._poll.unregister(fd)
            os.close(fd)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == _FAILED:  # our own code failed there, and has said how
            with contextlib.suppress(OSError):
                os.write(2, job.last_words)
        self._reply(job.request, self._verdict(job, status, usage))
        self._reap()

    @staticmethod
    def _verdict(job: _Job, status: int, usage: resource.struct_rusage) -> control.Compiled | control.Failure:
        """Says how a child ended. A crash is the grammar's fault, a lack of memory may be the limit's.

        An allocation that fails ends a library in many ways: an exception, which the child reports itself; abort, or exit code
        127 from the C library, after a line on stderr; or a crash without a word. So a crash counts as a lack of memory if the
        last words say so, or if the child had grown by more than half of ``compile_bytes``. That can be wrong both ways: a
        grammar that crashes after it took so much memory is not quarantined and costs a child each time; one that crashes
        in its first large allocation, silently, is taken for broken.
        """
        if job.killed or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU):
            seconds = job.limits.seconds
            return control.failure_of(
                GrammarTimeoutError(f"the compile did not end within compile_seconds = {seconds}", limit="compile_seconds", value=seconds)
            )
        if status == 0:
            with contextlib.suppress(msgspec.DecodeError):
                return _Verdict.decode(job.verdict[BASELINE_BYTES:])
        grown = usage.ru_maxrss * 1024 - int.from_bytes(job.verdict[:BASELINE_BYTES], "little")
        if _OUT_OF_MEMORY.search(job.last_words) or (len(job.verdict) >= BASELINE_BYTES and grown > job.limits.bytes / 2):
            return control.failure_of(out_of_memory(job.limits.bytes))
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            return control.failure_of(CapacityError(
                "the compile was killed from outside, most likely by the kernel for lack of memory; try again later", limit="memory"
            ))  # fmt: skip
        how = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit code {os.waitstatus_to_exitcode(status)}"
        return control.failure_of(BackendError(f"the compiler died of {how}", crashed=True))

    def _reply(self, request: int, result: control.Compiled | control.Failure | control.Spawned | None) -> None:
        self._send(control.Reply(request, result))

    def _send(self, message: control.ToFront) -> None:
        self._channel.sendall(control.encode(message))
