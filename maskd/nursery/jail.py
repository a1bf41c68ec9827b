"""The inside of a compile child: limits first, then the grammar, then a short walk, then the verdict.

A grammar is a program of a client. It may hang, eat memory or crash its library. It may also compile well and then
need a second for one mask. So it is compiled in a forked child with hard limits, which its parent kills at a deadline.
The child then walks some tokens with the clock running. Where the library can serialise, the child sends the result
along, and the worker need not compile again.
The child writes to two pipes. One gets 8 bytes with the memory that the child began with, then the verdict. The other
gets stderr: libraries name a lack of memory there before they abort.
Owns: the limits and the walk. Knows nothing about: who asked, what is done with the verdict.
"""

from __future__ import annotations

import ctypes
import math
import os
import random
import resource
import signal
import threading
import time
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from maskd import _shm
from maskd.backends.auto import ChosenGrammar
from maskd.backends.base import Backend, Grammar, Serializer
from maskd.bitmask import allowed_token_ids, row_stride_words
from maskd.errors import BackendError, GrammarTooLargeError, GrammarUnsatisfiableError, MaskdError
from maskd.grammar import GrammarSpec
from maskd.ipc.messages import Compiled, CompileLimits, Failure, failure_of
from maskd.vocabulary import Vocabulary
from maskd.worker.pool import STACK_BYTES

__all__ = ["BASELINE_BYTES", "is_out_of_memory", "memory_bytes", "out_of_memory", "run_child"]

BASELINE_BYTES = 8
_WALK_TOKENS = 24
_CPU_GRACE_SECONDS = 5
"""From SIGXCPU, which ends a process, to the SIGKILL of the kernel, which would look like a lack of memory."""
_ARTEFACT_BYTES = 64 << 20
_WORTH_SERIALIZING_SECONDS = 0.3
"""xgrammar writes and loads a grammar in about 0.2 s (131,072 tokens, 2 cores). Faster compiles are repeated."""
_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_SET_NO_NEW_PRIVS = 1, 15, 38


def run_child(
    spec: GrammarSpec,
    limits: CompileLimits,
    *,
    out: int,
    words: int,
    backend: Backend,
    named: Mapping[str, Backend],
    vocabulary: Vocabulary,
) -> None:
    """Compiles ``spec`` and writes the verdict to the descriptor ``out``, with ``words`` as stderr.

    Called in a fresh fork; the caller exits after it.
    """
    os.dup2(words, 2)
    _confine(out, limits)
    verdicts: list[Compiled | Failure] = []
    threading.stack_size(STACK_BYTES)
    thread = threading.Thread(target=lambda: verdicts.append(_judge(backend, named, vocabulary, spec, limits)))
    thread.start()
    thread.join()
    data = memoryview(msgspec.msgpack.encode(verdicts[0]))
    while data:
        data = data[os.write(out, data) :]


def _confine(out: int, limits: CompileLimits) -> None:
    """Closes every descriptor but ``out`` and stderr, and sets the limits. After it no file can be written."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    prctl(_PR_SET_NAME, b"maskd-jail")
    prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    os.closerange(3, out)
    os.closerange(out + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    mapped, resident = memory_bytes()
    os.write(out, resident.to_bytes(BASELINE_BYTES, "little"))
    os.nice(limits.nice)
    if limits.cpus:
        os.sched_setaffinity(0, limits.cpus)
    # The parent kills at the deadline, and is first even if every processor works for this child. Else SIGXCPU ends it.
    busy = len(os.sched_getaffinity(0)) * (math.ceil(limits.seconds) + 1)
    for kind, soft, hard in (
        (resource.RLIMIT_AS, mapped + STACK_BYTES + limits.bytes, mapped + STACK_BYTES + limits.bytes),
        (resource.RLIMIT_CPU, busy, busy + _CPU_GRACE_SECONDS),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_FSIZE, 0, 0),
    ):
        resource.setrlimit(kind, (soft, hard))


def memory_bytes() -> tuple[int, int]:
    """Returns the bytes that this process has mapped, and how many of them are resident."""
    with open("/proc/self/statm") as statm:  # noqa: PTH123
        mapped, resident = statm.read().split()[:2]
    return int(mapped) * resource.getpagesize(), int(resident) * resource.getpagesize()


def _judge(
    backend: Backend, named: Mapping[str, Backend], vocabulary: Vocabulary, spec: GrammarSpec, limits: CompileLimits
) -> Compiled | Failure:
    started = time.perf_counter()
    try:
        grammar = backend.compile(spec)
        seconds = time.perf_counter() - started
        try:
            slowest = _walk(grammar, vocabulary, limits)
        except BackendError as error:  # the library passes its own limits within a few tokens
            raise GrammarTooLargeError(error.message, limit="library") from None
        holder = named[grammar.report.backend]
        artefact = (
            holder.serialize(grammar.grammar if isinstance(grammar, ChosenGrammar) else grammar)
            if isinstance(holder, Serializer) and seconds > _WORTH_SERIALIZING_SECONDS
            else b""
        )
        return Compiled(grammar.report, seconds, slowest, artefact if len(artefact) <= _ARTEFACT_BYTES else b"")
    except MaskdError as error:
        return failure_of(error)
    except BaseException as error:  # any error of the library; a panic of Rust is no Exception
        if is_out_of_memory(error):
            return failure_of(out_of_memory(limits.bytes))
        return failure_of(BackendError(f"the grammar library failed to compile this: {type(error).__name__}"))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a library raised ``error`` for lack of memory. From C++ it comes as a RuntimeError with this text."""
    return isinstance(error, MemoryError) or "bad_alloc" in str(error)


def out_of_memory(limit_bytes: int) -> GrammarTooLargeError:
    """Returns the error of a compile that passed its memory limit."""
    return GrammarTooLargeError(
        f"the compile needed more than compile_bytes = {limit_bytes}; simplify the grammar, or raise the limit",
        limit="compile_bytes",
        value=limit_bytes,
    )


def _walk(grammar: Grammar, vocabulary: Vocabulary, limits: CompileLimits) -> float:
    """Opens a sequence, walks some random tokens (seeded), and forks it.

    Returns the longest processor time, in seconds, of the opening, of one mask with its token, or of the fork.

    Raises:
        GrammarTooLargeError: one of these took longer than ``mask_seconds``.
        GrammarUnsatisfiableError: no token is allowed at the start.
    """
    slowest, began = 0.0, time.perf_counter()

    def count(taken: float, what: str, position: int) -> None:
        nonlocal slowest
        slowest = max(slowest, taken)
        if taken > limits.mask_seconds:
            raise GrammarTooLargeError(
                f"{what} took {taken:.3f} s at position {position}; the limit mask_seconds is {limits.mask_seconds}",
                limit="mask_seconds",
                value=limits.mask_seconds,
                position=position,
            )

    opening = time.thread_time()  # not wall time: a child is nice, and may wait for a core
    matcher = grammar.matcher()
    count(time.thread_time() - opening, "opening a sequence", 0)
    stride = row_stride_words(vocabulary.vocab_size)
    rows = np.zeros((1, stride), dtype=np.int32)
    stops = np.array(sorted(grammar.stop_token_ids), dtype=np.int32).tobytes()
    chooser = random.Random(0)  # noqa: S311  (a walk, no secret)
    position = 0
    for position in range(_WALK_TOKENS):
        started = time.thread_time()
        matcher.fill_bitmask(rows[0])
        filled = time.thread_time()
        if _shm.finish_rows(rows.ctypes.data, stride, len(vocabulary.tokens), [0], [stops])[0] & 1:
            if position == 0:
                raise GrammarUnsatisfiableError("the grammar allows no token at its start; nothing can match it")
            break
        choice = _choose(allowed_token_ids(rows[0]).tolist(), grammar.stop_token_ids, chooser)
        accepting = time.thread_time()
        accepted = choice is not None and matcher.accept((choice,))
        count(filled - started + time.thread_time() - accepting, "one token", position)
        if not accepted or time.perf_counter() - began > limits.seconds / 4:
            break
    forking = time.thread_time()
    matcher.fork()
    count(time.thread_time() - forking, "forking a sequence", position)
    return slowest


def _choose(allowed: Sequence[int], stops: frozenset[int], chooser: random.Random) -> int | None:
    for _ in range(8):
        token_id = chooser.choice(allowed)
        if token_id not in stops:
            return token_id
    return next((token_id for token_id in allowed if token_id not in stops), None)
