"""The reference of a run in its checkpoints, so that a resumed run has the reference that it began with.

TRL's checkpoints hold a frozen adapter where the reference has one. Beside it lies

    reference.json          log-probabilities of two made-up pairs under the reference
    reference.safetensors   first values of trained parameters outside the adapter, where there are some

A resumed run takes the frozen adapter and the first values from the checkpoint, and none where it has none, whatever
model it was constructed with. Then its reference must give the made-up pairs the same log-probabilities.
"""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from wishbone.engine.step import PreferenceStep
from wishbone.errors import RequestError
from wishbone.model.frozen_copy import FROZEN, HeldParameters, drop_frozen
from wishbone.policy.capability import trial_pairs
from wishbone.reference.reference import AdapterDisabled, SeparateModel
from wishbone.trainer.start import difference_a_token
from wishbone.trainer.start_check import products_dtype, uncached

PROBE, HELD = "reference.json", "reference.safetensors"

logger = logging.getLogger(__name__)


class ReferenceInCheckpoint(TrainerCallback):  # type: ignore[misc]
    """Writes the reference into each checkpoint, and gives a resumed run that of its checkpoint.

    Args:
        step: of the run.
        held: trained parameters outside the adapter, or None.
    """

    def __init__(self, step: PreferenceStep, held: HeldParameters | None) -> None:
        self._step, self._held = step, held

    @property
    def _fixed(self) -> AdapterDisabled | SeparateModel | None:
        """The reference, if it is a model that stays as it is."""
        reference = uncached(self._step)
        return reference if type(reference) in (AdapterDisabled, SeparateModel) else None  # type: ignore[return-value]

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Write into the checkpoint that was just saved."""
        directory = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        moves = args.sync_ref_model and isinstance(self._fixed, SeparateModel)
        if self._fixed is None or moves or not state.is_world_process_zero or not directory.is_dir():
            return
        (directory / PROBE).write_text(json.dumps(self._probe()), encoding="utf-8")
        if self._held is not None:
            save_file({name: value.contiguous() for name, value in self._held.values.items()}, directory / HELD)

    def restore(self, checkpoint: Path) -> None:
        """Take the reference of a checkpoint whose policy was just loaded.

        Raises:
            RequestError: the reference is another one and the checkpoint does not hold it.
        """
        reference = self._fixed
        if isinstance(reference, AdapterDisabled):
            self._restore_adapter(reference, checkpoint)
            if self._held is not None and (checkpoint / HELD).is_file():
                self._held.restore(load_file(checkpoint / HELD))
        if reference is not None and (checkpoint / PROBE).is_file():
            self._compare(json.loads((checkpoint / PROBE).read_text(encoding="utf-8")), checkpoint)

    def _restore_adapter(self, reference: AdapterDisabled, checkpoint: Path) -> None:
        model = self._step.policy.model
        assert isinstance(model, PeftModel)
        if (checkpoint / FROZEN / SAFETENSORS_WEIGHTS_NAME).is_file():
            if not reference.adapters:
                logger.warning("The reference is the frozen adapter of %s, not the base model.", checkpoint)
            reference.switch_to(FROZEN)
        elif (checkpoint / SAFETENSORS_WEIGHTS_NAME).is_file() and reference.adapters:
            logger.warning("The reference is the base model, as in the run of %s.", checkpoint)
            drop_frozen(model)
            reference.switch_to(None)

    def _probe(self) -> dict[str, Any]:
        """Return log-probabilities and lengths of made-up pairs under the reference, and the dtype of its products."""
        policy, reference = self._step.policy, self._fixed
        assert reference is not None
        batch = policy.collate(trial_pairs(policy.causal_lm.config.get_text_config().vocab_size))
        return {
            "logps": reference.logps(batch).double().tolist(),
            "tokens": [len(ids) - start for pair in batch.pairs for ids, start in _sequences(pair)],
            "dtype": str(products_dtype(policy)).removeprefix("torch."),
        }

    def _compare(self, written: dict[str, Any], checkpoint: Path) -> None:
        now = self._probe()
        one, other = (torch.tensor(probe["logps"], dtype=torch.float64) for probe in (written, now))
        dtypes = [getattr(torch, probe["dtype"]) for probe in (written, now)]
        coarser = max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)
        difference, allowed = difference_a_token(one, other, torch.tensor(now["tokens"]), coarser)
        if math.isfinite(difference) and difference > allowed:
            raise RequestError(
                f"the reference differs from that of {str(checkpoint)!r} by {difference:.2g} nats a token, and rounding "
                f"explains {allowed:.2g}: construct the trainer with the model (and ref_model) that the run began with, "
                "not with what the checkpoint learned"
            )


def frozen_flags(model: nn.Module) -> dict[nn.Parameter, bool]:
    """Return which parameters are trained; PEFT sets that anew when it loads adapters."""
    return {parameter: parameter.requires_grad for parameter in model.parameters()}


def set_flags(flags: dict[nn.Parameter, bool]) -> None:
    """Let those parameters be trained that were."""
    for parameter, learns in flags.items():
        parameter.requires_grad_(learns)


def _sequences(pair: Any) -> tuple[tuple[list[int], int], tuple[list[int], int]]:
    return (pair.chosen, pair.chosen_start), (pair.rejected, pair.rejected_start)
