"""What zygote and nurseries share: one thread, one channel to the front, and children that are forked and reaped.

Owns: the poll, the end of children. Knows nothing about: what the children do.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
from collections.abc import Callable, Iterable
from typing import NoReturn

import structlog

from maskd.errors import CapacityError, UnavailableError
from maskd.ipc import messages
from maskd.ipc.frames import FrameReader, encode

__all__ = ["FAILED", "ForkingLoop"]

_CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)
"""xgrammar catches SIGSEGV and prints a stack for seconds. Children get the default: a crash ends them at once."""
FAILED = 70
"""Exit code of a child in which our own code failed."""
_log = structlog.get_logger()


class ForkingLoop:
    """Runs until the front closes the control channel.

    Args:
        channel: socket to the front.
        kind: type of the messages that come in.
    """

    def __init__(self, channel: socket.socket, kind: object) -> None:
        self._channel = channel
        self._reader = FrameReader(channel, kind)
        self._poll = select.poll()
        self._poll.register(channel, select.POLLIN)
        self._wake, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        self._poll.register(self._wake, select.POLLIN)

    def run(self) -> None:
        """Serves until the front is gone."""
        with contextlib.suppress(UnavailableError, BrokenPipeError, ConnectionResetError):
            while True:
                for fd, _ in self._poll.poll(1000 * self._wait_seconds()):
                    if fd == self._channel.fileno():
                        for message, fds in self._reader.read():
                            self._handle(message, fds)
                    elif fd == self._wake:
                        with contextlib.suppress(BlockingIOError):
                            os.read(self._wake, 4096)
                        self._reap()
                    else:
                        self._on_readable(fd)
                self._on_time()

    def _handle(self, message: object, fds: list[int]) -> None:
        """Does what the front asks for."""
        raise NotImplementedError

    def _wait_seconds(self) -> float:
        return 60.0

    def _on_time(self) -> None:
        """Called at least after ``_wait_seconds``."""

    def _on_readable(self, fd: int) -> None:
        """Called for descriptors of the subclass."""

    def _waited_for(self) -> set[int]:
        """Returns the children that the subclass reaps itself."""
        return set()

    def _held(self) -> Iterable[int]:
        """Returns the descriptors of the subclass, which children close."""
        return ()

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if found is None or found.si_pid in self._waited_for():
                    return
                _, status, usage = os.wait4(found.si_pid, 0)
                number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
                self._send(messages.Exited(found.si_pid, number, usage.ru_maxrss * 1024))

    def _fork_with(self, request: int, fds: list[int], body: Callable[[], None]) -> None:
        """Forks a child that runs ``body``, answers ``request``, and closes ``fds``, which the child has too."""
        try:
            if -1 in fds:
                failure = CapacityError("no descriptor for another process", limit="descriptors")
                self._answer(request, messages.failure_of(failure))
                return
            pid = os.fork()
            if pid == 0:
                self._run_forked(body)
            self._answer(request, messages.Spawned(pid))
        except OSError as error:  # no memory or no process left; the other children go on
            self._answer(request, self._no_room(error))
        finally:
            for fd in {*fds} - {-1}:
                os.close(fd)

    @staticmethod
    def _no_room(error: OSError) -> messages.Failure:
        return messages.failure_of(CapacityError(f"no room for another process: {error.strerror}", limit="processes"))

    def _run_forked(self, body: Callable[[], None]) -> NoReturn:
        """Runs ``body`` in the child that was just forked."""
        status = FAILED
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, *_CRASHES):
                signal.signal(number, signal.SIG_DFL)
            for fd in (self._channel.fileno(), self._wake, self._wake_write, *self._held()):
                os.close(fd)
            body()
            status = 0
        except BaseException:
            _log.exception("a child failed")
        finally:
            os._exit(status)

    def _answer(self, request: int, result: messages.AnyResult) -> None:
        self._send(messages.Answered(request, result))

    def _send(self, message: messages.ToFront) -> None:
        self._channel.sendall(encode(message))
