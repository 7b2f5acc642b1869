"""What held-out pairs give before and after a run."""

from __future__ import annotations

from wishbone.trainer.trainer import DPOTrainer


def evaluate(trainer: DPOTrainer) -> dict[str, float]:
    """Return the metrics of the held-out pairs, without the prefix `eval_`."""
    return _of_heldout(trainer.evaluate())


def evaluated_last(trainer: DPOTrainer) -> dict[str, float]:
    """The same of an evaluation that was done after the last step; empty if there was none or weights were restored."""
    if trainer.guard is not None and trainer.guard.restored:
        return {}
    last = trainer.state.global_step
    found = [entry for entry in trainer.state.log_history if entry["step"] == last and "eval_loss" in entry]
    return _of_heldout(found[-1]) if found else {}


def _of_heldout(metrics: dict[str, float]) -> dict[str, float]:
    return {name.removeprefix("eval_"): value for name, value in metrics.items() if name.startswith("eval_")}
