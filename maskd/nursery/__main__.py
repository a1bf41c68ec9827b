"""Entry of the zygote, started by the front: ``python -m maskd.nursery FD JSON``. Not for people.

Owns: the signals and the end of the process. Knows nothing about: what the zygote does (``zygote.py``).
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import socket
import sys

from maskd.errors import MaskdError
from maskd.ipc import messages
from maskd.ipc.frames import encode
from maskd.nursery.zygote import ZygoteLoop
from maskd.observability.logs import configure_logging

_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_SET_CHILD_SUBREAPER = 1, 15, 36


def main() -> None:
    """Runs the loop in the main thread: the only one, so that forks are safe."""
    fd, options = int(sys.argv[1]), json.loads(sys.argv[2])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal reaches the whole group; the front decides
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    prctl(_PR_SET_NAME, b"maskd-zygote")
    prctl(_PR_SET_CHILD_SUBREAPER, 1)  # workers whose nursery died are buried here, and the front hears how they ended
    if os.getppid() != options.pop("front_pid"):
        sys.exit("the front is gone")
    configure_logging(options["log_level"], process="zygote")
    channel = socket.socket(fileno=fd)
    try:
        zygote = ZygoteLoop(channel, **options)
    except MaskdError as error:  # an unknown backend
        channel.sendall(encode(messages.Answered(0, messages.failure_of(error))))
        sys.exit(2)
    gc.freeze()  # what is loaded stays, and stays shared
    zygote.run()


if __name__ == "__main__":
    main()
