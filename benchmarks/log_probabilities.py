"""How far are log-probabilities from float32's when the weights are held in fewer bits? A real model, real pairs.

    python -m benchmarks.log_probabilities --model smollm2-135m-instruct --data PAIRS.json [--pairs 60] [--out FILE]

Every completion token of the file's last pairs is scored with frozen weights in float32, bfloat16, FP8 and NF4, each in
a process of its own through the product's own layers, and compared token by token and completion by completion.
What preference optimization sees of it is smaller: policy and reference have the same weights and the same errors.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

FORMS = ("f32", "bf16", "fp8", "nf4")
EXACT = "f32"
MAX_LENGTH = 1024


def score(form: str, model_name: str, data: Path, pairs: int, out: Path) -> None:
    """Score the pairs with weights in one form and write log-probabilities and greedy hits (in the child)."""
    import numpy as np
    import torch

    import wishbone
    from benchmarks.loading import versions
    from wishbone.data.batch import truncated_pair
    from wishbone.data.source import load_pairs
    from wishbone.data.tokenize import tokenize_pairs
    from wishbone.fused.layers import FusedLayers
    from wishbone.policy.policy import Policy

    model, tokenizer = wishbone.FastLanguageModel.from_pretrained(
        model_name,
        max_seq_length=MAX_LENGTH,
        dtype=torch.float32 if form == "f32" else torch.bfloat16,
        load_in_4bit=form == "nf4",
        load_in_fp8=form == "fp8",
    )
    tokenized = tokenize_pairs(load_pairs(str(data), split="train", invalid_rows="drop"), tokenizer)
    rows = [tokenized[i] for i in range(len(tokenized) - pairs, len(tokenized))]
    cuda = torch.cuda.is_available()
    policy = Policy(model, row_multiple=128 if cuda else 1, fused=FusedLayers(model) if cuda else None)
    logps, hits, lengths = [], [], []
    for row in rows:
        ids = (list(row[f"{part}_ids"]) for part in ("prompt", "chosen", "rejected"))
        pair = truncated_pair(*ids, max_length=MAX_LENGTH, keep_end=False)
        batch = policy.collate([pair])
        with torch.no_grad(), policy.running():
            scores = policy.token_scores(batch)
        logps.append(scores.logps.double().cpu().numpy())
        hits.append(scores.is_top1.cpu().numpy())
        lengths += [len(pair.chosen) - max(pair.chosen_start, 1), len(pair.rejected) - max(pair.rejected_start, 1)]
    np.savez(out, logps=np.concatenate(logps), hits=np.concatenate(hits), lengths=np.array(lengths))
    device = torch.cuda.get_device_name() if cuda else "cpu"
    print(json.dumps({"device": device, "versions": versions(None)}))


def differences(files: dict[str, Path]) -> dict[str, dict[str, float]]:
    """Return each form's distance from the exact one, in nats."""
    import numpy as np

    exact = dict(np.load(files[EXACT]))
    assert exact["lengths"].sum() == exact["logps"].size
    starts = np.concatenate(([0], np.cumsum(exact["lengths"])[:-1]))
    found = {}
    for form, file in files.items():
        if form == EXACT:
            continue
        own = dict(np.load(file))
        error = own["logps"] - exact["logps"]
        sequences = np.add.reduceat(error, starts)
        found[form] = {
            "token_mean_absolute": float(np.abs(error).mean()),
            "token_99_percent": float(np.quantile(np.abs(error), 0.99)),
            "token_bias": float(error.mean()),
            "completion_mean_absolute": float(np.abs(sequences).mean()),
            "margin_mean_absolute": float(np.abs(sequences[0::2] - sequences[1::2]).mean()),
            "perplexity_ratio": float(np.exp(-error.mean())),
            "greedy_agreement": float((own["hits"] == exact["hits"]).mean()),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--forms", default=",".join(FORMS))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--commit", default="")
    parser.add_argument("--score", choices=FORMS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.score:
        score(args.score, args.model, args.data, args.pairs, args.out)
        return
    with tempfile.TemporaryDirectory() as folder:
        files, about = {}, {}
        for form in args.forms.split(","):
            files[form] = Path(folder) / f"{form}.npz"
            command = [sys.executable, "-m", "benchmarks.log_probabilities", "--score", form, "--out", str(files[form])]
            command += ["--model", args.model, "--data", str(args.data), "--pairs", str(args.pairs)]
            done = subprocess.run(command, env=dict(os.environ), stdout=subprocess.PIPE, text=True, check=True)
            about = json.loads(done.stdout.splitlines()[-1])
        report: dict[str, Any] = {
            "benchmark": "log_probabilities",
            "command": f"python -m benchmarks.log_probabilities --data PAIRS.json --pairs {args.pairs}",
            "commit": args.commit,
            "date": f"{datetime.now():%Y-%m-%d}",
            "model": args.model,
            "unit": "nats, against float32",
            **about,
            "results": differences(files),
        }
    print(json.dumps(report["results"], indent=2))
    if args.out:
        args.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
