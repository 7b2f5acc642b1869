"""Checks that the installed TRL is one that this trainer was tested with, before a trainer is constructed.

`DPOTrainer` overrides a few of TRL's methods and reads a few of its private attributes, which TRL may change without
notice. An untested version is refused, and so is a method with different parameters.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import trl
from packaging.version import Version
from trl.trainer.dpo_trainer import DPOTrainer as TRLDPOTrainer

from wishbone.errors import RequestError

TESTED = (Version("1.16"), Version("1.17"))
"""The oldest tested version, and the first that is not."""

OVERRIDDEN: dict[str, list[str]] = {
    "__init__": [
        "self",
        "model",
        "ref_model",
        "args",
        "data_collator",
        "train_dataset",
        "eval_dataset",
        "processing_class",
        "compute_metrics",
        "callbacks",
        "optimizers",
        "quantization_config",
        "peft_config",
    ],
    "_prepare_dataset": ["self", "dataset", "processing_class", "args", "dataset_name"],
    "log": ["self", "logs", "start_time"],
    "compute_loss": ["self", "model", "inputs", "return_outputs", "num_items_in_batch"],
    "compute_ref_log_probs": ["self", "model", "inputs"],
    "floating_point_ops": ["self", "inputs"],
    "training_step": ["self", "args", "kwargs"],
    "create_scheduler": ["self", "num_training_steps", "optimizer"],
    "get_train_dataloader": ["self"],
    "create_accelerator_and_postprocess": ["self"],
    "save_model": ["self", "output_dir", "_internal_call"],
    "_load_from_checkpoint": ["self", "resume_from_checkpoint", "model"],
}
"""Parameters of the methods that are overridden and called with arguments of their own."""


def by_name(positional: Sequence[Any]) -> dict[str, Any]:
    """Return the arguments of TRL's trainer that follow `data_collator`, given without names, by their names."""
    names = OVERRIDDEN["__init__"][5 : 5 + len(positional)]
    return dict(zip(names, positional, strict=True))


def check_trl(version: str = trl.__version__, trainer: type = TRLDPOTrainer) -> None:
    """Check that TRL's version and the signatures of the overridden methods are the tested ones.

    Raises:
        RequestError: naming the version found, the versions tested, and every method whose parameters differ.
    """
    lowest, below = TESTED
    problems = []
    if not lowest <= Version(version) < below:
        problems.append(f"TRL {version} is not tested: install trl>={lowest},<{below}")
    for name, expected in OVERRIDDEN.items():
        method = getattr(trainer, name, None)
        found = list(inspect.signature(method).parameters) if method else None
        if found != expected:
            problems.append(
                f"TRL {version}'s DPOTrainer.{name} takes {found}, not {expected}: install trl>={lowest},<{below}"
            )
    if problems:
        raise RequestError(problems)
