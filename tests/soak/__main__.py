"""`python -m soak TARGET... --count 10000 --seed 0 --out results.json`: the cases, what came of them, and where.

Case i of a target is `Random(f"{target} {seed + i}")`, so a seed in the results is a case that anybody can run again:
`python -m soak gguf --seed 17 --count 1`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from pathlib import Path

from soak.circumstances import circumstances
from soak.targets import all_targets
from soak.trials import trials


def main() -> None:
    """Run the targets asked for and print what was found."""
    targets = all_targets()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", help=f"of {', '.join(targets)}; all if none is named")
    parser.add_argument("--count", type=int, default=10_000, help="cases of each target")
    parser.add_argument("--seed", type=int, default=0, help="of the first case")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop a target after this time")
    parser.add_argument("--out", type=Path, help="file for the results, JSON")
    asked = parser.parse_args()
    results: dict[str, object] = {}
    found = circumstances("soak") | {"seconds_are": "of processor time, but for `by_the_clock`", "targets": results}
    for name in asked.targets or targets:
        kinds: Counter[str] = Counter()
        findings: dict[str, list[int]] = {}
        began, longest = time.monotonic(), 0.0
        for outcome in trials(targets[name], range(asked.seed, asked.seed + asked.count)):
            kinds[outcome.kind] += 1
            longest = max(longest, outcome.seconds)
            if outcome.is_finding:
                place = f"{outcome.kind}: {outcome.detail.split(': ')[0]}"
                findings.setdefault(place, []).append(outcome.seed)
                shown = " ".join(f"{outcome.kind}: {outcome.detail}".split())
                print(f"{name} {outcome.seed} {shown} ({outcome.seconds:g} s)", flush=True)
            if time.monotonic() - began > asked.seconds:
                break
        results[name] = {
            "first_seed": asked.seed,
            "cases": sum(kinds.values()),
            "outcomes": dict(sorted(kinds.items())),
            "findings": {
                place: {"cases": len(seeds), "seeds": seeds[:20]} for place, seeds in sorted(findings.items())
            },
            "longest_case_seconds": longest,
            "by_the_clock": round(time.monotonic() - began, 1),
        }
        took = f"longest {longest:g} s, in all {time.monotonic() - began:.0f} s"
        print(f"{name}: {sum(kinds.values())} cases, {dict(kinds)}, {took}", flush=True)
        if asked.out:
            asked.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
