"""Entry of a worker process, started by the front: ``python -m maskd.worker FD JSON``. Not for people."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
import threading

from maskd import control
from maskd.errors import MaskdError
from maskd.logs import configure_logging
from maskd.worker.compiler import STACK_BYTES
from maskd.worker.loop import WorkerLoop

_PR_SET_PDEATHSIG, _PR_SET_TIMERSLACK = 1, 29


def main() -> None:
    """Runs the loop on a thread with a large stack: matchers recurse in native code as compilers do."""
    fd, options = int(sys.argv[1]), json.loads(sys.argv[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal reaches the whole group; the front decides
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    prctl(_PR_SET_TIMERSLACK, 1000)
    if os.getppid() != options.pop("front_pid"):
        sys.exit("the front is gone")
    configure_logging(options.pop("log_level"), process=f"worker-{options.pop('number')}")
    channel = socket.socket(fileno=fd)
    try:
        loop = WorkerLoop(channel, **options)
    except MaskdError as error:
        channel.sendall(control.encode(control.Reply(0, control.failure_of(error))))
        sys.exit(2)
    threading.stack_size(STACK_BYTES)
    thread = threading.Thread(target=loop.run, name="data-path", daemon=True)
    thread.start()
    thread.join()


if __name__ == "__main__":
    main()
