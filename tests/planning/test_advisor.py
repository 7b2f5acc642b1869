"""From answers to settings, through the known models, the known GPUs and the memory planner."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from wishbone.config.load import parse_config
from wishbone.config.rules import rule_book
from wishbone.config.targets import write
from wishbone.errors import RequestError
from wishbone.planning.advisor import advise, shape_of
from wishbone.planning.known_models import known_shape, known_shapes
from wishbone.planning.situation import read_situation

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "advice-situations.json").read_text())["vectors"]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_situations(vector: dict[str, Any]):
    advice = advise(read_situation(vector["situation"]))
    assert {name: advice.settings[name] for name in vector["settings"]} == vector["settings"]
    assert [rule.id for rule in advice.warnings] == vector["warnings"]
    assert set(advice.facts) == set(rule_book().facts)
    if advice.facts["target"] == "wishbone":
        parse_config(write("wishbone", "yaml", advice.outcome))


def test_what_does_not_fit_is_said_and_what_fits_is_not():
    """Over all known models on three GPUs: a warning exactly where NF4 needs more than there is room for."""
    for model in known_shapes():
        for gpu in ("T4", "RTX 4090", "H200"):
            advice = advise(read_situation({"model": model, "data": "d", "gpu": gpu}))
            short = advice.facts["least_nf4_gib"] > advice.settings["script.room_gib"]
            assert ("warn-memory" in {rule.id for rule in advice.warnings}) == short, (model, gpu)
            assert short or advice.settings["script.least_gib"] <= advice.settings["script.room_gib"], (model, gpu)


def test_a_shape_that_is_given_is_the_one():
    situation = read_situation({"model": "unknown", "data": "d"})
    shape = known_shape("Qwen/Qwen3-8B")
    assert advise(situation, shape).facts["model_billion"] == 8.19


def test_a_size_alone_takes_the_nearest_model_above():
    sizes = sorted(shape.parameters for shape in known_shapes().values())

    def parameters(billion: float) -> int:
        return shape_of(read_situation({"model": "?", "data": "d", "parameters_billion": billion})).parameters

    for below, above in pairwise(sizes):
        if above > below:
            assert parameters((below + 1) / 1e9) == above
    assert parameters(5000.0) == sizes[-1]


def test_what_is_unknown_is_said_at_once():
    with pytest.raises(RequestError) as refused:
        advise(read_situation({"model": "Qwen/Qwen3-9B", "data": "d", "gpu": "RTX 4091"}))
    assert [problem.partition(":")[0] for problem in refused.value.problems] == ["--gpu", "--model"]
    assert "did you mean Qwen/Qwen3-" in refused.value.problems[1]


def test_a_directory_tells_its_shape(tmp_path: Path):
    config = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
              "num_attention_heads": 4, "vocab_size": 1000, "tie_word_embeddings": True}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    shape = shape_of(read_situation({"model": str(tmp_path), "data": "d", "parameters_billion": 70.0}))
    assert (shape.hidden, shape.layers) == (64, 2)
