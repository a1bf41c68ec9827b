"""How long a session waits while its worker opens and closes large ones: ``python -m tests.bench.openings``.

One engine steps without a pause, one sequence and one row. Meanwhile another opens sessions with ``--gibibytes`` of
segments on the
same worker, and closes them. Printed are the steps of the first: alone, and while the other is at it.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import threading
import time

import numpy as np

from maskd.bitmask import row_stride_words
from maskd.client import Client, Session
from maskd.grammar import GrammarSpec
from maskd.step import Action, Item
from maskd.vocabulary import Vocabulary
from tests.conftest import Daemon, byte_vocabulary

_WIDE = 262_144


def steps_until(session: Session, done: threading.Event) -> list[float]:
    """Steps until ``done``; returns how long each took, in seconds."""
    taken = []
    while not done.is_set():
        started = time.perf_counter()
        session.step([Item(1, row=0)], timeout_seconds=60)
        taken.append(time.perf_counter() - started)
        time.sleep(0.001)
    return taken


def line(what: str, taken: list[float]) -> str:
    """Returns one line of the table, in milliseconds."""
    p50, p99, longest = (1e3 * value for value in (*np.percentile(taken, [50, 99]), max(taken)))
    return f"{what:<34} {len(taken):>7} steps   p50 {p50:>7.2f} ms   p99 {p99:>7.2f} ms   longest {longest:>8.2f} ms"


def main() -> None:
    """Measures, and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gibibytes", type=float, default=1.0)
    parser.add_argument("--sessions", type=int, default=8)
    arguments = parser.parse_args()
    rows = int(arguments.gibibytes * 2**30) // (2 * 4 * row_stride_words(_WIDE))
    narrow, directory = byte_vocabulary(), tempfile.mkdtemp(prefix="mk")
    wide = Vocabulary(narrow.tokens, _WIDE, narrow.stop_token_ids, narrow.special_token_ids, "wide")
    daemon = Daemon(directory, "--rows-per-session", str(rows))
    try:
        with Client.connect(daemon.target) as client:
            fingerprint = client.upload_vocabulary(wide)
            with client.open_session(fingerprint, vocab_size=_WIDE, row_capacity=8, transport="shm") as session:
                grammar = session.create_grammar(GrammarSpec("regex", "[a-z]*"))
                session.step([Item(1, Action.OPEN, grammar.grammar_id, row=0)])
                opening = []

                def others(count: int, done: threading.Event) -> None:
                    for _ in range(count):
                        started = time.perf_counter()
                        with client.open_session(fingerprint, vocab_size=_WIDE, row_capacity=rows, transport="shm"):
                            opening.append(time.perf_counter() - started)
                        time.sleep(0.1)
                    if not count:
                        time.sleep(3)
                    done.set()

                for what, count in (
                    ("alone", 0),
                    (f"{arguments.sessions} x {arguments.gibibytes} GiB opened and closed", arguments.sessions),
                ):
                    done = threading.Event()
                    thread = threading.Thread(target=others, args=(count, done))
                    thread.start()
                    print(line(what, steps_until(session, done)))
                    thread.join()
                print(f"opening took {min(opening):.2f} to {max(opening):.2f} s")
    finally:
        daemon.stop()
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
