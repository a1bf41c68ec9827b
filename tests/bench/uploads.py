"""What the upload of a vocabulary costs those who have theirs: ``python -m tests.bench.uploads``.

One engine steps in shared memory and one inline, one sequence and one row each, a step every millisecond; a third
compiles small
grammars, one after another. Meanwhile another process uploads vocabularies of ``--tokens``. Printed are the steps and
compiles alone and during the uploads.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable

import numpy as np

from maskd.client import Client, Session
from maskd.grammar import GrammarSpec
from maskd.step import Action, Item
from maskd.vocabulary import Vocabulary
from tests.conftest import Daemon, byte_vocabulary

_ALONE_SECONDS = 5.0


def large(size: int, seed: int) -> Vocabulary:
    """Bytes, then words of letters of the length that today's models have, then <stop>."""
    pick = random.Random(seed)
    words = dict.fromkeys(bytes([byte]) for byte in range(256))
    while len(words) < size - 1:
        words[bytes(pick.choices(b"abcdefghijklmnopqrstuvwxyz ", k=pick.randint(2, 9)))] = None
    return Vocabulary([*words, b"<stop>"], size, (size - 1,), (), f"large-{seed}")


def repeat(call: Callable[[int], object], pause: float, done: threading.Event, taken: list[float]) -> None:
    """Calls ``call(number)`` until ``done``, and notes how long each took, in seconds."""
    number = len(taken)
    while not done.is_set():
        started = time.perf_counter()
        call(number)
        taken.append(time.perf_counter() - started)
        number += 1
        time.sleep(pause)


def line(what: str, taken: list[float]) -> str:
    """Returns one line of the table, in milliseconds."""
    p50, p99, longest = (1e3 * value for value in (*np.percentile(taken, [50, 99]), max(taken)))
    return f"  {what:<20} {len(taken):>6}   p50 {p50:>8.2f}   p99 {p99:>8.2f}   longest {longest:>8.2f} ms"


def upload(target: str, count: int, tokens: int) -> None:
    """What the other process does: says when it is ready, waits for a line, uploads, and prints how long each took."""
    with Client.connect(target) as client:
        vocabularies = [large(tokens, seed) for seed in range(count)]
        print("ready", flush=True)
        input()
        for vocabulary in vocabularies:
            started = time.perf_counter()
            client.upload_vocabulary(vocabulary)
            print(time.perf_counter() - started, flush=True)


def main() -> None:
    """Measures, and prints."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.uploads", description=__doc__)
    parser.add_argument("--tokens", type=int, default=131_072)
    parser.add_argument("--uploads", type=int, default=4)
    parser.add_argument("--upload-to", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.upload_to:
        upload(arguments.upload_to, arguments.uploads, arguments.tokens)
        return
    small, directory = byte_vocabulary(), tempfile.mkdtemp(prefix="mk")
    daemon = Daemon(directory, "--vocabularies-limit", str(1 + arguments.uploads))
    command = [
        sys.executable,
        "-m",
        "tests.bench.uploads",
        "--uploads",
        str(arguments.uploads),
        "--tokens",
        str(arguments.tokens),
    ]
    other = subprocess.Popen(
        [*command, "--upload-to", daemon.target], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    try:
        with Client.connect(daemon.target) as client:
            fingerprint = client.upload_vocabulary(small)

            def opened(transport: str) -> Session:
                session = client.open_session(
                    fingerprint,
                    vocab_size=small.vocab_size,
                    row_capacity=8,
                    transport=transport,  # type: ignore[arg-type]
                )
                grammar = session.create_grammar(GrammarSpec("regex", "[a-z]*"))
                session.step([Item(1, Action.OPEN, grammar.grammar_id, row=0)])
                return session

            with opened("shm") as shared, opened("inline") as inline, opened("inline") as compiling:

                def meanwhile(what: str, work: Callable[[], object], offset: int) -> None:
                    done, taken = (
                        threading.Event(),
                        {name: list[float]() for name in ("steps", "inline steps", "small compiles")},
                    )
                    calls: tuple[Callable[[int], object], ...] = (
                        lambda _: shared.step([Item(1, row=0)], timeout_seconds=60),
                        lambda _: inline.step([Item(1, row=0)], timeout_seconds=60),
                        lambda number: compiling.create_grammar(GrammarSpec("regex", f"small{offset + number}")),
                    )
                    threads = [
                        threading.Thread(target=repeat, args=(call, pause, done, list_))
                        for call, pause, list_ in zip(calls, (0.001, 0.001, 0.05), taken.values(), strict=True)
                    ]
                    for thread in threads:
                        thread.start()
                    work()
                    done.set()
                    for thread in threads:
                        thread.join()
                    print(what)
                    for name, list_ in taken.items():
                        print(line(name, list_))

                times = list[float]()
                other.stdout.readline()  # it is ready
                meanwhile("alone", lambda: time.sleep(_ALONE_SECONDS), 1)
                meanwhile(
                    f"{arguments.uploads} uploads of {arguments.tokens} tokens",
                    lambda: times.extend(map(float, other.communicate("\n")[0].split())),
                    10_000,
                )
                print(f"an upload took {min(times):.2f} to {max(times):.2f} s")
    finally:
        other.kill()
        other.wait()
        daemon.stop()
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
