"""`python -m soak TARGET... --count 10000 --seed 0 --out results.json`: the cases, what came of them, and where.

Case i of a target is `Random(f"{target} {seed + i}")`, so a seed in the results is a case that anybody can run again:
`python -m soak gguf --seed 17 --count 1`.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from soak.circumstances import circumstances
from soak.targets import all_targets
from soak.trials import Outcome, Target, trials

SLICE = 500
"""Cases of a target that one process after another takes."""


@dataclass
class Tally:
    """What came of the cases of a target."""

    kinds: Counter[str] = field(default_factory=Counter)
    findings: dict[str, list[int]] = field(default_factory=dict)
    longest: float = 0.0
    processor: float = 0.0

    def add(self, outcome: Outcome) -> None:
        self.kinds[outcome.kind] += 1
        self.longest = max(self.longest, outcome.seconds)
        self.processor += outcome.seconds
        if outcome.is_finding:
            self.findings.setdefault(f"{outcome.kind}: {outcome.detail.split(': ')[0]}", []).append(outcome.seed)

    def as_json(self, first_seed: int) -> dict[str, object]:
        found = {place: {"cases": len(seeds), "seeds": sorted(seeds)[:20]} for place, seeds in self.findings.items()}
        return {
            "first_seed": first_seed,
            "cases": sum(self.kinds.values()),
            "outcomes": dict(sorted(self.kinds.items())),
            "findings": dict(sorted(found.items())),
            "longest_case_seconds": self.longest,
            "mean_case_seconds": round(self.processor / max(1, sum(self.kinds.values())), 4),
        }


class Soak:
    """Cases of several targets in several processes.

    Args:
        targets: in the order in which they are begun.
        seeds: of the cases of each.
        until: the moment of `time.monotonic` after which no case begins.
        out: file for the results, JSON, or None.
        commit: of this code, where git cannot tell.
    """

    def __init__(
        self, targets: Sequence[Target], seeds: range, until: float, out: Path | None, commit: str = ""
    ) -> None:
        self._seeds, self._until, self._out = seeds, until, out
        self._began, self._lock = time.monotonic(), threading.Lock()
        self._circumstances = circumstances("soak", commit)
        self.tallies = {target.name: Tally() for target in targets}
        self.slices = [
            (target, seeds[start : start + SLICE]) for target in targets for start in range(0, len(seeds), SLICE)
        ]

    def run(self, part: tuple[Target, range]) -> None:
        """Run a slice of cases, in a process of its own."""
        target, seeds = part
        if time.monotonic() > self._until:
            return
        for outcome in trials(target, seeds):
            with self._lock:
                self.tallies[target.name].add(outcome)
                if outcome.is_finding:
                    shown = " ".join(f"{outcome.kind}: {outcome.detail}".split())
                    print(f"{target.name} {outcome.seed} {shown} ({outcome.seconds:g} s)", flush=True)
            if time.monotonic() > self._until:
                break
        with self._lock:
            done = sum(self.tallies[target.name].kinds.values())
            print(f"{target.name}: {done} of {len(self._seeds)} cases, {self._seconds():.0f} s", flush=True)
            self._write()

    def _seconds(self) -> float:
        return time.monotonic() - self._began

    def _write(self) -> None:
        results = self._circumstances | {
            "seconds_are": "of processor time, but for `by_the_clock`",
            "by_the_clock": round(self._seconds(), 1),
            "targets": {name: tally.as_json(self._seeds.start) for name, tally in self.tallies.items()},
        }
        if self._out:
            self._out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Run the targets asked for and print what was found."""
    targets = all_targets()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", help=f"of {', '.join(targets)}; all if none is named")
    parser.add_argument("--count", type=int, default=10_000, help="cases of each target")
    parser.add_argument("--seed", type=int, default=0, help="of the first case")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no case after this time")
    parser.add_argument("--processes", type=int, default=1, help="cases at the same time")
    parser.add_argument("--out", type=Path, help="file for the results, JSON")
    parser.add_argument("--commit", default="", help="commit of this code, where git cannot tell")
    asked = parser.parse_args()
    seeds = range(asked.seed, asked.seed + asked.count)
    named = [targets[name] for name in asked.targets or targets]
    soak = Soak(named, seeds, time.monotonic() + asked.seconds, asked.out, asked.commit)
    with ThreadPoolExecutor(asked.processes) as pool:
        list(pool.map(soak.run, soak.slices))
    for name, tally in soak.tallies.items():
        took = f"longest {tally.longest:g} s, in all {tally.processor:.0f} s of a processor"
        print(f"{name}: {sum(tally.kinds.values())} cases, {dict(tally.kinds)}, {took}", flush=True)
    raise SystemExit(any(tally.findings for tally in soak.tallies.values()))


if __name__ == "__main__":
    main()
