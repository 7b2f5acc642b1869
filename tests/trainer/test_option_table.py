"""The tables of docs/migrate-from-trl.md list every option there is, and none that there is not."""

from __future__ import annotations

import inspect
import re
from collections.abc import Set
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path

import pytest
import transformers
import trl
from packaging.version import Version
from transformers import TrainingArguments
from trl.trainer.dpo_trainer import DPOTrainer as TRLDPOTrainer

import wishbone
from wishbone.trainer import sharding, trl_path

pytestmark = pytest.mark.documents
PAGE = (Path(__file__).parents[2] / "docs" / "migrate-from-trl.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `(\w+)`(?: \(transformers (<|>=) ([\d.]+)\))? \| ([^|]+) \| ([^|]*)\|$")
PATH = re.compile(
    r"(Wishbone's step|transformers'|TRL's path when [^;]+|refused when [^;]+)(; (TRL's path|refused) when [^;]+)*"
)


@dataclass(frozen=True)
class Row:
    """One option of a table; `bound` limits the versions of transformers that have it."""

    name: str
    relation: str
    bound: str
    path: str

    @property
    def expected(self) -> bool | None:
        """Whether the installed transformers has it; None if the table does not say."""
        if not self.bound:
            return True
        newer = Version(transformers.__version__) >= Version(self.bound)
        return (True if newer else None) if self.relation == ">=" else (False if newer else None)


def rows(table: str) -> list[Row]:
    text = PAGE.partition(f"<!-- options: {table} -->\n")[2].partition("\n\n")[0]
    lines = text.splitlines()[2:]
    found = [ROW.fullmatch(line) for line in lines]
    assert all(found), [line for line, row in zip(lines, found, strict=True) if not row]
    return [Row(row[1], row[2] or "", row[3] or "", row[4]) for row in found if row]


def names(config: type) -> set[str]:
    return {option.name for option in fields(config)}


def default(option: Field[object]) -> object:
    return option.default if option.default_factory is MISSING else option.default_factory()


def trls_own() -> set[str]:
    """Options that TRL declares, and those of transformers' that it declares anew."""
    declared = {
        name
        for c in trl.DPOConfig.__mro__
        if c.__module__.startswith("trl.")
        for name in vars(c).get("__annotations__", {})
    }
    return {name for name in declared & names(trl.DPOConfig) if not name.startswith("_")}


def check(table: str, there: Set[str]) -> None:
    """Fail unless the table has what is there, once, and nothing that the installed versions lack."""
    listed = rows(table)
    assert len({row.name for row in listed}) == len(listed)
    assert there - {row.name for row in listed} == set(), "options that the table lacks"
    assert {row.name for row in listed if row.expected} - there == set(), "rows of options that do not exist"
    assert {row.name for row in listed if row.expected is False} & there == set(), "rows with a wrong version"


def test_options_of_trl() -> None:
    check("trl", trls_own())


def test_options_of_transformers() -> None:
    check("transformers", names(TrainingArguments) - trls_own())
    assert names(trl.DPOConfig) == names(TrainingArguments) | trls_own()


def test_arguments_of_the_trainer() -> None:
    there = set(inspect.signature(TRLDPOTrainer.__init__).parameters) - {"self"}
    check("trainer", there)


def test_options_of_wishbone() -> None:
    check("wishbone", names(wishbone.DPOConfig) - names(trl.DPOConfig))


@pytest.mark.parametrize("table", ["trl", "transformers", "trainer", "wishbone"])
def test_every_row_names_a_path(table: str) -> None:
    for row in rows(table):
        assert PATH.fullmatch(row.path), row


def test_a_changed_default_has_its_row() -> None:
    ours, theirs = ({option.name: default(option) for option in fields(c)} for c in (trl.DPOConfig, TrainingArguments))
    changed = {name for name in theirs if ours[name] != theirs[name] and name != "accelerator_config"}
    assert changed <= {row.name for row in rows("trl")}


def test_a_missing_row_and_a_wrong_row_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError, match="options that the table lacks"):
        check("trl", trls_own() | {"new_option"})
    with pytest.raises(AssertionError, match="rows of options that do not exist"):
        check("trl", trls_own() - {"beta"})
    monkeypatch.setattr(transformers, "__version__", "5.0.0")
    old = {row.name for row in rows("transformers") if row.expected is None}
    assert {"warmup_ratio", "group_by_length", "train_sampling_strategy", "activation_checkpointing"} <= old


def test_every_reason_for_trls_path_is_listed() -> None:
    source = inspect.getsource(trl_path.trl_path_reason)
    listed = re.findall(
        r"^\| ([^|]+) \| ", PAGE.partition("| Reason, as it is logged")[2].partition("\n\n")[0], re.MULTILINE
    )
    reasons = re.findall(r'^        "([^"]+)": ', source, re.MULTILINE)
    for further in (trl_path.noise_reason, sharding.why_not_sharded_in_step):
        reasons += re.findall(r'return "([^"]+)"', inspect.getsource(further))
    assert len(reasons) > 10
    assert [reason for reason in reasons if reason not in listed] == []
    spelled = [reason for reason in listed if "..." not in reason and not reason.startswith("---")]
    assert [reason for reason in spelled if reason not in reasons] == []
    for family in ("LOMO", "AdaLOMO", "GaLore", "APOLLO"):
        assert family in PAGE and any(family.lower() in name for name in trl_path.STEPS_IN_BACKWARD)
