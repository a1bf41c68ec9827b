"""Segments: anonymous memory with one writer, made here and passed by descriptor.

A segment is a memfd. It has no name, so a client can neither guess nor register one, and none is left behind. It is
allocated at once (``posix_fallocate``), so a full machine is an error here and never a SIGBUS later. It is sealed, so
no process can shrink it. Rows can be written only by the worker, which mapped them before the seal.
Owns: creation, sealing, mapping, and the lifetime of a mapping.
Knows nothing about: what the bytes mean (``layout.py``), sessions, sockets.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os

import numpy as np
from numpy.typing import NDArray

from maskd.errors import CapacityError, ProtocolError
from maskd.shm.headroom import headroom_bytes

__all__ = ["Mapping", "create_segment", "seal"]

SEAL_NO_RESIZE = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW if hasattr(fcntl, "F_SEAL_SHRINK") else 0x0002 | 0x0004
_F_ADD_SEALS, _F_GET_SEALS = 1033, 1034
_F_SEAL_SEAL, _F_SEAL_FUTURE_WRITE = 0x0001, 0x0010
_RESERVE_BYTES = 32 << 20
"""Memory that segments leave free for everything else."""


def create_segment(name: str, size_bytes: int) -> int:
    """Creates an anonymous segment of ``size_bytes`` zero bytes, all of them allocated, and returns its descriptor.

    ``name`` shows in /proc only. The mode is 0600: a descriptor opened for reading must not be reopened for writing.

    Raises:
        CapacityError: not so much memory, or no more descriptors; says how much was needed.
    """
    room = headroom_bytes()
    if room is not None and size_bytes > room - _RESERVE_BYTES:  # the kernel would give it, and kill a process later
        raise _no_memory(size_bytes, f"{max(0, room)} bytes are left, of which {_RESERVE_BYTES} stay free")
    try:
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as error:
        raise CapacityError(
            f"no descriptor for a segment of {size_bytes} bytes: {error.strerror}",
            limit="descriptors",
            bytes=size_bytes,
        ) from None
    try:
        os.fchmod(fd, 0o600)
        os.posix_fallocate(fd, 0, size_bytes)
    except OSError as error:
        os.close(fd)
        raise _no_memory(size_bytes, str(error.strerror)) from None
    return fd


def _no_memory(size_bytes: int, why: str) -> CapacityError:
    return CapacityError(
        f"a segment of {size_bytes} bytes was needed and is not to be had: {why}; "
        "ask for fewer rows, or use the inline transport",
        limit="memory",
        bytes=size_bytes,
    )


def seal(fd: int, *, foreign_writes: bool) -> None:
    """Seals a segment for good: no resizing, no further seals and, unless ``foreign_writes``, no new writable mapping.

    Earlier mappings stay writable (Linux >= 5.1, F_SEAL_FUTURE_WRITE), so the writer maps first and then seals.
    """
    seals = SEAL_NO_RESIZE | _F_SEAL_SEAL | (0 if foreign_writes else _F_SEAL_FUTURE_WRITE)
    fcntl.fcntl(fd, _F_ADD_SEALS, seals)


class Mapping:
    """A mapped segment.

    Args:
        fd: the segment; not closed and not kept.
        size_bytes: its size as the peer announced it; checked against the real size.
        writable: whether to map for writing. A segment that is only read must be sealed against shrinking.

    Attributes:
        base: its address, valid until ``close``.
        bytes: all of it, (size,) uint8.

    Raises:
        ProtocolError: another size, empty, not sealed, or no segment at all. CapacityError: no address space or no
            descriptor left.
    """

    __slots__ = ("_mmap", "base", "bytes", "size", "view")

    def __init__(self, fd: int, size_bytes: int, *, writable: bool) -> None:
        if os.fstat(fd).st_size != size_bytes or not size_bytes:
            raise ProtocolError(f"a segment of {size_bytes} bytes was announced, it has {os.fstat(fd).st_size}")
        try:
            seals = fcntl.fcntl(fd, _F_GET_SEALS)
        except OSError:
            raise ProtocolError("a segment was announced, the descriptor is something else") from None
        if seals & SEAL_NO_RESIZE != SEAL_NO_RESIZE and not writable:
            raise ProtocolError("the segment is not sealed against shrinking; refusing to read it")
        access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        try:
            self._mmap = mmap.mmap(fd, size_bytes, mmap.MAP_SHARED, access)  # duplicates the descriptor
        except OSError as error:
            limit = "descriptors" if error.errno in (errno.EMFILE, errno.ENFILE) else "memory"
            raise CapacityError(
                f"cannot map a segment of {size_bytes} bytes: {error.strerror}", limit=limit, bytes=size_bytes
            ) from None
        self.bytes: NDArray[np.uint8] = np.frombuffer(self._mmap, dtype=np.uint8)
        self.view = memoryview(self._mmap)
        self.base: int = self.bytes.ctypes.data
        self.size = size_bytes

    def int32(self, offset: int, shape: tuple[int, ...]) -> NDArray[np.int32]:
        """Returns an int32 view at ``offset``; it keeps the memory mapped for as long as it lives."""
        count = int(np.prod(shape))
        return self.bytes[offset : offset + 4 * count].view(np.int32).reshape(shape)

    def close(self) -> None:
        """Drops the mapping as soon as no view of it is left; views that a caller still holds stay readable."""
        self.view.release()
        del self.bytes
        with contextlib.suppress(BufferError):
            self._mmap.close()
