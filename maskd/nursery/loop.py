"""A nursery: builds one vocabulary, then forks workers and compile children for it, and reaps them.

The process has one thread and never computes a mask, so forking it is safe. A fork has libraries and tokenizers at
once, shared copy-on-write. A vocabulary that crashes its libraries does so here, and harms no other vocabulary.
Owns: the children. Knows nothing about: gRPC, sessions, why a worker died, other vocabularies.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import mmap
import os
import re
import resource
import select
import signal
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import msgspec
import structlog

from maskd.backends.auto import AutoBackend
from maskd.backends.base import Backend, BackendFactory
from maskd.errors import (
    BackendError,
    CapacityError,
    GrammarTimeoutError,
    GrammarUnsupportedError,
    MaskdError,
    VocabularyError,
)
from maskd.ipc import messages
from maskd.nursery.forking import FAILED, ForkingLoop
from maskd.nursery.jail import BASELINE_BYTES, is_out_of_memory, memory_bytes, out_of_memory, run_child
from maskd.observability.logs import configure_logging
from maskd.tokenizer_files import validate_vocabulary
from maskd.vocabulary import Vocabulary
from maskd.worker.process import run_worker

__all__ = ["run_nursery"]

_LAST_WORDS_BYTES = 4096
_OUT_OF_MEMORY = re.compile(
    rb"memory allocation of \d+ bytes failed|bad_alloc|cannot allocate memory|out of memory|MemoryError", re.IGNORECASE
)
"""What Rust, C++, glibc and Python say before they abort for lack of memory."""
_PR_SET_NAME = 15
_log = structlog.get_logger()
_Verdict: msgspec.msgpack.Decoder[messages.Compiled | messages.Failure] = msgspec.msgpack.Decoder(
    messages.Compiled | messages.Failure
)


def run_nursery(
    channel_fd: int, number: int, factories: Mapping[str, BackendFactory], native_threads: int, log_level: str
) -> None:
    """Serves the front until it closes the channel, or until the vocabulary turns out to be unusable.

    Called in a fresh fork of the zygote; outlives it.
    """
    ctypes.CDLL(None).prctl(_PR_SET_NAME, b"maskd-nursery")
    configure_logging(log_level, process=f"nursery-{number}")
    _Nursery(socket.socket(fileno=channel_fd), factories, native_threads).run()


@dataclass
class _Job:
    """A compile under way."""

    request: int
    pid: int
    deadline: float
    limits: messages.CompileLimits
    out: int
    words: int
    verdict: bytearray = field(default_factory=bytearray)
    last_words: bytearray = field(default_factory=bytearray)
    killed: bool = False


class _Nursery(ForkingLoop):
    def __init__(self, channel: socket.socket, factories: Mapping[str, BackendFactory], native_threads: int) -> None:
        super().__init__(channel, messages.ToNursery)
        self._factories = factories
        self._native_threads = native_threads
        self._vocabulary: Vocabulary
        self._named: dict[str, Backend] = {}
        self._jobs: dict[int, _Job] = {}  # each job under both of its pipes

    def _wait_seconds(self) -> float:
        now = time.monotonic()
        return max(0.0, min((job.deadline - now for job in self._jobs.values() if not job.killed), default=60.0))

    def _on_time(self) -> None:
        """Kills the compiles whose deadline has passed."""
        now = time.monotonic()
        for job in self._jobs.values():
            if now >= job.deadline and not job.killed:
                job.killed = True
                os.kill(job.pid, signal.SIGKILL)  # its pipe ends, and ``_finish`` answers

    def _on_readable(self, fd: int) -> None:
        if fd not in self._jobs:
            return
        job = self._jobs[fd]
        if fd == job.words:
            if not self._listen(job):
                self._poll.unregister(fd)
        elif data := os.read(fd, 1 << 20):
            job.verdict += data
        else:
            self._finish(job)

    def _waited_for(self) -> set[int]:
        return {job.pid for job in self._jobs.values()}  # ``_finish`` needs their status

    def _held(self) -> Iterable[int]:
        return self._jobs

    # -- messages --------------------------------------------------------------------------------------------------

    def _handle(self, message: object, fds: list[int]) -> None:
        match message:
            case messages.LoadVocabulary():
                try:
                    self._answer(message.request, self._load(message, *fds))
                except MaskdError as error:
                    self._answer(message.request, messages.failure_of(error))
                    os._exit(FAILED)
            case messages.SpawnWorker():
                self._fork_with(
                    message.request, fds, lambda: run_worker(fds[0], fds[1], message, self._vocabulary, self._named)
                )
            case messages.Compile():
                try:
                    self._compile(message)
                except MaskdError as error:
                    self._answer(message.request, messages.failure_of(error))
                except OSError as error:  # no descriptor, memory or process left; the other children go on
                    self._answer(message.request, self._no_room(error))
            case messages.CancelCompile():
                for job in self._jobs.values():
                    if job.request == message.compile:
                        job.deadline = 0.0

    def _load(self, message: messages.LoadVocabulary, fd: int) -> messages.Loaded:
        """Builds the vocabulary. Raises CapacityError, VocabularyError: the nursery cannot be used."""
        if fd < 0:
            raise CapacityError("no descriptor for the vocabulary", limit="descriptors")
        step = "the reader"
        try:
            with _limits(message), open(fd, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
                self._vocabulary = Vocabulary.from_bytes(bytes(data), message.name)
                _ = self._vocabulary.fingerprint  # computed once, not in every child
                warnings = validate_vocabulary(self._vocabulary)  # would stop the front for its time
                for step, create in self._factories.items():
                    self._send(messages.Building(step, memory_bytes()[1]))
                    self._named[step] = create(self._vocabulary, threads=self._native_threads)
        except MaskdError:
            raise
        except BaseException as error:  # a panic of Rust is no Exception
            if is_out_of_memory(error):
                raise VocabularyError(
                    f"{step} needed more than build_bytes = {message.bytes} for the vocabulary; "
                    "raise the limit, or use fewer tokens",
                    limit="build_bytes",
                    value=message.bytes,
                    backend=step,
                ) from None
            _log.error("a backend cannot use the vocabulary", backend=step, error=type(error).__name__)
            raise VocabularyError(f"{step} cannot use the vocabulary: {type(error).__name__}", backend=step) from None
        self._named["auto"] = AutoBackend(list(self._named.values()))
        gc.freeze()  # what is loaded stays, and stays shared
        return messages.Loaded(warnings)

    def _compile(self, message: messages.Compile) -> None:
        """Begins a compile, which ``_finish`` answers. Raises GrammarUnsupportedError: no such backend. OSError."""
        backend = self._named.get(message.spec.backend)
        if backend is None:
            names = ", ".join(self._named)
            raise GrammarUnsupportedError(
                f"no backend {message.spec.backend!r} here; give one of {names}", backends=names
            )
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
            out, out_write = self._pipe(ours, theirs)
            words, words_write = self._pipe(ours, theirs)
            pid = os.fork()
            if pid == 0:
                ours.close()
                self._run_forked(
                    lambda: run_child(
                        message.spec,
                        message.limits,
                        out=out_write,
                        words=words_write,
                        backend=backend,
                        named=self._named,
                        vocabulary=self._vocabulary,
                    )
                )
            ours.pop_all()
        job = _Job(message.request, pid, time.monotonic() + message.limits.seconds, message.limits, out, words)
        for fd in (out, words):
            self._jobs[fd] = job
            self._poll.register(fd, select.POLLIN)

    @staticmethod
    def _pipe(ours: contextlib.ExitStack, theirs: contextlib.ExitStack) -> tuple[int, int]:
        """Makes a pipe from a child. Returns the end that the nursery reads, which does not block, and the other."""
        read, write = os.pipe2(os.O_CLOEXEC)
        ours.callback(os.close, read)
        theirs.callback(os.close, write)
        os.set_blocking(read, False)
        return read, write

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
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == FAILED:  # our own code failed there, and has said how
            with contextlib.suppress(OSError):
                os.write(2, job.last_words)
        try:
            self._answer(job.request, self._verdict(job, status, usage))
        except MaskdError as error:
            self._answer(job.request, messages.failure_of(error))
        self._reap()

    @staticmethod
    def _verdict(
        job: _Job, status: int, usage: resource.struct_rusage
    ) -> messages.Compiled | messages.Crashed | messages.Failure:
        """Returns how a child ended. A crash is the grammar's fault, a lack of memory may be the limit's.

        An allocation that fails ends a library in many ways. The child reports an exception itself. The library may
        abort, or the C library exit with 127, after a line on stderr. Or it crashes without a word. So a crash counts
        as a lack of memory in two cases: the last words say so, or the child grew by more than half of
        ``compile_bytes``. This can be wrong both ways. A grammar that crashes after it took so much memory is not
        quarantined, and costs a child each time. A grammar that crashes silently in its first large allocation is
        taken for broken.

        Raises:
            GrammarTimeoutError, GrammarTooLargeError: a limit was passed. CapacityError: killed from outside.
            BackendError: our own code failed in the child.
        """
        if job.killed or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU):
            seconds = job.limits.seconds
            raise GrammarTimeoutError(
                f"the compile did not end within compile_seconds = {seconds}", limit="compile_seconds", value=seconds
            )
        if status == 0:
            with contextlib.suppress(msgspec.DecodeError):
                return _Verdict.decode(job.verdict[BASELINE_BYTES:])
        grown = usage.ru_maxrss * 1024 - int.from_bytes(job.verdict[:BASELINE_BYTES], "little")
        if _OUT_OF_MEMORY.search(job.last_words) or (
            len(job.verdict) >= BASELINE_BYTES and grown > job.limits.bytes / 2
        ):
            raise out_of_memory(job.limits.bytes)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            raise CapacityError(
                "the compile was killed from outside, most likely by the kernel for lack of memory; try again later",
                limit="memory",
            )
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == FAILED:
            raise BackendError("a compile child of the daemon failed before its verdict; its log says how")
        how = (
            f"signal {os.WTERMSIG(status)}"
            if os.WIFSIGNALED(status)
            else f"exit code {os.waitstatus_to_exitcode(status)}"
        )
        return messages.Crashed(f"the compiler died of {how}")


@contextlib.contextmanager
def _limits(message: messages.LoadVocabulary) -> Iterator[None]:
    """Bounds time and memory of this process while it builds, and lifts both bounds after, for workers inherit them.

    The kernel enforces them, also while a library holds the interpreter. SIGALRM ends the process at the deadline, and
    the front says why.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    bound = memory_bytes()[0] + message.bytes
    resource.setrlimit(resource.RLIMIT_AS, (bound if hard == resource.RLIM_INFINITY else min(bound, hard), hard))
    signal.setitimer(signal.ITIMER_REAL, message.seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
