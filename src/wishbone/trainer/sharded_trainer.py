"""TRL's trainer with a model that FSDP2 divides (`sharding.py`): optimizer, evaluation and saving know its parts."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.trainer_utils import EvalLoopOutput
from trl.trainer.dpo_trainer import DPOTrainer as TRLDPOTrainer

from wishbone.trainer.sharding import is_sharded, prepared, take_plugin_on_cpus
from wishbone.trainer.whole_weights import whole_weights


class ShardedTrainer(TRLDPOTrainer):  # type: ignore[misc]
    """TRL's trainer; where a model is not divided, all of it is as TRL and transformers do it."""

    _learned: list[list[nn.Parameter]]

    def create_accelerator_and_postprocess(self) -> None:
        """Create the accelerator as transformers does, and let it shard on CPUs, too."""
        super().create_accelerator_and_postprocess()
        take_plugin_on_cpus(self)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save as transformers does; of a sharded model with an adapter, the adapter alone is gathered."""
        if not is_sharded(self.model):
            super().save_model(output_dir, _internal_call)
            return
        weights = whole_weights(self.model, keep=self.args.should_save)
        if self.args.should_save:
            self._save(output_dir, state_dict=weights)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate as transformers does; before training, accelerate would refuse to prepare a sharded model alone."""
        with prepared(self.accelerator, self.model):
            return super().evaluation_loop(*args, **kwargs)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Create the optimizer as transformers does; of a sharded model, note whose parameters it has."""
        optimizer = super().create_optimizer(*args, **kwargs)
        if is_sharded(self.model):
            self._learned = [list(group["params"]) for group in optimizer.param_groups]
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Create the scheduler as transformers does, once accelerate has prepared the optimizer.

        accelerate finds a sharded model's parameters again by the address of this process's part, and where there is no
        part it takes one for another.
        """
        if is_sharded(self.model):
            for group, parameters in zip(self.optimizer.param_groups, self._learned, strict=True):
                group["params"] = parameters
        return super().create_scheduler(num_training_steps, optimizer)
