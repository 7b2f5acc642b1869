"""Steps on several GPUs: which cases share processes, and 70B's plan beside what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.commands.scaling import launches, main, parse_case
from benchmarks.commands.shares import extrapolated, imbalance
from benchmarks.harness.random_model import model_of_one_layer
from benchmarks.harness.workloads import SIZES, Lengths, draw_lengths
from wishbone.config.schema import RunConfig
from wishbone.planning.gpus import find_gpu
from wishbone.planning.known_models import known_shapes
from wishbone.planning.lengths import PairLengths
from wishbone.planning.memory import GIB
from wishbone.planning.run_plan import Target, gpu_machine, plan_run

LARGE = Path(__file__).parents[2] / "benchmarks" / "results" / "70b-h200.json"


def test_divided_models_have_processes_of_their_own() -> None:
    cases = [(text, *parse_case(text)) for text in ("bf16-sharded", "bf16-strong", "bf16-full", "fp8-weak")]
    assert launches(cases) == [["bf16-strong", "fp8-weak"], ["bf16-sharded", "bf16-full"]]
    assert launches(cases[:1]) == [["bf16-sharded"]]


def test_cases_after_one_that_fails_are_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The processes fail with `fp8-strong` each time; what was measured beside comes along and is compared with."""
    asked: list[list[str]] = []

    def launch(command: list[str], *, processes: int, module: str) -> int:
        cases = command[-3].split(",")
        asked.append(cases)
        with Path(command[-1]).open("a", encoding="utf-8") as stream:
            for weights, how in map(parse_case, cases):
                if (weights, how) == ("fp8", "strong"):
                    return 1
                row = one | {"system": f"wishbone-{weights}", "case": f"{how} x{processes}", "pairs_per_s": 20.0}
                stream.write(json.dumps(row) + "\n")
        return 0

    one = {"kind": "scaling", "size": "tiny", "system": "wishbone-bf16", "case": "strong x1", "status": "ok"}
    beside, out = tmp_path / "one.json", tmp_path / "out.json"
    beside.write_text(json.dumps({"calls": [{}], "results": [one | {"pairs_per_s": 10.5, "call": 0}]}))
    monkeypatch.setattr("wishbone.run.launch.launch", launch)
    cases = "bf16-strong,fp8-strong,bf16-weak,bf16-sharded"
    command = f"scaling --size tiny --processes 2 --cases {cases} --beside {beside} --out {out} --commit c"
    monkeypatch.setattr("sys.argv", command.split())
    main()
    assert asked == [["bf16-strong", "fp8-strong", "bf16-weak"], ["bf16-weak"], ["bf16-sharded"]]
    rows = {row["case"]: row.get("times_one") for row in json.loads(out.read_text())["results"]}
    assert rows == {"strong x1": None, "strong x2": 1.905, "weak x2": 1.905, "sharded x2": None}


def test_layers_in_the_memory_of_one_are_parameters_of_their_own() -> None:
    model = model_of_one_layer("tiny", torch.float32, torch.device("cpu"))
    assert len(model.model.layers) == SIZES["tiny"].layers == model.config.num_hidden_layers
    first, second = (layer.mlp.up_proj.weight for layer in model.model.layers)
    assert first is not second and first.data_ptr() == second.data_ptr()
    assert model(torch.arange(5)[None]).logits.isfinite().all()


def test_a_plan_of_70b_in_nf4_is_within_a_tenth_of_what_was_measured() -> None:
    rows = json.loads(LARGE.read_text(encoding="utf-8"))["results"]
    row = next(row for row in rows if row["system"].startswith("wishbone-nf4"))
    gpu, shape = find_gpu("H200"), known_shapes()["meta-llama/Llama-3.1-70B-Instruct"]
    drawn = draw_lengths("ultrafeedback", 12)[4:]  # without the step that was not timed
    prompt, chosen, rejected = np.array([(pair.prompt, pair.chosen, pair.rejected) for pair in drawn]).T
    config = RunConfig.model_validate(
        {
            "model": {"name": "m", "quantization": "nf4"},
            "data": {"train": "d", "max_length": 2048, "eval_fraction": 0},
            "training": {"batch_size": 4, "gradient_accumulation": 1},
        }
    )
    plan = plan_run(config, Target(shape, PairLengths(prompt, chosen, rejected, "drawn"), gpu_machine(gpu), gpu))
    assert plan.seconds is not None and 4 / plan.seconds == pytest.approx(row["pairs_per_s"], rel=0.1)
    assert plan.rows.memory.allocated / GIB == pytest.approx(row["peak_gib"], rel=0.1)


def test_the_fullest_process_sets_the_imbalance() -> None:
    step = [Lengths(2, tokens, tokens) for tokens in (7, 4, 3, 4)]  # 16, 10, 8, 10 tokens: 26 and 18, or 24 and 20
    assert imbalance(step, 1) == 0
    assert imbalance(step, 2) == pytest.approx(24 / 22 - 1)
    assert imbalance(step, 8) == pytest.approx(16 * 8 / 44 - 1)


def test_what_two_gpus_lose_beyond_imbalance_grows_as_a_ring_does() -> None:
    one = {"system": "s", "case": "strong x1", "pairs": 32, "seconds": 4.0, "imbalance": 0.0}
    two = {"system": "s", "case": "strong x2", "pairs": 32, "seconds": 2.2, "imbalance": 0.05}
    rows = [one, two, one | {"system": "other"}]
    assert extrapolated(rows, 32, 2, 0.05) == {"s": round(4 / 2.2, 2)}
    assert extrapolated(rows, 32, 4, 0.1) == {"s": round(4 / (1.1 + 0.1 * 1.5), 2)}
    assert extrapolated(rows, 64, 4, 0.1) == {}
