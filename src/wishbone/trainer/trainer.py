"""`DPOTrainer`: TRL's trainer with Wishbone's step.

    TRL's and transformers'   construction, data loading, callbacks, schedules, optimizers, trackers, checkpoints, hub
                              upload, the loops of training, evaluation and prediction
    Wishbone's                tokenizing in batches, the collator, the step (loss and gradients), its metrics

`training_step` collects the batches of one optimizer step and hands them to `PreferenceStep` with the last of them.
A run that the step does not cover takes TRL's own path, and one line in the log says why.
"""

from __future__ import annotations

import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache
from datasets import IterableDataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import TrainingArguments
from transformers.trainer_utils import TrainOutput

from wishbone.data.batch import TokenizedPair
from wishbone.engine.compile_ahead import compile_trial_kernels
from wishbone.engine.distributed import fill_gradients, reduce_gradients, send_float8_as_bytes, sum_over_processes
from wishbone.engine.execution import UNLIMITED
from wishbone.engine.oom_retry import backward_that_fits
from wishbone.engine.sharing import Share, share_of
from wishbone.engine.step import PreferenceStep
from wishbone.errors import RequestError
from wishbone.fused.coverage import Coverage
from wishbone.guard.guard import Guard
from wishbone.model.adapter import parameter_values, train_in_float32, undo_rounding
from wishbone.model.frozen_copy import second_adapter_harmless
from wishbone.preference.losses import are_reference_free
from wishbone.preference.metrics import PairMetrics
from wishbone.trainer.argument_kinds import check_optimizer
from wishbone.trainer.arguments import DPOConfig
from wishbone.trainer.assembly import assemble_step
from wishbone.trainer.auxiliary_loss import auxiliary_loss_of, trl_computes_it
from wishbone.trainer.collator import load_whole_pairs
from wishbone.trainer.compatibility import by_name, check_trl
from wishbone.trainer.dataset import refuse_tokens_without_embedding, refuse_tokens_without_position
from wishbone.trainer.evaluation_sets import refuse_unknown_best
from wishbone.trainer.finite_losses import FiniteLosses
from wishbone.trainer.finite_training import FiniteTrainer
from wishbone.trainer.guarding import GuardContext, guard_of
from wishbone.trainer.head_adapter import head_hidden
from wishbone.trainer.later_changes import DROPOUT, LaterChanges
from wishbone.trainer.moving_reference import load_reference
from wishbone.trainer.one_gpu import refuse_split
from wishbone.trainer.profiling import ProfiledTrainer
from wishbone.trainer.reference_in_checkpoint import load_default_adapter, take_reference, trained_as_before
from wishbone.trainer.request import Request, read_request
from wishbone.trainer.same_run import compare_processes
from wishbone.trainer.scoring import ScoringTrainer
from wishbone.trainer.sharded_trainer import ShardedTrainer
from wishbone.trainer.sharding import is_sharded, shard
from wishbone.trainer.shared_steps import OWN_BATCHES, WAITING, read_every_batch, sum_of_losses
from wishbone.trainer.start import refuse_untrainable, settle_adapter
from wishbone.trainer.start_check import cannot_be_checked, check_start, check_start_on_trl_path
from wishbone.trainer.tokenizing import TokenizingTrainer
from wishbone.trainer.trl_path import drops_out, noise_reason, refuse_on_trl_path, trl_path_reason

logger = logging.getLogger(__name__)


class DPOTrainer(TokenizingTrainer, ShardedTrainer, ScoringTrainer, FiniteTrainer, ProfiledTrainer):
    """Preference optimization with shared prefixes and packing; arguments and behaviour of TRL's `DPOTrainer`.

    Constructing one takes three steps: read the arguments, let TRL construct its trainer, assemble the step.

    Attributes:
        preference_step: what computes loss and gradients, or None where the run needs TRL's own path.
        execution: how the step computes rows now: as the settings ask, from the first step on as profiling found,
            and after memory ran out as it fitted.
        form_reason: why pairs do not run in the fast form (one row, shared prefix), in one line, or None.
        coverage: which parts of the model run fused, or None on TRL's own path.
        guard: what watches the run, or None.
        trained_pairs, trained_tokens: what all processes trained on since construction; a pair's tokens are those of
            its two sequences.
    """

    args: DPOConfig
    train_dataset: Any
    eval_dataset: Any

    def __init__(
        self,
        model: Any,
        ref_model: Any = None,
        args: TrainingArguments | None = None,
        data_collator: Any = None,
        *positional: Any,
        **options: Any,
    ) -> None:
        check_trl()
        request = read_request(model, ref_model, args, options | by_name(positional))
        self._construct_trl(request, data_collator)
        self._assemble_step(request, collator_given=data_collator is not None)

    def _construct_trl(self, request: Request, data_collator: Any) -> None:
        """Run the constructors of TRL and transformers, then undo what they changed in the model."""
        given = parameter_values(request.model)
        self.given_collator = data_collator
        with (
            head_hidden(request.model) if request.head_adapted else nullcontext(),
            second_adapter_harmless(request.model, read=not request.starts_as_reference),
        ):
            super().__init__(request.model, request.ref_model, request.args, data_collator, **request.options)
        refuse_split(self.model)  # TRL loaded one that was given by its name
        refuse_untrainable(self.model)
        check_optimizer(self.model, request.options.get("optimizers", (None, None))[0])
        for dataset in (self.train_dataset, self.eval_dataset):
            refuse_tokens_without_embedding(self.model, dataset)
            refuse_tokens_without_position(self.model, dataset, request.args.max_length)
            if request.ref_model_given:
                refuse_tokens_without_embedding(request.ref_model, dataset, "ref_model")
        undo_rounding(self.model, given)
        self.args = DPOConfig.from_arguments(self.args)
        self.args.sync_ref_model |= request.synchronized
        self._checkpoint_by_time()
        self._start_values = None
        if are_reference_free(self.args.loss_type) and not request.ref_model_given:
            self.ref_model = None  # TRL has one for every model without adapter
        if self.ref_model is None:
            self._start_values = settle_adapter(self.model, self.args, adapter_is_new=request.adapter_is_new)
        self._refuse_non_finite_weights()

    def _assemble_step(self, request: Request, *, collator_given: bool) -> None:
        """Build Wishbone's step and its callbacks, or leave the run on TRL's own path and log why."""
        self.preference_step: PreferenceStep | None = None
        self.execution = UNLIMITED
        self.coverage: Coverage | None = None
        self.guard: Guard | None = None
        self.trained_pairs = 0
        self._pending: list[list[TokenizedPair]] = []
        self._losses = FiniteLosses()
        self._pair_metrics = {"train": PairMetrics(self.beta), "eval": PairMetrics(self.beta)}
        self._profiled = False
        self._image_pairs = None
        self._pairs_with_images = []
        self._start_checked = request.ref_model_given
        load_balancing = auxiliary_loss_of(self)
        self.form_reason = trl_path_reason(self, ScoringTrainer, collator_given=collator_given)
        if self.form_reason is None:
            if self.is_fsdp_enabled:
                self._record_weights()
                shard(self)
            else:
                compile_trial_kernels(self.model)
            self.form_reason = noise_reason(self.model)
        if self.form_reason:
            self.aux_loss_enabled = trl_computes_it(self, load_balancing)
            refuse_on_trl_path(request, self.form_reason, self.args, start_values=self._start_values)
            logger.warning("This run takes TRL's own path, because %s.", self.form_reason)
            if self.args.shared_steps and self.accelerator.num_processes > 1:
                logger.warning(OWN_BATCHES, self.accelerator.num_processes)
            if self.args.guard != "off":
                logger.warning("The guard does not watch runs on TRL's own path.")
            return
        images = self._collate_pairs()
        load_whole_pairs(self.accelerator.dataloader_config)
        if (self.args.fp16_full_eval or self.args.bf16_full_eval) and not self.is_model_parallel:
            # The checks below run the model, which transformers moves only in train().
            self._move_model_to_device(self.model, self.args.device)
        assembly = assemble_step(
            self.model, self.ref_model, self.args, self.accelerator.autocast, self._start_values, load_balancing, images
        )
        self.preference_step, self.execution = assembly.step, assembly.execution
        self.form_reason = assembly.form_reason
        self.coverage = assembly.coverage
        groups = self.args.gradient_accumulation_steps
        if self._shares_steps and assembly.step.couples and groups < self.accelerator.num_processes:
            logger.warning(WAITING, groups, self.accelerator.num_processes)
        context = GuardContext(
            model=self.accelerator.unwrap_model(self.model),
            evaluated=self.eval_dataset,
            trained=self.train_dataset,
            collate=self.data_collator,
            tokenizer=self._tokenizer,
            execution=lambda: self.execution,
            load_checkpoint=self._load_from_checkpoint,
            processes=self.accelerator.num_processes,
            writes=self.is_world_process_zero(),
        )
        self.guard = guard_of(self.args, assembly.step, context)
        for callback in [*assembly.callbacks, *([self.guard] if self.guard else [])]:
            self.add_callback(callback)
        self._later_changes = LaterChanges(self)

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train as TRL and transformers do; batches left by an interrupted call are dropped."""
        self._pending = []
        if not is_sharded(self.model):
            train_in_float32(self.model)
            send_float8_as_bytes(self.model)
        refuse_unknown_best(self)
        pairs = self.train_dataset if self._shares_steps else None
        compare_processes(self.args, pairs, self.accelerator.num_processes)
        if self.preference_step is None:
            return super().train(*args, **kwargs)
        try:
            with self._losses.filtered(self.args):
                done = super().train(*args, **kwargs)
            self._refuse_empty_stream()
            return done
        finally:
            if self.execution.graphs is not None:
                self.execution.graphs.release()  # what comes after training can use their memory

    def _refuse_empty_stream(self) -> None:
        """Refuse a stream without pairs: transformers would end the run without a step."""
        if isinstance(self.train_dataset, IterableDataset) and not self.state.global_step and not self.trained_pairs:
            raise RequestError(
                "nothing was trained: the stream gave no pair. It is empty, or every pair was left out (see the "
                "warnings above; prompts that fill max_length are); train_dataset.take(5) shows its first rows"
            )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load the policy as transformers does, and with it the reference that the run began with."""
        if is_sharded(self.model):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        with trained_as_before(self.model):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            load_default_adapter(self.model if model is None else model, Path(resume_from_checkpoint))
        if self.preference_step is not None:
            take_reference(self.preference_step, Path(resume_from_checkpoint))
        if self.args.sync_ref_model and self.ref_model is not None:
            load_reference(self.ref_model, Path(resume_from_checkpoint))

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Collect the batches of one optimizer step; with the last one, compute its loss and gradients."""
        if self.preference_step is None:
            self._check_start(inputs)
            return self.check_finite(super().training_step(model, inputs, num_items_in_batch))
        if not model.training:
            model.train()
        if callable(getattr(self.optimizer, "train", None)):
            self.optimizer.train()
        self._pending.append(inputs["pairs"])
        # A stream may end before a step is complete; its last batches then count towards the next step, as in TRL.
        if not self.accelerator.sync_gradients and len(self._pending) < self.current_gradient_accumulation_steps:
            return torch.zeros((), device=self.args.device)
        self._follow_changes()
        if not self._profiled:
            self._profiled = True
            if drops_out(self.model) or noise_reason(self.model):
                raise RequestError(DROPOUT)
            self._profile_rows(self.preference_step)
        self._check_start(inputs)
        groups, self._pending = self._pending, []
        loss = self._backward(self.preference_step, groups)
        every = self.args.torch_empty_cache_steps
        if every is not None and self.state.global_step % every == 0:
            clear_device_cache()
        return self._losses.logged(self.check_finite(loss.to(self.args.device)), self.state.global_step)

    def _check_start(self, inputs: dict[str, Any]) -> None:
        """Before the first optimizer step, refuse a run whose reference is not the model that training starts from."""
        if self._start_checked or self.state.global_step:
            return
        self._start_checked = True
        if self.preference_step is None:
            if not cannot_be_checked(self):
                check_start_on_trl_path(self, super().compute_loss, inputs)
        else:
            check_start(self.preference_step, [pair for group in self._pending for pair in group], self.execution)

    def _backward(self, step: PreferenceStep, groups: list[list[TokenizedPair]]) -> Tensor:
        """Compute the gradients of one optimizer step, reduced over processes, and return its loss."""
        shared, processes = self._shares_steps, self.accelerator.num_processes
        self._count_trained(groups)
        part = Share(groups)
        if shared:
            process = self.accelerator.process_index
            part = share_of(groups, whole_groups=step.couples, processes=processes, process=process)
        # Where a callback ended the step early, its loss is that share of a whole step's, as in TRL.
        scale = len(groups) / self.current_gradient_accumulation_steps * part.scale
        loss, metrics = torch.zeros((), device=self.args.device), self._pair_metrics["train"]
        if part.is_empty:
            metrics.add_nothing(self.args.device)
        if step.policy.sharded:
            factor = scale * (processes if shared else 1)  # FSDP takes the mean of what must be added up
            loss = step.backward(
                part.groups,
                metrics,
                self.execution,
                lambda loss: self.accelerator.backward(factor * loss),
                part.indices,
            )
            fill_gradients(step.policy.model)
        else:
            if not part.is_empty:
                with self.maybe_activation_offload_context:
                    loss, self.execution = backward_that_fits(
                        step,
                        part.groups,
                        metrics,
                        self.execution,
                        lambda loss: self.accelerator.backward(scale * loss),
                        [parameter for group in self.optimizer.param_groups for parameter in group["params"]],
                        part.indices,
                    )
            reduce_gradients(step.policy.model, self.accelerator, mean=not shared)
        loss = scale * loss
        return sum_of_losses(loss, self.accelerator) if shared else loss

    def _count_trained(self, groups: list[list[TokenizedPair]]) -> None:
        """Add the pairs and tokens of a step, of all processes, to `trained_pairs` and `trained_tokens`."""
        pairs = [pair for group in groups for pair in group]
        counts = len(pairs), sum(len(pair.chosen) + len(pair.rejected) for pair in pairs)
        if not self._shares_steps:
            counts = sum_over_processes(counts[0], self.accelerator), sum_over_processes(counts[1], self.accelerator)
        self.trained_pairs += counts[0]
        self._total_train_tokens += counts[1]

    @property
    def _shares_steps(self) -> bool:
        """Whether processes share out the pairs of each step."""
        return self.args.shared_steps and self.accelerator.num_processes > 1 and self.preference_step is not None

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The batches of this process; all batches where processes share out a step."""
        loader: DataLoader[Any] = super().get_train_dataloader()
        if self._shares_steps:
            read_every_batch(loader)
        return loader
