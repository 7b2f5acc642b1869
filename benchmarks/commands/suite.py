"""The whole comparison from one command, which continues where its last call ended.

    python -m benchmarks suite --plan h200 --out RESULTS.json [--data PAIRS.json] [--minutes 9]

A plan lists its rows, the most important first. With `--minutes` a call stops in time and the same command continues
with the rest, so a machine that is available for minutes at a time is enough. With `--data` the rows of `quality` come
first.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks.commands import ceilings, longest, quality, throughput
from benchmarks.harness import jobs
from benchmarks.harness.jobs import Job, run_jobs
from benchmarks.rendering.tables import TABLES, show

SECONDS = {"wishbone": 50, "trl": 80, "unsloth": 95}
"""How long a row takes on an H200: 8B model, 11 steps, with start and loading."""


def rows(size: str, case: str, *systems: str, limit: float = 200, fresh: str = "") -> list[Job]:
    """Return rows of throughput; the system `fresh` gets empty compiler caches."""
    return [
        throughput.job(
            system,
            case,
            size,
            limit_seconds=limit,
            expected_seconds=SECONDS[system.partition("-")[0]],
            fresh_caches=system == fresh,
        )
        for system in systems
    ]


def h200() -> list[Job]:
    """Return all rows that `targets` reads, then further comparisons."""
    uf = "ultrafeedback:8"
    length = {"start": 8192, "most": 131_072}
    return [
        ceilings.job(),
        *rows("8b", uf, "wishbone-bf16", "unsloth-bf16", "trl-liger-bf16", fresh="wishbone-bf16"),
        *rows("8b", uf, "wishbone-fp8", "wishbone-nf4", "unsloth-nf4", "wishbone-nf4-14gib", "wishbone-fp8-recorded"),
        *rows("8b", "ultrafeedback:1", "wishbone-nf4-small", "unsloth-nf4"),
        *rows("8b", "full:1", "wishbone-nf4-small"),
        *rows("8b", "helpsteer:8", "wishbone-bf16", "unsloth-bf16", "wishbone-fp8", "wishbone-fp8-recorded"),
        *rows("8b", "capybara:8", "wishbone-bf16", "unsloth-bf16", "wishbone-fp8", "wishbone-fp8-recorded"),
        *rows("1b", uf, "wishbone-recorded", "wishbone-bf16", "unsloth-bf16"),
        *rows("8b", uf, "wishbone-stored"),
        longest.job("wishbone-nf4-small", "8b", 24, **length, limit_seconds=240),
        longest.job("unsloth-nf4", "8b", 24, **length, limit_seconds=240),
        *rows("8b", uf, "trl-bf16", "trl-liger-nf4"),
        *rows("8b", "full:1", "unsloth-nf4"),
        *rows("1b", uf, "trl-liger-bf16"),
        *rows("8b", "ultrafeedback:1", "wishbone-bf16", "unsloth-bf16"),
        *rows("8b", "helpsteer:8", "trl-liger-bf16"),
        *rows("8b", uf, "unsloth-bf16:checkpointing=False", "unsloth-bf16-fused"),
        *rows("8b", uf, "unsloth-fp8", limit=270),
        *rows("8b", uf, "trl-fp8"),
    ]


def tiny() -> list[Job]:
    """Return a little of everything, to try the suite on any machine."""
    return [
        ceilings.job(),
        *rows("tiny", "tiny:4", "trl-f32", "wishbone-f32", "wishbone-stored", "unsloth-bf16"),
        longest.job("wishbone-f32", "tiny", 24, start=64, most=256, limit_seconds=60),
        longest.job("trl-f32", "tiny", 24, start=64, most=256, limit_seconds=60),
    ]


PLANS = {"h200": h200, "tiny": tiny}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks suite", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--plan", choices=PLANS, required=True)
    parser.add_argument("--data", help="pairs for the rows of quality, in any layout that Wishbone reads")
    parser.add_argument(
        "--only", default="", help="only rows whose kind, size, system and case contain one of these texts, by commas"
    )
    jobs.add_options(parser)
    quality.add_options(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        planned = PLANS[options.plan]()
        if options.data:
            options.size = "tiny" if options.plan == "tiny" else None
            systems = ["trl-f32", "wishbone-f32"] if options.plan == "tiny" else quality.SYSTEMS.split(",")
            planned = [*quality.planned(options, systems, Path(folder)), *planned]
        show(run_jobs(chosen(planned, options.only), options), *TABLES)


def chosen(planned: list[Job], only: str) -> list[Job]:
    """Return the jobs that contain one of the texts in `only` (separated by commas), in the order of the texts."""
    found: list[Job] = []
    for text in only.split(","):
        found += [job for job in planned if job not in found and text in " ".join(filter(None, job.key.values()))]
    return found
