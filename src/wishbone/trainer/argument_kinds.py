"""Arguments of `DPOTrainer` that are of another kind than it takes, each refused with what to give instead.

TRL reads attributes of whatever it is given, so a wrapped model, a class or an optimizer of another model ends in an
`AttributeError` somewhere, or in a run that learns nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from datasets import Dataset, DatasetDict, IterableDataset
from peft import PeftModel
from torch import nn
from torch._dynamo.eval_frame import OptimizedModule
from transformers import PreTrainedModel, TrainerCallback

from wishbone.errors import RequestError, counted_of

logger = logging.getLogger(__name__)


def without_compilation(model: Any, name: str) -> Any:
    """Return the model within `torch.compile(model)`: the step calls its layers, which the compiled form hides."""
    if not isinstance(model, OptimizedModule):
        return model
    logger.warning("%s is compiled: the model within it is used, which the step computes in its own way.", name)
    return model._orig_mod


def kinds_refused(model: Any, ref_model: Any, options: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each argument that is of a wrong kind.

    Args:
        model: as `DPOTrainer` takes it.
        ref_model: the same, or None.
        options: the trainer's other arguments by name.
    """
    problems = [*_model_problem("model", model)] + (
        [] if ref_model is None else [*_model_problem("ref_model", ref_model)]
    )
    for name in ("train_dataset", "eval_dataset"):
        sets = options.get(name)
        many = name == "eval_dataset" and isinstance(sets, Mapping)
        for data in sets.values() if many and isinstance(sets, Mapping) else [sets]:
            problems += _data_problem(name, data)
    callbacks = options.get("callbacks")
    if callbacks is not None and not isinstance(callbacks, list):
        problems.append(f"callbacks is a {type(callbacks).__name__}; give a list of callbacks")
    elif strange := [type(one).__name__ for one in callbacks or () if not _is_callback(one)]:
        problems.append(f"callbacks has a {strange[0]}; its items are TrainerCallback objects")
    optimizers = options.get("optimizers", (None, None))
    if not (isinstance(optimizers, tuple | list) and len(optimizers) == 2):
        problems.append(
            f"optimizers is a {type(optimizers).__name__}; give (optimizer, scheduler), where None is TRL's own"
        )
    return problems


def check_optimizer(model: nn.Module, optimizer: Any) -> None:
    """Refuse an optimizer that has nothing of what is trained; name how much is missing otherwise.

    Args:
        model: the trainer's, with its adapter.
        optimizer: that a script gave, or None.

    Raises:
        RequestError: none of the trained parameters is in it.
    """
    groups = getattr(optimizer, "param_groups", None)
    if not groups:
        return
    held = {id(parameter) for group in groups for parameter in group["params"]}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    missing = [parameter for parameter in trained if id(parameter) not in held]
    if len(missing) == len(trained):
        raise RequestError(
            "the optimizer in optimizers has none of the parameters that are trained, so nothing would be learned: it "
            "was made for another model, or before the adapter was put on; make it for the model that is given, with "
            "its adapter (peft.get_peft_model), and leave peft_config out"
        )
    if missing:
        logger.warning(
            "%s not in the optimizer that was given, and stay as they are.",
            counted_of(len(missing), len(trained), "trained tensor", "is", "are"),
        )


def _model_problem(name: str, model: Any) -> list[str]:
    if isinstance(model, str):
        return []
    if isinstance(model, type):
        return [f"{name} is the class {model.__name__}; give a model: {model.__name__}.from_pretrained(...)"]
    if isinstance(getattr(model, "module", None), PreTrainedModel | PeftModel):
        return [
            f"{name} is wrapped in {type(model).__name__}; give {name}.module, which is wrapped where that is right"
        ]
    if not isinstance(model, PreTrainedModel | PeftModel):
        return [f"{name} is a {type(model).__name__}; give a model of transformers or PEFT, or the name of one"]
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    if getattr(base, "generation_config", None) is None:
        return [f"{name} is a {type(base).__name__}, which writes no text; load it with AutoModelForCausalLM"]
    return []


def _data_problem(name: str, data: Any) -> list[str]:
    if data is None or isinstance(data, Dataset | IterableDataset):
        return []
    if isinstance(data, DatasetDict):
        return [f"{name} is a DatasetDict; give one of its splits: {', '.join(map(repr, data))}"]
    return [
        f"{name} is a {type(data).__name__}; give a Dataset, such as wishbone.data.source.load_pairs(...) makes of "
        "files, lists and names on the hub"
    ]


def _is_callback(one: Any) -> bool:
    """Whether it is one, or a class of them, which transformers constructs."""
    return isinstance(one, TrainerCallback) or (isinstance(one, type) and issubclass(one, TrainerCallback))
