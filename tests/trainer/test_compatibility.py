"""An untested TRL is refused, with every reason."""

from __future__ import annotations

import inspect

import pytest
import trl

from wishbone import DPOTrainer
from wishbone.errors import RequestError
from wishbone.trainer.compatibility import OVERRIDDEN, check_trl
from wishbone.trainer.scoring import ScoringTrainer
from wishbone.trainer.sharded_trainer import ShardedTrainer
from wishbone.trainer.tokenizing import TokenizingTrainer

PASSED_ON = ["args", "kwargs"]


def test_the_installed_version_is_tested() -> None:
    check_trl()


@pytest.mark.parametrize("version", ["1.9.2", "1.17.0", "2.0"])
def test_other_versions_are_refused(version: str) -> None:
    with pytest.raises(RequestError, match=r"install trl>=1\.16,<1\.17"):
        check_trl(version)


def test_signatures_of_all_overridden_methods_are_checked() -> None:
    """Those that only pass their arguments on do not depend on them: `train`, `predict` and others."""
    beneath = trl.DPOTrainer.__mro__[:-1]
    ours = (TokenizingTrainer, ShardedTrainer, ScoringTrainer, DPOTrainer)
    own = {name: value for kind in ours for name, value in vars(kind).items()}
    methods = {
        name for name, value in own.items() if inspect.isfunction(value) and any(name in vars(kind) for kind in beneath)
    }
    passing_on = {n for n in methods if list(inspect.signature(getattr(DPOTrainer, n)).parameters)[1:] == PASSED_ON}
    assert methods - passing_on == OVERRIDDEN.keys()
    assert passing_on == {"train", "predict", "create_optimizer", "evaluation_loop"}


def test_changed_methods_are_refused_all_at_once() -> None:
    class Changed(trl.DPOTrainer):  # type: ignore[misc]
        def log(self, metrics: object) -> None: ...

        def compute_loss(self, batch: object) -> None: ...

    with pytest.raises(RequestError) as refusal:
        check_trl("1.16.0", Changed)
    assert len(refusal.value.problems) == 2
