"""The command `wishbone`, also as `python -m wishbone`.

Importing the commands takes half a second. A signal in it ends the process with a word, as later. So the handlers are
set before anything else is imported, and stay until a run sets its own, or another command begins.
"""

from __future__ import annotations

import os
import signal
from types import FrameType


def main() -> None:
    """Run the command line and exit with its status."""
    names = ("SIGINT", "SIGTERM", "SIGHUP")
    before = {number: signal.getsignal(number) for name in names if (number := getattr(signal, name, None))}
    caught = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}
    for number in caught:
        signal.signal(number, _end)

    def release() -> None:
        for number, handler in caught.items():
            signal.signal(number, handler)

    from wishbone.cli import main as command_line

    command_line(release)


def _end(number: int, frame: FrameType | None) -> None:
    try:
        os.write(2, f"stopped: by {signal.Signals(number).name}; nothing was written\n".encode())
    finally:
        os._exit(128 + number)


if __name__ == "__main__":
    main()
