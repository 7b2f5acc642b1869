"""Numbers and words among the options: refused where TRL or transformers would fail on them later, or say nothing.

Text, None where a number is needed, NaN, infinity, fractions of a step: each ends elsewhere in a `TypeError` that names
no option, or in a run that never logs. A misspelled word is often taken for the default. What has no meaning is
refused with the remedy, all at once.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from numbers import Integral, Real
from types import NoneType
from typing import Any, get_args, get_type_hints

from accelerate.utils import DynamoBackend
from transformers import SchedulerType, TrainingArguments
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
from transformers.trainer_utils import IntervalStrategy

from wishbone.errors import RequestError

BOUNDED: dict[str, tuple[Callable[[float], bool], str]] = {
    "learning_rate": (lambda rate: rate >= 0, "0 or more"),
    "weight_decay": (lambda decay: decay >= 0, "0 or more"),
    "adam_beta1": (lambda beta: 0 <= beta < 1, "from 0 to below 1"),
    "adam_beta2": (lambda beta: 0 <= beta < 1, "from 0 to below 1"),
    "adam_epsilon": (lambda epsilon: epsilon > 0, "above 0: it keeps a gradient of 0 from a division by 0"),
    "max_grad_norm": (lambda norm: norm >= 0, "0 or more; 0 does not clip"),
    "neftune_noise_alpha": (lambda noise: noise >= 0, "0 or more, or None for no noise"),
    "warmup_steps": (
        lambda steps: 0 <= steps < 1 or (steps >= 1 and steps.is_integer()),
        "0 or more: a whole number of steps, or a share of all steps below 1",
    ),
    "seed": (lambda seed: 0 <= seed < 2**32, "from 0 to 2**32 - 1"),
    "max_length": (lambda tokens: tokens >= 1, "1 or more, or None for no limit"),
    "precompute_ref_batch_size": (lambda size: size >= 1, "1 or more, or None for per_device_train_batch_size"),
    "dataset_num_proc": (lambda processes: processes >= 0, "1 or more, or None for no processes"),
    "dataloader_num_workers": (lambda workers: workers >= 0, "0 or more"),
    "per_device_train_batch_size": (lambda size: size >= 1, "1 or more"),
    "per_device_eval_batch_size": (lambda size: size >= 1, "1 or more"),
    "gradient_accumulation_steps": (lambda steps: steps >= 1, "1 or more"),
    "beta": (lambda beta: beta >= 0, "0 or more: below 0 the rejected completion would be preferred"),
    "label_smoothing": (lambda share: 0 <= share < 1, "a share of wrong labels, from 0 to below 1"),
    "max_prompt_length": (lambda tokens: tokens >= 1, "1 or more, or None for no limit"),
    "warmup_ratio": (lambda share: 0 <= share <= 1, "a share from 0 to 1, such as 0.1 for a tenth"),
    "guard_steps": (lambda steps: steps >= 1, "1 or more, or None for as often as time allows"),
    "save_minutes": (lambda minutes: minutes > 0, "above 0, or None for no saves by the clock"),
    "ld_alpha": (lambda share: 0 <= share <= 1, "from 0 to 1, or None"),
    "ref_model_mixup_alpha": (lambda share: 0 <= share <= 1, "from 0 to 1"),
}
"""Which values an option may have, and that in words, after "must be"."""
UNBOUNDED = frozenset({"max_grad_norm", "save_minutes"})
"""Options that may be infinite: a norm that is measured and not clipped, never by the clock."""
WORDS_WITHOUT_CHOICES: dict[str, tuple[object, ...]] = {
    "include_for_metrics": ("inputs", "loss"),
    "include_num_input_tokens_seen": ("no", "all", "non_padding", True, False),
    "torch_compile_backend": (None, *(backend.value.lower() for backend in DynamoBackend)),
    "torch_compile_mode": (None, "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
    "truncation_mode": ("keep_start", "keep_end"),
}
"""Words that options take of which transformers and TRL declare no choices, as their documentation has them."""
READ_WITH_STEPS = {"logging_steps": "logging_strategy", "save_steps": "save_strategy"}
"""Numbers that are read with the strategy 'steps' alone, and may be None with another."""
GIVEN_BY_TRAINER = frozenset({"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"})


def numbers_refused(config: TrainingArguments) -> list[str]:
    """Return a sentence for each option that has a value without meaning; whole floats (`1e4`) become integers."""
    problems = []
    for name, kinds in _numeric_options(type(config)).items():
        value = getattr(config, name)
        if float not in kinds and isinstance(value, float) and value.is_integer():
            value = int(value)
            setattr(config, name, value)
        if problem := _number_problem(config, name, value, kinds):
            problems.append(f"{name} {value!r} {problem}")
    return problems


def words_refused(config: TrainingArguments) -> list[str]:
    """Return a sentence for each option, or each entry of a list, that is none of the words it takes."""
    declared = {
        option.name: (option.default, *option.metadata["choices"])
        for option in fields(config)
        if option.metadata.get("choices")
    }
    problems = []
    for name, words in (declared | WORDS_WITHOUT_CHOICES).items():
        value = getattr(config, name)
        if unknown := [word for word in (value if isinstance(value, list) else [value]) if word not in words]:
            known = ", ".join(dict.fromkeys(str(word) for word in words))
            problems.append(f"{name} {unknown[0]!r} is not known: choose one of {known}")
    given = config.optim_args
    if isinstance(given, str) and not all(part.count("=") == 1 for part in given.split(",")):
        problems.append(f"optim_args {given!r} must be written name=value, several with commas between them")
    return problems


def losses_refused(losses: object, weights: object) -> list[str]:
    """Return why `loss_type` or `loss_weights` cannot be read, if so: names, and one finite number for each."""
    if not isinstance(losses, list | tuple) or not all(isinstance(name, str) for name in losses):
        return [f"loss_type {losses!r} must be the name of a loss or a list of names; DPO is 'sigmoid'"]
    if weights is None:
        return []
    if not isinstance(weights, list | tuple) or not all(_is_finite(weight) for weight in weights):
        return [f"loss_weights {weights!r} must be a list of numbers, one for each loss type, or None for 1 each"]
    if len(weights) != len(losses):
        return [f"loss_weights has {len(weights)} values for {len(losses)} loss types"]
    return []


def schedule_refused(kind: object, options: object) -> list[str]:
    """Return a sentence for each of `lr_scheduler_kwargs` that the schedule does not take, or needs and has not."""
    if not isinstance(options, Mapping | NoneType) or kind not in list(SchedulerType):
        return []  # text is read by transformers
    name = SchedulerType(kind)
    if name in (SchedulerType.CONSTANT, SchedulerType.CONSTANT_WITH_WARMUP):
        return []  # they are given none
    parameters = inspect.signature(TYPE_TO_SCHEDULER_FUNCTION[name]).parameters
    taken = {key: one for key, one in parameters.items() if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)}
    own = [key for key in taken if key not in GIVEN_BY_TRAINER]
    problems = []
    if len(taken) == len(parameters) and (unknown := sorted((options or {}).keys() - set(own))):
        problems.append(
            f"lr_scheduler_kwargs has {', '.join(unknown)}, which the schedule {name.value!r} does not take; it takes "
            + (", ".join(own) or "none")
        )
    needed = [key for key in own if taken[key].default is inspect.Parameter.empty]
    if missing := [key for key in needed if key not in (options or {})]:
        given = ", ".join(f"{key!r}: ..." for key in missing)
        problems.append(f"lr_scheduler_type {name.value!r} needs lr_scheduler_kwargs={{{given}}}")
    return problems


def refuse_warmup_without_decay(config: TrainingArguments, steps: int) -> None:
    """Refuse a polynomial schedule of `steps` steps that are all warm-up: it divides by 0 after the last one.

    Raises:
        RequestError: naming the remedy.
    """
    if steps and config.lr_scheduler_type == SchedulerType.POLYNOMIAL and config.get_warmup_steps(steps) == steps:
        raise RequestError(
            f"the warm-up takes all {steps} steps, and the polynomial schedule ends in a division by 0 after them: "
            "set warmup_steps lower, or lr_scheduler_type to constant_with_warmup"
        )


def _number_problem(config: TrainingArguments, name: str, value: Any, kinds: frozenset[type]) -> str | None:
    """What is wrong with a value, after its name; None if nothing is."""
    if value is None:
        strategy = getattr(config, READ_WITH_STEPS.get(name, ""), IntervalStrategy.STEPS)
        if NoneType in kinds or strategy != IntervalStrategy.STEPS:
            return None
        default = type(config).__dataclass_fields__[name].default
        return f"is no number; leave it out for its default, {default!r}"
    if isinstance(value, str):
        return "is text; give a number (in YAML 5.0e-6, as 5e-6 is text there)"
    if not isinstance(value, Real):
        return "is no number; give one"
    if not _is_finite(value) and not (name in UNBOUNDED and float(value) > 0):
        return "is not a finite number; give one"
    if float not in kinds and not isinstance(value, Integral):
        return "must be a whole number"
    allowed, words = BOUNDED.get(name, (lambda _: True, ""))
    return None if allowed(float(value)) else f"must be {words}"


def _is_finite(value: object) -> bool:
    return isinstance(value, Real) and math.isfinite(value)


def _numeric_options(config: type) -> dict[str, frozenset[type]]:
    """The options whose values are numbers, or numbers and None, each with its types."""
    found = {}
    for name, hint in get_type_hints(config).items():
        kinds = frozenset(get_args(hint) or (hint,))
        if kinds & {int, float} and kinds <= {int, float, NoneType}:
            found[name] = kinds
    return found
