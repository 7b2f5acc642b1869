"""The command `wishbone`, also as `python -m wishbone`.

Importing the commands takes half a second. A signal in it ends the process with a word, as later.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

from wishbone.run.stop_signals import CAUGHT


def main() -> None:
    """Run the command line and exit with its status."""
    before = {number: signal.getsignal(number) for number in CAUGHT}
    caught = [number for number, handler in before.items() if handler != signal.SIG_IGN]
    for number in caught:
        signal.signal(number, _end)
    from wishbone.cli import main as command_line

    for number in caught:
        signal.signal(number, before[number])
    command_line()


def _end(number: int, frame: FrameType | None) -> None:
    try:
        os.write(2, f"stopped: by {signal.Signals(number).name}; nothing was written\n".encode())
    finally:
        os._exit(128 + number)


if __name__ == "__main__":
    main()
