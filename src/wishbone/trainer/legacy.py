"""Arguments that older versions of TRL's `DPOTrainer` took, and that notebooks still pass.

Before TRL 1.0 the trainer took `beta`, `max_length` and others beside `args`, called the tokenizer `tokenizer`, and
accepted transformers' `TrainingArguments` as `args`. Here such settings move into the `DPOConfig`, where they replace
what it says, and the tokenizer becomes the `processing_class`.
"""

from __future__ import annotations

import difflib
import inspect
import logging
from collections.abc import Collection
from dataclasses import fields
from typing import Any

from transformers import TrainingArguments
from trl import DPOTrainer as TRLDPOTrainer

from wishbone.config.former_options import successor
from wishbone.errors import RequestError
from wishbone.trainer.arguments import DPOConfig

SETTINGS = frozenset(
    {
        "beta",
        "dataset_num_proc",
        "disable_dropout",
        "f_divergence_type",
        "label_smoothing",
        "ld_alpha",
        "loss_type",
        "loss_weights",
        "max_length",
        "max_prompt_length",
        "model_init_kwargs",
        "pad_token",
        "padding_free",
        "precompute_ref_batch_size",
        "precompute_ref_log_probs",
        "ref_model_mixup_alpha",
        "ref_model_sync_steps",
        "sync_ref_model",
        "truncation_mode",
        "use_weighting",
    }
)
"""Names that moved from the trainer into `DPOConfig`."""

MEANINGLESS = frozenset({"is_encoder_decoder", "label_pad_token_id", "padding_value"})
"""Arguments about what no longer exists: padding values, and encoder-decoder models."""

logger = logging.getLogger(__name__)


def modern_arguments(args: Any, options: dict[str, Any], model: Any) -> tuple[DPOConfig, dict[str, Any]]:
    """Return the configuration and the remaining keyword arguments of a trainer, as TRL takes them today.

    Args:
        args: None, a `DPOConfig` of TRL's or ours, or transformers' `TrainingArguments`.
        options: the trainer's keyword arguments.
        model: a model or its name, which names the output directory where `args` is None, as in TRL.

    Raises:
        RequestError: arguments that no version of the trainer has, all of them at once.
    """
    known = set(inspect.signature(TRLDPOTrainer.__init__).parameters)
    problems = []
    rest, moved = dict(options), {}
    for name in list(options):
        if name in known:
            continue
        value = rest.pop(name)
        if name in SETTINGS:
            moved[name] = value
        elif name == "tokenizer":
            if options.get("processing_class") not in (None, value):
                problems.append(
                    "tokenizer and processing_class were both given and differ; give processing_class alone"
                )
            rest["processing_class"] = value
        elif name in MEANINGLESS:
            logger.warning("DPOTrainer's argument %s has no meaning any more and is ignored.", name)
        else:
            problems.append(_unknown_argument(name, known | SETTINGS))
    if problems:
        raise RequestError(problems)
    if args is not None and not isinstance(args, TrainingArguments):
        raise RequestError(f"args is a {type(args).__name__}; give a DPOConfig (or transformers' TrainingArguments)")
    if args is None:
        name = model if isinstance(model, str) else getattr(getattr(model, "config", None), "_name_or_path", "")
        return DPOConfig(output_dir=f"{name.split('/')[-1]}-DPO", **moved), rest
    return DPOConfig.from_arguments(args).changed(moved), rest


def _unknown_argument(name: str, known: Collection[str]) -> str:
    """Say what replaces an argument that does not exist."""
    if any(option.name == name for option in fields(DPOConfig)):
        return f"DPOTrainer has no argument {name!r}: it is an option of DPOConfig, which is given as args"
    if instead := successor(name):
        return f"DPOTrainer has no argument {name!r} any more: {instead}"
    near = difflib.get_close_matches(name, known, n=3)
    hint = f" (near: {', '.join(near)})" if near else ""
    return f"DPOTrainer has no argument {name!r}{hint}; remove it or correct its name"
