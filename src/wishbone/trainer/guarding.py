"""From a trainer to its guard: the pairs and prompts that it watches, the settings that its advice is compared with."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from accelerate.utils import broadcast_object_list
from datasets import Dataset
from peft import PeftModel
from torch import nn

from wishbone.data.batch import TokenizedPair
from wishbone.engine.execution import Execution
from wishbone.engine.step import PreferenceStep
from wishbone.guard.answers import questions_of
from wishbone.guard.best_weights import BestWeights
from wishbone.guard.guard import Action, Guard
from wishbone.guard.measurement import Measuring
from wishbone.guard.record import Record
from wishbone.guard.sample import PAIRS, Sample
from wishbone.reference.reference import Stored
from wishbone.trainer.arguments import DPOConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class GuardContext:
    """What a guard needs of its trainer.

    Attributes:
        model: the model that is trained, unwrapped.
        evaluated, trained: its datasets.
        collate: from rows to a batch with `pairs`.
        tokenizer: ends answers and fills prompts.
        execution: returns how rows are computed now.
        load_checkpoint: loads the weights of a checkpoint's directory into the model.
        processes: how many train together.
        writes: whether this one writes.
    """

    model: nn.Module
    evaluated: Any
    trained: Any
    collate: Callable[[list[dict[str, Any]]], dict[str, Any]]
    tokenizer: Any
    execution: Callable[[], Execution]
    load_checkpoint: Callable[[str], None]
    processes: int
    writes: bool


def guard_of(args: DPOConfig, step: PreferenceStep, context: GuardContext) -> Guard | None:
    """Return the guard that a trainer's arguments ask for, or None."""
    if args.guard == "off":
        return None
    found = _sample(step, context)
    if found is None:
        logger.warning("The guard does not watch this run: its pairs are a stream, and none are held out.")
        return None
    pairs, heldout = found
    tokenizer, folder = context.tokenizer, Path(args.output_dir)

    def share(value: Any) -> Any:
        return broadcast_object_list([value])[0] if context.processes > 1 else value

    return Guard(
        cast(Action, args.guard),
        args.guard_steps,
        Measuring(
            step=step,
            execution=context.execution,
            sample=Sample(pairs, heldout=heldout, beta=args.beta, moves=args.sync_ref_model),
            questions=questions_of(pairs, step.policy.causal_lm, tokenizer.eos_token_id, tokenizer.pad_token_id),
            here=context.writes,
            share=share,
            decode=partial(tokenizer.decode, skip_special_tokens=True),
        ),
        BestWeights(context.model, folder, context.load_checkpoint),
        Record(folder, writes=context.writes),
        {
            "adapter.method": "lora" if isinstance(context.model, PeftModel) else "full",
            "preference.beta": args.beta,
            "preference.loss": list(args.loss_type),
            "training.learning_rate": args.learning_rate,
            "training.epochs": 1.0 if args.max_steps > 0 else args.num_train_epochs,
            "training.max_grad_norm": args.max_grad_norm,
        },
        args.beta,
    )


def _sample(step: PreferenceStep, context: GuardContext) -> tuple[list[TokenizedPair], bool] | None:
    """The first pairs that are held out, otherwise of the training data, and whether they are held out."""
    evaluated = context.evaluated
    if isinstance(evaluated, dict):
        evaluated = next(iter(evaluated.values()), None)
    for rows, heldout in ((evaluated, True), (context.trained, False)):
        if not isinstance(rows, Dataset) or len(rows) == 0:
            continue
        pairs: list[TokenizedPair] = context.collate([rows[at] for at in range(min(PAIRS, len(rows)))])["pairs"]
        if not isinstance(step.reference, Stored) or pairs[0].ref_chosen_logps is not None:
            return pairs, heldout
    return None
