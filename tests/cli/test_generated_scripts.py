"""Scripts and documents that advice is written as, run as they are on a model of two layers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_model, tiny_tokenizer

from wishbone.config.rules import evaluate, rule_book
from wishbone.config.targets import Format, Target, write
from wishbone.planning.facts import facts_of
from wishbone.planning.model_shape import read_shape
from wishbone.planning.situation import read_situation

pytestmark = pytest.mark.long

MODEL = "model 'one' \"two\" \\ \u00e9{model.name}"  # a directory may be called so
PAIRS = "pairs '\"\\\u00e9 {data.train}.jsonl"
PROGRAM = """
import json, os, runpy, sys
for directory in sys.argv[1:]:
    os.chdir(directory)
    if os.path.exists("train.py"):
        trainer = runpy.run_path("train.py", run_name="__main__")["trainer"]
        result = {
            "module": type(trainer).__module__,
            "steps": trainer.state.global_step,
            "losses": [line["loss"] for line in trainer.state.log_history if "loss" in line],
            "rate": trainer.args.learning_rate,
            "reference": trainer.ref_model is not None,
        }
        with open("result.json", "w") as file:
            json.dump(result, file)
    else:
        from trl.scripts.dpo import main, make_parser
        main(*make_parser().parse_args_and_config(["--config", "dpo.yaml", "--use_cpu", "true"]))
"""
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "dpop": {"symptoms": ["chosen_falling", "collapse"]},
    "noisy": {"noisy_labels": True, "symptoms": ["length_growth", "out_of_memory"]},
    "full": {"method": "full", "symptoms": ["length_growth", "chosen_falling", "nan"]},
    "reference": {"reference": "given", "reference_model": "other"},
}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scripts")
    tokenizer = tiny_tokenizer()
    for name, seed in ((MODEL, 0), ("other", 1)):
        tiny_model("llama", vocab_size=len(tokenizer), seed=seed).save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    rows = [{"prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": "No idea."} for n in range(16)]
    (root / PAIRS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def written(root: Path, target: Target, form: Format, **answers: Any) -> str:
    """What advice for the tiny model is written as."""
    situation = read_situation(
        {"model": MODEL, "data": PAIRS, "target": target, "pairs": 16, "longest_tokens": 512, **answers}
    )
    shape = read_shape(json.loads((root / MODEL / "config.json").read_text()))
    return write(target, form, evaluate(rule_book(), facts_of(situation, shape)))


@pytest.fixture(scope="module", params=["trl", "wishbone"])
def runs(request: pytest.FixtureRequest, workplace: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A directory for each case, in which its script has run; all scripts of a target in one process."""
    target: Target = request.param
    root = tmp_path_factory.mktemp(target)
    files = {name: ("train.py", written(workplace, target, "python", **case)) for name, case in CASES.items()}
    if target == "trl":
        for form in ("yaml", "json"):
            files[form] = ("dpo.yaml", written(workplace, target, form, symptoms=["chosen_falling"]))
    for name, (file, text) in files.items():
        (root / name).mkdir()
        (root / name / file).write_text(text)
        for link in (MODEL, PAIRS, "other"):
            (root / name / link).symlink_to(workplace / link)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *(str(root / name) for name in files)],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "WANDB_MODE": "disabled"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return target, root


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_scripts_run_as_they_are(runs: tuple[str, Path], case: str):
    target, root = runs
    result = json.loads((root / case / "result.json").read_text())
    assert result["module"].startswith(f"{target}.")
    assert result["steps"] == (4 if case == "dpop" else 12)  # 16 pairs are few: 4 a step
    assert len(result["losses"]) == result["steps"]
    assert all(loss > 0 for loss in result["losses"])
    if case == "plain":
        assert result["losses"][0] == pytest.approx(0.693147, abs=1e-4)
        assert result["rate"] == 1e-5
    if case == "reference":
        assert result["losses"][0] != pytest.approx(0.693147, abs=1e-4)
    assert result["reference"] == (case == "reference")
    saved = {path.name for path in (root / case / "dpo-run").iterdir()}
    assert ("model.safetensors" if case == "full" else "adapter_model.safetensors") in saved
    assert "tokenizer.json" in saved


@pytest.mark.slow
def test_documents_for_trl_run_with_its_command_line(runs: tuple[str, Path]):
    target, root = runs
    if target == "trl":
        for form in ("yaml", "json"):
            assert (root / form / "dpo-run" / "adapter_model.safetensors").is_file()
