"""`python -m wishbone`, the same as the command `wishbone`."""

from __future__ import annotations

from wishbone.cli import main

main()
