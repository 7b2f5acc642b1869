"""An untested TRL is refused, with every reason."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest
import transformers
import trl

import wishbone.trainer
from wishbone import DPOTrainer
from wishbone.errors import RequestError
from wishbone.trainer.compatibility import METHODS, check_trl

PASSED_ON = ["args", "kwargs"]


def test_the_installed_version_is_tested() -> None:
    check_trl()


@pytest.mark.parametrize("version", ["1.9.2", "1.17.0", "2.0"])
def test_other_versions_are_refused(version: str) -> None:
    with pytest.raises(RequestError, match=r"install trl>=1\.16,<1\.17"):
        check_trl(version)


def of_upstream(name: str) -> object:
    """What TRL's trainer has under a name, or None."""
    return next((vars(kind)[name] for kind in trl.DPOTrainer.__mro__[:-1] if name in vars(kind)), None)


def overridden() -> dict[str, set[bool]]:
    """Methods of TRL's and transformers' trainers that a class of ours overrides, and whether it reads an argument."""
    ours = [kind for kind in DPOTrainer.__mro__ if kind.__module__.startswith("wishbone.")]
    assert len(ours) > 4  # every class beneath, wherever it stands
    found: dict[str, set[bool]] = {}
    for name, value in [entry for kind in ours for entry in vars(kind).items()]:
        if inspect.isfunction(value) and inspect.isfunction(of_upstream(name)):
            passes_on = list(inspect.signature(value).parameters)[1:] == PASSED_ON
            found.setdefault(name, set()).add(not passes_on)
    return found


def called_privately() -> dict[str, str]:
    """Private methods of those trainers that a module of the trainer calls or hands on, and where."""
    found = {}
    for path in sorted((Path(wishbone.trainer.__file__).parent).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            private = isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
            if private and inspect.isfunction(of_upstream(node.attr)):
                found[node.attr] = f"{path.name}:{node.lineno}"
    return found


def test_every_override_and_every_private_call_is_checked() -> None:
    """Overrides that only pass their arguments on do not depend on them."""
    overrides, calls = overridden(), called_privately()
    dependent = {name for name, reads in overrides.items() if True in reads}
    assert {"_save_checkpoint", "_get_grad_norm", "save_state", "log", "train"} <= dependent
    assert {"_save", "_prepare_inputs"} <= calls.keys() - overrides.keys()
    assert dependent | calls.keys() == METHODS.keys()
    assert overrides.keys() - METHODS.keys() == {
        "create_model_card",
        "create_optimizer",
        "evaluation_loop",
        "predict",
        "prediction_step",
    }


def test_what_functions_read_of_a_trainer_is_there() -> None:
    """Types do not show it: libraries beneath the trainer have none."""
    source = "".join(inspect.getsource(kind) for kind in DPOTrainer.__mro__[:-1])
    known = set(re.findall(r"self\.(\w+)", source)) | set(dir(DPOTrainer))
    read = {
        f"{path.name}:{node.lineno}: {node.attr}": node.attr
        for path in Path(wishbone.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "trainer"
    }
    assert len(read) > 50
    assert [place for place, name in read.items() if name not in known] == []


def test_changed_methods_are_refused_all_at_once() -> None:
    class Changed(trl.DPOTrainer):  # type: ignore[misc]
        def log(self, metrics: object) -> None: ...

        def compute_loss(self, batch: object) -> None: ...

    with pytest.raises(RequestError) as refusal:
        check_trl("1.16.0", Changed)
    assert len(refusal.value.problems) == 2


def test_a_changed_method_of_transformers_is_told_as_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def norm(self: object, model: object) -> None: ...

    def train(self: object, resume_from_checkpoint: object = None, anything: object = None) -> None: ...

    norm.__module__ = train.__module__ = "transformers.trainer"
    monkeypatch.setattr(transformers.Trainer, "_get_grad_norm", norm)
    monkeypatch.setattr(transformers.Trainer, "train", train)  # what follows its first argument is passed on
    with pytest.raises(RequestError, match=r"transformers \S+ Trainer\._get_grad_norm takes \['self', 'model'\], not"):
        check_trl()
