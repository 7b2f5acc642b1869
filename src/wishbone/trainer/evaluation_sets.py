"""Metrics of several evaluation sets, each under the name of its set.

transformers calls the loss of a set `eval_<name>_loss`. TRL adds its other metrics as `eval_<metric>`, so those of all
sets would have one name.
"""

from __future__ import annotations

from typing import Any


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
