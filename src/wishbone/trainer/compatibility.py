"""Checks that the installed TRL is one that this trainer was tested with, before a trainer is constructed.

`DPOTrainer` overrides some methods of TRL's trainer, most of which are transformers' own, and calls private ones. Both
libraries may change them without notice. An untested TRL is refused, and so is a method with different parameters.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import transformers
import trl
from packaging.version import Version
from trl.trainer.dpo_trainer import DPOTrainer as TRLDPOTrainer

from wishbone.errors import RequestError

TESTED = (Version("1.16"), Version("1.17"))
"""The oldest tested version, and the first that is not."""

REST = "..."
"""Stands for the parameters that an override passes on as they are, whatever they are."""

METHODS: dict[str, list[str]] = {
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
    "get_total_train_batch_size": ["self", "args"],
    "training_step": ["self", "args", "kwargs"],
    "create_scheduler": ["self", "num_training_steps", "optimizer"],
    "get_train_dataloader": ["self"],
    "create_accelerator_and_postprocess": ["self"],
    "save_model": ["self", "output_dir", "_internal_call"],
    "save_state": ["self"],
    "train": ["self", "resume_from_checkpoint", REST],
    "_get_grad_norm": ["self", "model", "grad_norm"],
    "_get_output_dir": ["self", "trial"],
    "_init_training_state": ["self", "max_steps", REST],
    "_load_from_checkpoint": ["self", "resume_from_checkpoint", "model"],
    "_move_model_to_device": ["self", "model", "device"],
    "_prepare_inputs": ["self", "inputs"],
    "_push_from_checkpoint": ["self", "checkpoint_folder"],
    "_run_epoch": ["self", REST],
    "_save": ["self", "output_dir", "state_dict"],
    "_save_checkpoint": ["self", "model", "trial"],
    "_track_num_input_tokens": ["self", "inputs"],
}
"""Parameters of methods that are overridden with arguments of their own, and of private ones that are called."""


def by_name(positional: Sequence[Any]) -> dict[str, Any]:
    """Return the arguments of TRL's trainer that follow `data_collator`, given without names, by their names."""
    names = METHODS["__init__"][5 : 5 + len(positional)]
    return dict(zip(names, positional, strict=True))


def check_trl(version: str = trl.__version__, trainer: type = TRLDPOTrainer) -> None:
    """Check that TRL's version and the parameters of the methods that `METHODS` names are the tested ones.

    Raises:
        RequestError: naming the version found, the versions tested, and every method whose parameters differ.
    """
    lowest, below = TESTED
    tested = f"install trl>={lowest},<{below}"
    problems = []
    if not lowest <= Version(version) < below:
        problems.append(f"TRL {version} is not tested: {tested}")
    for name, expected in METHODS.items():
        method = getattr(trainer, name, None)
        found = list(inspect.signature(method).parameters) if method else None
        if found is None or not _as_tested(found, expected):
            of_transformers = getattr(method, "__module__", "").startswith("transformers.")
            library, remedy = f"TRL {version}'s DPOTrainer", tested
            if of_transformers:
                library = f"transformers {transformers.__version__}'s Trainer"
                remedy = "install a version of transformers that docs/versions.md names"
            problems.append(f"{library}.{name} takes {found}, not {expected}: {remedy}")
    if problems:
        raise RequestError(problems)


def _as_tested(found: list[str], expected: list[str]) -> bool:
    if expected[-1] == REST:
        return found[: len(expected) - 1] == expected[:-1]
    return found == expected
