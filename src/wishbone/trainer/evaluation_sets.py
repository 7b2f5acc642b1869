"""Metrics of several evaluation sets, each under the name of its set.

transformers calls the loss of a set `eval_<name>_loss`. TRL adds its other metrics as `eval_<metric>`, so those of all
sets would have one name.
"""

from __future__ import annotations

from typing import Any

from transformers.trainer_utils import IntervalStrategy
from trl.trainer.dpo_trainer import DPOTrainer as TRLDPOTrainer

from wishbone.errors import RequestError
from wishbone.preference.metrics import METRICS

MEASURED = ("loss", *METRICS, "num_tokens", "runtime", "samples_per_second", "steps_per_second")
"""What an evaluation of each set measures; with experts also `aux_loss`."""


def refuse_unknown_best(trainer: TRLDPOTrainer) -> None:
    """Refuse to train towards a metric that no evaluation will have; transformers ends the run at the first one.

    Runs are left alone whose metrics are added to by code of the user's own.

    Args:
        trainer: before it trains.

    Raises:
        RequestError: naming the metrics that there are.
    """
    args, sets = trainer.args, trainer.eval_dataset
    if args.metric_for_best_model is None or args.eval_strategy == IntervalStrategy.NO:
        return
    others = [type(one).__module__ for one in (trainer, *trainer.callback_handler.callbacks)]
    own = ("wishbone.", "trl.", "transformers.")
    if trainer.compute_metrics is not None or any(not module.startswith(own) for module in others):
        return
    prefixes = [f"{name}_" for name in sets] if isinstance(sets, dict) else [""]
    best = args.metric_for_best_model.removeprefix("eval_")
    known = [f"{prefix}{metric}" for prefix in prefixes for metric in MEASURED]
    if best not in known and not best.endswith("aux_loss"):
        raise RequestError(
            f"metric_for_best_model {args.metric_for_best_model!r} is not measured when the run evaluates: choose one "
            f"of {', '.join(known)}"
        )


def move_under_set(logs: dict[str, float], metrics: dict[str, list[float]], evaluated: Any) -> None:
    """Move TRL's metrics of an evaluation into `logs`, as `eval_<name>_<metric>`, if it was that of a named set.

    Args:
        logs: what is logged after the evaluation.
        metrics: values that TRL collected for it, by name; emptied where they are moved.
        evaluated: the trainer's `eval_dataset`; only a dict has named sets.
    """
    names = evaluated if isinstance(evaluated, dict) else {}
    name = next((name for name in names if f"eval_{name}_loss" in logs), None)
    if name is not None:
        logs |= {f"eval_{name}_{metric}": sum(values) / len(values) for metric, values in metrics.items()}
        metrics.clear()
