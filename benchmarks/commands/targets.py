"""What Wishbone set out to reach on one H200, beside what was measured.

python -m benchmarks targets RESULTS.json ...
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from benchmarks.harness.results import Results
from benchmarks.rendering.targets import targets_table


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks targets", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, nargs="+", help="files of results")
    targets_table(Results.read(*parser.parse_args().results)).print(Console())
