"""The planner in JavaScript and in Python, over random situations: the same rows, bytes and offers."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from plan_in_python import MANY, plan_of

from wishbone.planning.gpus import known_gpus
from wishbone.planning.known_models import known_shapes
from wishbone.planning.memory import GIB, MemoryPlan
from wishbone.planning.room import Machine, choose_rows, longest_pair

pytestmark = pytest.mark.skipif(not shutil.which("node"), reason="no Node here: install nodejs, 18 or later")

SOURCE = Path(__file__).parent.parent.parent / "builder" / "src"
PROGRAM = """
const source = process.argv[1];
const { advise } = require(`${source}/advisor.js`);
const { alternatives } = require(`${source}/alternatives.js`);
const { planned, targetOf } = require(`${source}/planner.js`);
const { readSituation } = require(`${source}/situation.js`);
const plans = JSON.parse(require("node:fs").readFileSync(0, "utf8")).map((answers) => {
  const outcome = advise(readSituation(answers));
  const target = targetOf(outcome);
  const plan = planned(outcome.settings, target);
  const offers = plan.fits ? [] : alternatives(outcome.settings, target);
  return {
    ...plan, ...plan.rows, items: plan.memory.items, total: plan.memory.total,
    alternatives: offers.map((offer) => [offer.changes.map((change) => change.join("=")), offer.gpu, offer.memory]),
  };
});
process.stdout.write(JSON.stringify(plans));
"""
ROWS = """
const source = process.argv[1];
const { knownShape } = require(`${source}/known.js`);
const { chooseRows, longestPair } = require(`${source}/room.js`);
const asked = JSON.parse(require("node:fs").readFileSync(0, "utf8"));
const rows = asked.map(({ model, plan, machine, budget, treatment, longest, most }) => {
  const shape = knownShape(model);
  const { memory, kept, ...found } = chooseRows(shape, plan, machine, budget, treatment, longest, most);
  const pair = longestPair(shape, plan, machine, treatment, 0.7);
  return { ...found, total: memory.total, short: kept(longest), pair };
});
process.stdout.write(JSON.stringify(rows));
"""
EXACT = ("fits", "items", "total", "budget", "largest", "keptLayers", "offload", "longest")


def in_javascript(asked: list[dict[str, Any]], program: str = PROGRAM) -> list[dict[str, Any]]:
    command = ["node", "-e", program, str(SOURCE)]
    outcome = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, check=True)
    plans: list[dict[str, Any]] = json.loads(outcome.stdout)
    return plans


def situation(chance: random.Random) -> dict[str, Any]:
    prompt, completion = chance.randint(20, 2000), chance.randint(20, 2000)
    names = list(known_shapes())
    answers = {
        "model": chance.choice(names),
        "data": "p.jsonl",
        "gpu": chance.choice(["none", *known_gpus()]),
        "method": chance.choice(["lora", "lora", "full"]),
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "longest_tokens": (prompt + completion) * chance.choice([1, 2, 10]),
        "pairs": chance.choice([MANY, 400_000]),
        "symptoms": chance.choice([[], [], ["out_of_memory"], ["nan"]]),
    }
    if answers["gpu"] != "none":
        answers["gpus"] = chance.choice([1, 1, 4])
    if chance.random() < 0.2:
        answers |= {"reference": "given", "reference_model": chance.choice([*names, "org/other"])}
    return answers


@pytest.mark.parametrize("situations", [25, pytest.param(60, marks=pytest.mark.long)])
def test_any_situation_has_the_same_plan(situations: int):
    chance = random.Random(5)
    asked = [situation(chance) for _ in range(situations)]
    fitting = 0
    for answers, javascript in zip(asked, in_javascript(asked), strict=True):
        python = plan_of(answers)
        assert {key: javascript[key] for key in EXACT} == {key: python[key] for key in EXACT}, answers
        assert javascript["alternatives"] == python["alternatives"], answers
        assert javascript["steps"] == python["steps"]
        fitting += python["fits"]
        if answers["gpu"] != "none":
            assert javascript["longestSequence"] == pytest.approx(python["longestSequence"], rel=1e-3)
        assert javascript["stepTokens"] == pytest.approx(python["stepTokens"], rel=0.01)
        assert (javascript["seconds"] is None) == (python["seconds"] is None)
        if python["seconds"] is not None:
            assert javascript["seconds"] == pytest.approx(python["seconds"], rel=0.03)
    assert situations / 6 < fitting < situations


def test_rows_are_chosen_alike_for_every_device_budget_and_treatment():
    chance = random.Random(7)
    asked: list[dict[str, Any]] = []
    expected: list[dict[str, Any]] = []
    names = list(known_shapes())
    for _ in range(300):
        model, weights = chance.choice(names), chance.choice(["bf16", "nf4", "f32"])
        kind, treatment = (
            chance.choice(["cuda", "cuda", "cpu"]),
            chance.choice(["auto", "auto", "keep", "recompute", "offload"]),
        )
        memory, longest = chance.uniform(4, 160) * GIB, chance.randint(64, 6000)
        free, most = chance.uniform(0.6, 1.0) * memory, longest * chance.randint(1, 32)
        budget = chance.choice(["auto", "auto", 2048, 8192])
        given = {"weights": weights, "device": kind, "deviceMemory": memory}
        machine = {"kind": kind, "memory": memory, "free": free}
        asked.append(
            {"model": model, "plan": given, "machine": machine, "budget": budget, "treatment": treatment}
            | {"longest": longest, "most": most}
        )
        shape, plan = known_shapes()[model], MemoryPlan(weights, row_tokens=0, device=kind, device_memory=memory)
        rows = choose_rows(shape, plan, Machine(**machine), budget, treatment, longest, most)
        expected.append(
            {"budget": rows.budget, "largest": rows.largest, "keptLayers": rows.kept_layers, "offload": rows.offload}
            | {"total": rows.memory.total, "short": rows.kept(longest)}
            | {"pair": longest_pair(shape, plan, Machine(**machine), treatment, 0.7)}
        )
    assert in_javascript(asked, ROWS) == expected
    partly = [
        rows for rows, one in zip(expected, asked, strict=True) if one["treatment"] == "auto" and rows["keptLayers"]
    ]
    assert len(partly) > 20 and any(rows["offload"] for rows in expected)
