"""What a caller asks of `DPOTrainer`, read and checked before TRL sees any of it.

TRL refuses two things that Wishbone's step can do: an adapter on the output head, and a reference that follows an
adapter. Here they are taken out of what TRL gets to see and noted, so that the step is built with them afterwards.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset, is_caching_enabled
from peft import PeftConfig, PeftModel, PeftType
from torch import nn
from transformers import PreTrainedModel, TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from trl.trainer.utils import create_model_from_path

from wishbone.config.trackers import missing_trackers
from wishbone.errors import RequestError, encodable
from wishbone.model.adapter import modules_trained_whole
from wishbone.model.adapter_names import absent_names
from wishbone.model.eight_bit_linear import refuse_readers_of_codes
from wishbone.model.load import resolve_model
from wishbone.paths import user_path
from wishbone.preference.divergence import DIVERGENCES
from wishbone.preference.losses import LOSSES, check_losses
from wishbone.preference.scores import LossParameters
from wishbone.reference.reference import has_empty_adapter
from wishbone.trainer.argument_kinds import kinds_refused, without_compilation
from wishbone.trainer.arguments import DPOConfig
from wishbone.trainer.head_adapter import adapts_head, add_adapter_on_head, head_is_adapted
from wishbone.trainer.ignored_options import name_options_without_effect
from wishbone.trainer.legacy import modern_arguments
from wishbone.trainer.one_gpu import placement, refuse_split, with_one_gpu
from wishbone.trainer.start import (
    reference_of_start,
    refuse_precomputed_elsewhere,
    refuse_shared_reference,
    refuse_untrainable,
)

SPLIT_AT_RANDOM = (
    "init_lora_weights=%r splits the weights of the base at random, so an adapter that is saved fits no base but the "
    "one in memory: PEFT splits again where it loads one. Save model.merge_and_unload(), or use 'pissa'."
)
logger = logging.getLogger(__name__)

WITH_MORE_INPUTS = frozenset({PeftType.POLY, PeftType.MULTITASK_PROMPT_TUNING, PeftType.CPT})
"""Adapters whose forward pass takes the number of a task, or computes a loss of its own from labels."""


@dataclass(frozen=True)
class Request:
    """Arguments for TRL's trainer, and those that only Wishbone reads.

    Attributes:
        model: the model or its name, as TRL takes it.
        args: the configuration.
        options: TRL's other arguments by name.
        head_adapted: whether an adapter is on the model's output head.
        synchronized: whether the reference follows the policy's adapter; `args` says that it does not.
        adapter_is_new: whether the adapter is that of `peft_config`, put on by us or by TRL.
        ref_model: the second model that TRL gets as the reference, or None.
        ref_model_given: whether the user gave it.
    """

    model: Any
    args: DPOConfig
    options: dict[str, Any]
    head_adapted: bool
    synchronized: bool
    adapter_is_new: bool
    ref_model: Any
    ref_model_given: bool

    @property
    def starts_as_reference(self) -> bool:
        """Whether the model has an adapter that adds nothing yet, so that no copy of it will be read."""
        return isinstance(self.model, PeftModel) and has_empty_adapter(self.model)


def read_request(model: Any, ref_model: Any, args: TrainingArguments | None, options: dict[str, Any]) -> Request:
    """Read the arguments of a trainer, those of older versions of TRL too, and check what can be checked now.

    Args:
        model: a model or the name of one; it gets the adapter of `peft_config` if that one is on the output head.
        ref_model: a second model as the reference, or the name of one, or None.
        args: TRL's or Wishbone's `DPOConfig`, transformers' `TrainingArguments`, or None.
        options: the trainer's other arguments by name.

    Raises:
        RequestError: arguments that do not exist, contradict each other, or ask for what nobody computes.
    """
    model, ref_model = without_compilation(model, "model"), without_compilation(ref_model, "ref_model")
    model, ref_model = (str(given) if isinstance(given, Path) else given for given in (model, ref_model))
    config, options = modern_arguments(args, options, model)
    peft_config = options.get("peft_config")
    if problems := kinds_refused(model, ref_model, options):
        raise RequestError(problems)
    problems = [
        *_unknown_trackers(config),
        *_without_pairs(options),
        *_no_directory(config),
        *_without_lengths(config, options.get("train_dataset")),
    ]
    if not isinstance(peft_config, PeftConfig | None):
        problems.append(f"peft_config is a {type(peft_config).__name__}; give one of PEFT's, such as peft.LoraConfig")
    if problems:
        raise RequestError(problems)
    if not set(config.loss_type) <= LOSSES.keys() or config.f_divergence_type not in DIVERGENCES:
        check_losses(config.loss_type, None, LossParameters(f_divergence=config.f_divergence_type))
    config = name_options_without_effect(config)
    model, ref_model = resolved(model), resolved(ref_model)
    if isinstance(ref_model, str):
        ref_model = _loaded_reference(ref_model, model, config)
    _refuse_adapter_of_another_name(model, ref_model)
    _refuse_adapters_without_logps(model, peft_config, config)
    refuse_readers_of_codes(model, {"default": peft_config})
    _refuse_modules_in_codes(model, peft_config)
    initialization = getattr(peft_config, "init_lora_weights", None)
    if isinstance(initialization, str) and initialization.startswith("pissa_niter_"):
        logger.warning(SPLIT_AT_RANDOM, initialization)
    refuse_shared_reference(model, ref_model)
    for one in (model, ref_model):
        refuse_split(one)
    if peft_config is None:
        refuse_untrainable(model)
    elif config.precompute_ref_log_probs and ref_model is None:
        refuse_precomputed_elsewhere(peft_config)
    if adapts_head(model, peft_config, config.use_liger_kernel):
        model = add_adapter_on_head(model, options.pop("peft_config"), config.seed)
    head_adapted = head_is_adapted(model, config.use_liger_kernel)
    has_adapter = isinstance(model, PeftModel) or bool(options.get("peft_config"))
    synchronized = config.sync_ref_model and has_adapter
    _refuse_stale_values(config, head_adapted=head_adapted, synchronized=synchronized)
    _refuse_values_of_one_process(config, options.get("train_dataset"))
    config = config.changed({"sync_ref_model": False}) if synchronized else config
    config = with_one_gpu(config, model)
    adapter_is_new = peft_config is not None
    start = reference_of_start(model, ref_model, config, adapter_added=adapter_is_new)
    return Request(model, config, options, head_adapted, synchronized, adapter_is_new, start, ref_model is not None)


def resolved(model: Any) -> Any:
    """Return what TRL takes for a model: names that only Wishbone resolves are replaced by their directory.

    These are the embedded model's and GGUF files, which are converted first; directories and hub ids stay as they are.

    Raises:
        RequestError: a path that does not exist or that holds an adapter alone, or a name that no hub takes.
    """
    if not isinstance(model, str):
        return model
    name = resolve_model(model)
    holds = [(Path(name) / file).is_file() for file in ("adapter_config.json", "config.json")]
    if holds == [True, False]:
        raise RequestError(
            f"{model!r} holds an adapter and no model: load its base model, give both to PeftModel.from_pretrained "
            "(with is_trainable=True where it is the one to train), and give what that returns"
        )
    return name


def _loaded_reference(name: str, model: Any, args: DPOConfig) -> nn.Module:
    """Load a reference that is given by its name, as TRL loads one: in the dtype of the model."""
    settings = placement(args) | (args.model_init_kwargs or {})
    settings.setdefault("trust_remote_code", args.trust_remote_code)
    if isinstance(model, PreTrainedModel | PeftModel):
        settings.setdefault("dtype", model.dtype)
    loaded: nn.Module = create_model_from_path(name, **settings)
    return loaded


def _unknown_trackers(config: DPOConfig) -> list[str]:
    """Return one sentence for each tracker that transformers does not have or that is not installed."""
    names = [name for name in config.report_to or [] if isinstance(name, str)]
    known = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
    return missing_trackers(names, "report_to") + [
        f"report_to names {name!r}, which is no tracker; choose of {known}, or leave it out"
        for name in names
        if name not in INTEGRATION_TO_CALLBACK
    ]


def _without_lengths(config: DPOConfig, dataset: Any) -> list[str]:
    """Return a sentence if batches are to be made by lengths that the data set has not, or loses on its way."""
    if config.train_sampling_strategy not in ("group_by_length", "batch_rebalance") or not isinstance(dataset, Dataset):
        return []
    if config.length_column_name in dataset.column_names and not config.remove_unused_columns:
        return []
    return [
        f"train_sampling_strategy={config.train_sampling_strategy!r} reads lengths from a column of train_dataset: add "
        f"{config.length_column_name!r} and set remove_unused_columns=False, or leave it out, since rows are packed by "
        "length in any case"
    ]


def _without_pairs(options: dict[str, Any]) -> list[str]:
    """Return one sentence for each data set that has no rows, or no columns of pairs."""
    heldout = options.get("eval_dataset")
    sets = {"train_dataset": options.get("train_dataset")}
    if isinstance(heldout, Mapping):
        if not heldout:
            return ["eval_dataset is a dict without data sets; leave it out"]
        sets |= {f"eval_dataset[{name!r}]": dataset for name, dataset in heldout.items()}
    else:
        sets["eval_dataset"] = heldout
    problems = []
    for name, dataset in sets.items():
        columns = set((dataset.column_names or ()) if isinstance(dataset, Dataset | IterableDataset) else ())
        if isinstance(dataset, Dataset) and not len(dataset):
            out = ", or leave it out" * (name != "train_dataset")
            problems.append(f"{name} has no rows; check what it was filtered by{out}")
        elif columns and not columns >= {"chosen", "rejected"} and not columns >= {"chosen_ids", "rejected_ids"}:
            single = " (KTO's rows of single answers are no pairs)" * (columns >= {"completion", "label"})
            problems.append(
                f"{name} has the columns {', '.join(sorted(columns))}, and pairs have prompt, chosen and rejected"
                f"{single}; wishbone.data.source.load_pairs reads other layouts"
            )
    return problems


def _no_directory(config: DPOConfig) -> list[str]:
    """Return why `output_dir` cannot be written; otherwise a run would fail at its first checkpoint.

    Raises:
        RequestError: as `user_path`.
    """
    place = user_path(config.output_dir or ".")
    if os.path.lexists(place) and not place.is_dir():
        return [f"output_dir {encodable(place)!r} is a file, or a link to nothing; name a directory"]
    if encodable(place) != str(place):
        return [f"output_dir {encodable(place)!r} is not text in UTF-8, which model cards are written in; name another"]
    return []


def _refuse_adapter_of_another_name(model: object, ref_model: object) -> None:
    """Refuse a model whose adapter TRL would not find."""
    if isinstance(model, PeftModel) and ref_model is None and "default" not in model.peft_config:
        raise RequestError(
            f"the model's adapter is called {', '.join(map(repr, model.peft_config))}, and the one that is trained and "
            "copied as the reference is called 'default': load it with adapter_name='default', or give a ref_model"
        )


def _refuse_adapters_without_logps(model: object, added: PeftConfig | None, config: DPOConfig) -> None:
    """Refuse kinds of adapters whose forward pass neither TRL nor the step can use."""
    kinds = {given.peft_type for given in (model.peft_config.values() if isinstance(model, PeftModel) else ())}
    kinds |= {added.peft_type} if added is not None else set()
    if PeftType.ADAPTION_PROMPT in kinds:
        raise RequestError(
            "adaption prompts replace the attention of the model, and TRL cannot read log-probabilities from them: "
            "choose another adapter, such as LoRA or IA3"
        )
    if needing := kinds & WITH_MORE_INPUTS:
        raise RequestError(
            f"{', '.join(sorted(kind.value for kind in needing))} needs more inputs than tokens (task_ids, or "
            "labels of its own), which preference pairs do not have: choose another adapter, such as LoRA"
        )
    if PeftType.PREFIX_TUNING in kinds and config.gradient_checkpointing:
        raise RequestError(
            "prefix tuning puts keys and values before the prompt, which gradient checkpointing drops: set "
            "gradient_checkpointing=False, or choose another adapter"
        )


def _refuse_modules_in_codes(model: object, config: PeftConfig | None) -> None:
    """Refuse to train modules whole that hold codes, and name those that do not exist, over which PEFT passes."""
    if not isinstance(model, PreTrainedModel) or config is None:
        return
    unknown, quantized = modules_trained_whole(model, getattr(config, "modules_to_save", None) or ())
    if quantized:
        raise RequestError(quantized)
    for sentence in unknown + absent_names(model, config):
        logger.warning("peft_config: %s.", sentence)


def _refuse_stale_values(config: DPOConfig, *, head_adapted: bool, synchronized: bool) -> None:
    """Refuse precomputed reference values where they would be wrong."""
    if not config.precompute_ref_log_probs:
        return
    problems = []
    if synchronized:
        problems.append("sync_ref_model moves the reference that precompute_ref_log_probs takes for fixed; choose one")
    if head_adapted:
        problems.append(
            "precompute_ref_log_probs runs TRL's own path, which has no adapters on the output head; leave it out: "
            "reference values are kept for later epochs and runs as they are computed"
        )
    if problems:
        raise RequestError(problems)


def _refuse_values_of_one_process(config: DPOConfig, data: Any) -> None:
    """Refuse precomputed reference values in several processes where the others do not find the file of the first."""
    if not config.precompute_ref_log_probs or config.world_size == 1:
        return
    if not getattr(data, "cache_files", None) or not is_caching_enabled():
        raise RequestError(
            f"precompute_ref_log_probs: TRL writes values beside the data set's files, where all {config.world_size} "
            "processes read them, and this data set has no files; load it from files with caching on, or leave "
            "the option out: reference values are computed in the step, and kept"
        )
