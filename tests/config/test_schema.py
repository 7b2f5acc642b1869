"""The configuration agrees with what it configures, survives writing, and never lets text crash it."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from wishbone.config import RunConfig, dump_config, parse_config
from wishbone.config import schema as s
from wishbone.errors import RequestError

SECTIONS = {name: field.annotation for name, field in RunConfig.model_fields.items()}


def test_every_field_is_described_and_bounded_in_the_json_schema():
    schema = RunConfig.model_json_schema()
    for name in SECTIONS:
        assert schema["properties"][name]["description"]
    fields = {
        f"{name}.{key}": field
        for name, section in SECTIONS.items()
        for key, field in schema["$defs"][section.__name__]["properties"].items()
    }
    assert len(fields) == 62
    for path, field in fields.items():
        assert field["description"].endswith("."), path
        for branch in field.get("anyOf", [field]):
            bounds = {"minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"} & branch.keys()
            assert bounds or branch["type"] not in ("integer", "number") or path == "preference.f_alpha", path
    assert schema["additionalProperties"] is False
    assert fields["training.learning_rate"] == {
        "default": 5e-6,
        "description": "Peak learning rate, reached after the warm-up.",
        "exclusiveMinimum": 0,
        "maximum": 1,
        "title": "Learning Rate",
        "type": "number",
    }


def test_losses_and_divergences_are_those_of_the_objective():
    from wishbone.preference import divergence, losses

    assert set(get_args(s.LossName)) == losses.LOSSES.keys()
    assert set(get_args(s.Divergence)) == set(divergence.DIVERGENCES)
    assert s.DIVERGENCE_LOSSES == losses.F_DIVERGENCE_LOSSES
    assert s.SORTED_LOSSES == losses.COUPLED


def test_defaults_are_those_of_the_objective():
    from dataclasses import asdict

    from wishbone.preference.scores import LossParameters

    ours = s.PreferenceConfig().model_dump()
    for name, value in asdict(LossParameters()).items():
        assert ours[name] == value, name


def test_schedulers_optimizers_and_trackers_are_known_to_the_trainer():
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
    from transformers.trainer_utils import SchedulerType
    from transformers.training_args import OptimizerNames

    assert set(get_args(s.Scheduler)) <= {member.value for member in SchedulerType}
    assert set(get_args(s.Optimizer)) <= {member.value for member in OptimizerNames}
    assert set(get_args(s.Tracker)) == INTEGRATION_TO_CALLBACK.keys()


def test_the_embedded_model_has_one_name():
    from wishbone.model.embedded import EMBEDDED_NAME

    assert s.EMBEDDED_MODEL == EMBEDDED_NAME


def test_configurations_cannot_be_changed():
    config = RunConfig(model={"name": "x"}, data={"train": "y"})
    with pytest.raises(ValidationError, match="frozen"):
        config.training.epochs = 3


def test_conflicts_reach_python_as_well():
    with pytest.raises(ValidationError, match="with label_smoothing 0 the loss exo_pair is infinite"):
        s.PreferenceConfig(loss=["exo_pair"])


def test_rules_across_sections_are_reported_together():
    settings = {
        "model": {"name": "x", "quantization": "nf4"},
        "data": {"train": "y"},
        "adapter": {"method": "full"},
        "training": {"eval_steps": 5},
    }
    with pytest.raises(ValidationError) as refused:
        RunConfig(**settings)
    conflicts = refused.value.errors()[0]["ctx"]["conflicts"]
    assert [conflict.fields[0] for conflict in conflicts] == ["model.quantization", "training.eval_steps"]
    assert "set adapter.method to lora, or model.quantization to none" in conflicts[0].text
    assert RunConfig(**settings | {"adapter": {}, "training": {}}).model.quantization == "nf4"


# any configuration

line = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1)
whole = st.integers(1, 65536)


def number(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, exclude_min=True, exclude_max=True)


SOUND: dict[str, dict[str, Any]] = {
    "model": {
        "name": line,
        "revision": st.none() | line,
        "dtype": st.sampled_from(["auto", "float16"]),
        "trust_remote_code": st.booleans(),
    },
    "adapter": {
        "method": st.sampled_from(["lora", "full"]),
        "rank": st.integers(1, 16384),
        "alpha": st.none() | number(0, 1e300),
        "dropout": number(0, 1),
        "target_modules": st.sampled_from(["all-linear", "language-linear"]) | st.lists(line, min_size=1),
    },
    "data": {
        "train": line,
        "eval": st.none() | line,
        "split": line,
        "max_length": st.none() | st.integers(2, 2**24),
        "columns": st.none() | st.dictionaries(line, st.none() | line),
        "pairs": st.sampled_from(["best_worst", "best_rest", "all"]),
        "system_prompt": st.none() | st.text(st.characters(exclude_categories=("Cs",)), min_size=1),
    },
    "preference": {
        "loss": st.lists(st.sampled_from(["sigmoid", "ipo", "sft", "discopop"]), min_size=1),
        "beta": number(0, 1e300),
        "f_alpha": st.floats(allow_nan=False, allow_infinity=False),
        "ld_alpha": st.none() | st.floats(0, 1),
        "f_divergence": st.sampled_from(get_args(s.Divergence)),
    },
    "training": {
        "learning_rate": number(0, 1),
        "epochs": number(0, 100_000),
        "max_steps": st.none() | st.integers(1, 10**9),
        "seed": st.integers(0, 2**32 - 1),
        "token_budget": st.just("auto") | st.integers(2, 2**24),
        "optimizer": st.sampled_from(get_args(s.Optimizer)),
    },
    "output": {"dir": st.none() | line, "report_to": st.lists(st.sampled_from(get_args(s.Tracker)))},
}


@pytest.mark.slow
@given(st.fixed_dictionaries({name: st.fixed_dictionaries(fields) for name, fields in SOUND.items()}))
@settings(max_examples=100, deadline=None)
def test_any_configuration_survives_writing_and_reading(values: dict[str, Any]):
    config = RunConfig.model_validate(values)
    text = dump_config(config)
    assert parse_config(text) == config
    assert yaml.safe_load(text) == config.model_dump()  # other readers of YAML see the same values


@pytest.mark.slow
@pytest.mark.parametrize("name", ["1e-5", "1.5", "no", "on", "null", "~", "true", "1_000", "0x1f", "012", "08", "1:30", "2001-01-01", "=", "<<", ".inf", "- a", "a: b", "#", "'", '"', " a ", "\ufeff", "é", "[x]", "{", "&a", "*a", "!a", "%a", "@a", "`a"])  # fmt: skip # noqa: E501
def test_text_that_looks_like_something_else_stays_text(name: str):
    config = RunConfig(model={"name": name, "revision": name}, data={"train": "x"})
    assert parse_config(dump_config(config)).model.name == name
    assert yaml.safe_load(dump_config(config))["model"]["revision"] == name


# any text

words = st.sampled_from(
    ["model", "data", "preference", "training", "name", "loss", "beta", ":", ": ", "\n", "\n  ", "- ", "[", "]",
     "{", "}", ",", "&a", "*a", "<<", "!!int", "!x", "|", ">", "'", '"', "\\", "\t", "#", "---", "...", "%YAML 1.1",
     "1e-5", "-1", ".inf", ".nan", "null", "yes", "2001-99-99", "0b1", "1:99", "\x85", "\ufeff", "sigmoid", "?", "? "]
)  # fmt: skip


@pytest.mark.slow
@given(
    st.text() | st.lists(words | st.text(max_size=3)).map("".join), st.lists(st.text() | st.lists(words).map("".join))
)
@settings(max_examples=150, deadline=None)
def test_any_text_is_a_configuration_or_a_wrong_request(text: str, overrides: list[str]):
    try:
        assert isinstance(parse_config(text, overrides), RunConfig)
    except RequestError as error:
        assert error.problems
        assert all(problem.isprintable() for problem in error.problems)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)
keys = st.sampled_from(sorted({key for section in SECTIONS.values() for key in section.model_fields}))


@pytest.mark.slow
@given(st.dictionaries(st.sampled_from(sorted(SECTIONS)), st.dictionaries(keys, values) | values))
@settings(max_examples=150, deadline=None)
def test_any_value_in_any_field_is_accepted_or_explained(values: dict[str, Any]):
    text = yaml.safe_dump(values)
    try:
        parse_config(text)
    except RequestError as error:
        assert all(problem.isprintable() for problem in error.problems)
