"""Write tests/vectors/documents.json and facts.json, which JavaScript has to repeat to the byte and to the bit.

    python scripts/write_vectors.py [--check]

What is advised is fixed by the other vectors, by hand; documents.json fixes how it is spelled, facts.json the numbers
that rules read in the situations of advice-situations.json. With `--check` nothing is written, and the exit status is
1 if a file is not what it would be.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from wishbone.config.rules import evaluate, rule_book
from wishbone.config.targets import write
from wishbone.planning.advisor import advise
from wishbone.planning.situation import read_situation

VECTORS = Path(__file__).resolve().parent.parent / "tests" / "vectors"
HOSTILE = {
    "model": "a \"b\" 'c' \\ \u00e9 \u2028 \U0001f600 {model.name} #",
    "data": "d\n\t\x00\x7f.jsonl",
    "reference": "given",
    "reference_model": "no",
}
SITUATIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "processor": {
        "gpu": "none", "has_gpu": False, "gpu_memory": 0, "capability": 0, "bf16": False, "fp8": False, "int8": False,
    },
    "all weights": {"method": "full", "gpu_memory": 140, "pairs": 100_000, "gpus": 2},
    "old card": {"capability": 7.5, "bf16": False, "fp8": False, "gpu_memory": 16, "data_format": "hub", "data": "o/d"},
    "old card, NaN": {"capability": 7.5, "bf16": False, "fp8": False, "least_f32_gib": 9, "symptoms": ["nan"]},
    "symptoms": {"symptoms": ["collapse", "lost_abilities", "out_of_memory"], "pairs": 300},
    "dpop": {"symptoms": ["collapse", "chosen_falling"]},
    "noisy": {"noisy_labels": True, "symptoms": ["length_growth", "no_learning"], "learning_rate": 1.5e-6},
    "hostile": HOSTILE,
}  # fmt: skip


def documents() -> dict[str, Any]:
    """The file's content."""
    base = json.loads((VECTORS / "advice-rules.json").read_text(encoding="utf-8"))["vectors"][0]["facts"]
    vectors = []
    for name, changes in SITUATIONS.items():
        for target in ("wishbone", "trl", "unsloth"):
            for form in ("yaml", "json", "python"):
                if target == "trl" and form != "python" and changes.get("reference") == "given":
                    continue  # its command line takes no reference model
                facts = {**base, **changes, "target": target}
                text = write(target, form, evaluate(rule_book(), facts))  # type: ignore[arg-type]
                vectors.append({"name": f"{name}, {target}, {form}", "facts": facts, "target": target, "format": form,
                                "lines": text.split("\n")})  # fmt: skip
    about = "Written by scripts/write_vectors.py: the text of a file is its lines with line breaks between them."
    return {"about": about, "vectors": vectors}


def facts() -> dict[str, Any]:
    """The file's content."""
    vectors = json.loads((VECTORS / "advice-situations.json").read_text(encoding="utf-8"))["vectors"]
    found = [
        {"name": vector["name"], "situation": vector["situation"],
         "facts": dict(advise(read_situation(vector["situation"])).facts)}
        for vector in vectors
    ]  # fmt: skip
    return {"about": "Written by scripts/write_vectors.py: what the rules read in each situation.", "vectors": found}


def main() -> int:
    """Write the files, or compare them."""
    stale = 0
    for name, content in (("documents.json", documents()), ("facts.json", facts())):
        path, text = VECTORS / name, json.dumps(content, indent=1) + "\n"
        stale |= not path.exists() or path.read_text(encoding="utf-8") != text
        if "--check" not in sys.argv[1:]:
            path.write_text(text, encoding="utf-8")
    return int(stale and "--check" in sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
