"""Segments: one writer, no resizing, and never memory that is not there."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from maskd.errors import CapacityError, ProtocolError
from maskd.shm.segments import Mapping, create_segment, seal

SIZE = 2 * mmap.PAGESIZE

FOREIGN = """
import errno, fcntl, ctypes, mmap, os, sys
fd, libc = int(sys.argv[1]), ctypes.CDLL(None, use_errno=True)
def outcome(call):
    try:
        call()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"
def punch(fd):
    if libc.fallocate(fd, 3, ctypes.c_long(0), ctypes.c_long(4096)):
        raise OSError(ctypes.get_errno(), "punch")
def write_map(fd):
    mmap.mmap(fd, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE).close()
def upgrade(fd):
    with mmap.mmap(fd, 4096, mmap.MAP_SHARED, mmap.PROT_READ) as m:
        address = (ctypes.c_char * 4096).from_buffer_copy(m)
    libc.mmap.restype = ctypes.c_void_p
    at = libc.mmap(None, ctypes.c_size_t(4096), 1, 1, fd, ctypes.c_long(0))
    if libc.mprotect(ctypes.c_void_p(at), ctypes.c_size_t(4096), 3):
        raise OSError(ctypes.get_errno(), "mprotect")
for name, fd in (("fd", fd), ("reopened", os.open(f"/proc/self/fd/{fd}", os.O_RDWR))):
    print(name, "shrink", outcome(lambda: os.ftruncate(fd, 4096)))
    print(name, "grow", outcome(lambda: os.ftruncate(fd, 1 << 20)))
    print(name, "punch", outcome(lambda: punch(fd)))
    print(name, "pwrite", outcome(lambda: os.pwrite(fd, b"x", 0)))
    print(name, "map", outcome(lambda: write_map(fd)))
    print(name, "mprotect", outcome(lambda: upgrade(fd)))
    print(name, "unseal", outcome(lambda: fcntl.fcntl(fd, 1033, 0x8)))
"""


@pytest.fixture
def fd() -> Iterator[int]:
    number = create_segment("maskd-test", SIZE)
    yield number
    os.close(number)


def descriptors() -> list[str]:
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())


def outcomes(fd: int) -> dict[str, set[str]]:
    """What a foreign process may do with the descriptor: operation -> outcomes over the fd and a reopened one."""
    out = subprocess.run(
        [sys.executable, "-c", FOREIGN, str(fd)], pass_fds=[fd], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    found: dict[str, set[str]] = {}
    for line in out.splitlines():
        _, operation, outcome = line.split()
        found.setdefault(operation, set()).add(outcome)
    return found


def test_rows_segment_when_a_foreign_process_tampers_then_the_kernel_refuses_everything(fd: int) -> None:
    """Sealed for one writer: no resizing, no hole, no write, no writable mapping, no new seal; reopened or not."""
    mapping = Mapping(fd, SIZE, writable=True)
    seal(fd, foreign_writes=False)
    found = outcomes(fd)
    assert found.pop("mprotect") <= {"EPERM", "EACCES"}
    assert found == {name: {"EPERM"} for name in ("shrink", "grow", "punch", "pwrite", "map", "unseal")}
    mapping.bytes[0] = 7
    assert mapping.bytes[0] == 7, "the writer that mapped first still writes"
    mapping.close()


def test_steps_segment_when_a_foreign_process_tampers_then_it_may_write_but_not_resize(fd: int) -> None:
    """The engine writes its steps, and cannot take the memory away from under the worker."""
    mapping = Mapping(fd, SIZE, writable=True)
    seal(fd, foreign_writes=True)
    found = outcomes(fd)
    assert found["shrink"] == found["grow"] == found["unseal"] == {"EPERM"}
    assert found["map"] == found["pwrite"] == {"done"}
    assert mapping.bytes[0] == ord("x") or found["punch"] == {"done"}
    mapping.close()


def test_segment_when_created_then_it_is_private_zeroed_allocated_and_nameless(fd: int) -> None:
    """Mode 0600, every block there, close-on-exec, and no file anywhere."""
    stat = os.fstat(fd)
    assert (stat.st_mode & 0o777, stat.st_size, stat.st_nlink) == (0o600, SIZE, 0)
    assert stat.st_blocks * 512 >= SIZE
    assert not os.get_inheritable(fd)
    assert os.pread(fd, SIZE, 0) == bytes(SIZE)
    assert "maskd-test" in str(Path(f"/proc/self/fd/{fd}").readlink())
    assert not Path("/dev/shm/maskd-test").exists()


def test_mapping_when_the_segment_can_shrink_then_it_is_not_read(fd: int) -> None:
    """A reader of an unsealed segment could die of SIGBUS; it refuses."""
    with pytest.raises(ProtocolError, match="not sealed"):
        Mapping(fd, SIZE, writable=False)


@pytest.mark.parametrize("size", [SIZE - 1, SIZE + mmap.PAGESIZE, 1 << 40])
def test_mapping_when_the_announced_size_is_wrong_then_it_is_refused(fd: int, size: int) -> None:
    """The size is the kernel's, not the peer's."""
    seal(fd, foreign_writes=True)
    with pytest.raises(ProtocolError, match="was announced"):
        Mapping(fd, size, writable=False)


def test_mapping_when_closed_with_a_view_left_then_the_view_stays_readable(fd: int) -> None:
    """Rows that an engine still holds never become a segmentation fault."""
    mapping = Mapping(fd, SIZE, writable=True)
    view = mapping.int32(4096, (2, 3))
    view[:] = 5
    mapping.close()
    np.testing.assert_array_equal(view, np.full((2, 3), 5, dtype=np.int32))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ENOMEM, errno.EFBIG])
def test_segment_when_there_is_no_memory_then_a_capacity_error_and_no_descriptor_left(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full machine is an error at the door, and says how much was wanted."""

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    before = descriptors()
    with pytest.raises(CapacityError) as caught:
        create_segment("maskd-test", 12345)
    assert (caught.value.metadata["limit"], caught.value.metadata["bytes"]) == ("memory", "12345")
    assert descriptors() == before


def test_segment_when_the_file_size_limit_is_hit_then_a_capacity_error() -> None:
    """The kernel's own refusal, not a pretended one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(CapacityError, match="not to be had"):
            create_segment("maskd-test", 2 << 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_segment_when_descriptors_run_out_then_a_capacity_error_names_them(fd: int) -> None:
    """Creating and mapping both need a descriptor, and both say so."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(CapacityError) as created:
            create_segment("maskd-test", SIZE)
        with pytest.raises(CapacityError) as mapped:
            Mapping(fd, SIZE, writable=True)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert created.value.metadata["limit"] == mapped.value.metadata["limit"] == "descriptors"


def test_seal_when_added_then_the_seals_are_the_documented_ones(fd: int) -> None:
    """SHRINK, GROW and SEAL on both, FUTURE_WRITE on rows."""
    seal(fd, foreign_writes=False)
    assert fcntl.fcntl(fd, 1034) == 0x1 | 0x2 | 0x4 | 0x10
