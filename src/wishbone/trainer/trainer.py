"""`DPOTrainer`: TRL's trainer with Wishbone's step.

    TRL's and transformers'   construction, data loading, callbacks, schedules, optimizers, trackers, checkpoints, hub
                              upload, the loops of training, evaluation and prediction
    Wishbone's                tokenizing in batches, the collator, the step (loss and gradients), its metrics

This module constructs a trainer and begins its runs. Three classes beneath know nothing of each other: one hands the
batches of the loops to the step (`stepped_trainer.py`), one writes checkpoints that survive a kill
(`checkpointing.py`), and one takes models that FSDP2 divides (`sharded_trainer.py`). A run that the step does not cover
takes TRL's own path, and one line in the log says why.
"""

from __future__ import annotations

import logging
from contextlib import nullcontext
from copy import copy
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset
from torch import nn
from transformers import PreTrainedTokenizerBase, TrainingArguments
from transformers.trainer_utils import TrainOutput

from wishbone.engine.compile_ahead import compile_trial_kernels
from wishbone.engine.distributed import send_float8_as_bytes
from wishbone.errors import RequestError
from wishbone.fused.coverage import Coverage
from wishbone.model.adapter import parameter_values, train_in_float32, undo_rounding
from wishbone.model.frozen_copy import second_adapter_harmless
from wishbone.preference.losses import are_reference_free
from wishbone.trainer.argument_kinds import check_optimizer
from wishbone.trainer.arguments import DPOConfig
from wishbone.trainer.assembly import assemble_step
from wishbone.trainer.auxiliary_loss import auxiliary_loss_of, trl_computes_it
from wishbone.trainer.checkpointing import CheckpointedTrainer
from wishbone.trainer.collation import collation_of
from wishbone.trainer.collator import load_whole_pairs
from wishbone.trainer.compatibility import by_name, check_trl
from wishbone.trainer.dataset import prepare_pairs, refuse_tokens_without_embedding, refuse_tokens_without_position
from wishbone.trainer.evaluation_sets import refuse_unknown_best
from wishbone.trainer.guarding import GuardContext, guard_of
from wishbone.trainer.head_adapter import head_hidden
from wishbone.trainer.later_changes import LaterChanges
from wishbone.trainer.moving_reference import load_reference
from wishbone.trainer.non_finite import FiniteWatch
from wishbone.trainer.one_gpu import refuse_split
from wishbone.trainer.process_batches import refuse_cut_batches
from wishbone.trainer.reference_in_checkpoint import load_default_adapter, take_reference, trained_as_before
from wishbone.trainer.request import Request, read_request
from wishbone.trainer.same_run import compare_processes
from wishbone.trainer.sharded_trainer import ShardedTrainer
from wishbone.trainer.sharding import is_sharded, shard
from wishbone.trainer.shared_steps import OWN_BATCHES, WAITING
from wishbone.trainer.start import refuse_untrainable, settle_adapter
from wishbone.trainer.step_loop import StepLoop
from wishbone.trainer.stepped_trainer import SteppedTrainer
from wishbone.trainer.trl_path import noise_reason, refuse_on_trl_path, trl_path_reason

logger = logging.getLogger(__name__)


class DPOTrainer(SteppedTrainer, ShardedTrainer, CheckpointedTrainer):
    """Preference optimization with shared prefixes and packing; arguments and behaviour of TRL's `DPOTrainer`.

    Constructing one takes three steps: read the arguments, let TRL construct its trainer, assemble the step.

    Attributes:
        form_reason: why pairs do not run in the fast form (one row, shared prefix), in one line, or None.
        coverage: which parts of the model run fused, or None on TRL's own path.
        trained_tokens: what all processes trained on since construction; a pair's are those of its two sequences.
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
        self.checkpoint_by_time()
        if are_reference_free(self.args.loss_type) and not request.ref_model_given:
            self.ref_model = None  # TRL has one for every model without adapter
        if self.ref_model is None:
            self.start_values = settle_adapter(self.model, self.args, adapter_is_new=request.adapter_is_new)
        self.finite = FiniteWatch(self.args.stop_on_non_finite)
        self.finite.see_models(self.model, self.ref_model)

    def _assemble_step(self, request: Request, *, collator_given: bool) -> None:
        """Build Wishbone's step and its callbacks, or leave the run on TRL's own path and log why."""
        self.coverage: Coverage | None = None
        self.start_is_checked = request.ref_model_given
        load_balancing = auxiliary_loss_of(self)
        self.form_reason = trl_path_reason(self, SteppedTrainer, collator_given=collator_given)
        shared, evaluates = self.args.shared_steps and not self.form_reason, self.eval_dataset is not None
        refuse_cut_batches(self.args, self.accelerator, shared=shared, evaluates=evaluates)
        if self.form_reason is None:
            if self.is_fsdp_enabled:
                self.record_weights()
                shard(self)
            else:
                compile_trial_kernels(self.model)
            self.form_reason = noise_reason(self.model)
        if self.form_reason:
            self.aux_loss_enabled = trl_computes_it(self, load_balancing)
            refuse_on_trl_path(request, self.form_reason, self.args, start_values=self.start_values)
            logger.warning("This run takes TRL's own path, because %s.", self.form_reason)
            if self.args.shared_steps and self.accelerator.num_processes > 1:
                logger.warning(OWN_BATCHES, self.accelerator.num_processes)
            if self.args.guard != "off":
                logger.warning("The guard does not watch runs on TRL's own path.")
            return
        collation = collation_of(
            self.args,
            self.train_dataset,
            self.eval_dataset,
            self._tokenizer.pad_token_id,
            self.processing_class if self._is_vision_dataset else None,
        )
        self.data_collator = collation.collator
        self.train_dataset, self.eval_dataset = collation.trained, collation.evaluated
        load_whole_pairs(self.accelerator.dataloader_config)
        if (self.args.fp16_full_eval or self.args.bf16_full_eval) and not self.is_model_parallel:
            # The checks below run the model, which transformers moves only in train().
            self._move_model_to_device(self.model, self.args.device)
        assembly = assemble_step(
            self.model,
            self.ref_model,
            self.args,
            self.accelerator.autocast,
            self.start_values,
            load_balancing,
            collation.tried,
        )
        self.loop = StepLoop(assembly.step, assembly.execution, collation, self.args, self.accelerator)
        self.form_reason = assembly.form_reason
        self.coverage = assembly.coverage
        groups = self.args.gradient_accumulation_steps
        if self.loop.shared and assembly.step.couples and groups < self.accelerator.num_processes:
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
        self.later_changes = LaterChanges(self)

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train as TRL and transformers do; batches left by an interrupted call are dropped."""
        if not is_sharded(self.model):
            train_in_float32(self.model)
            send_float8_as_bytes(self.model)
        refuse_unknown_best(self)
        loop = self.loop
        pairs = self.train_dataset if loop is not None and loop.shared else None
        compare_processes(self.args, pairs, self.accelerator.num_processes)
        self.finite.begin(self.args.stop_on_non_finite)
        if loop is None:
            done = super().train(*args, **kwargs)
            self.finite.check()
            return done
        loop.restart()
        try:
            with loop.losses.filtered(self.args):
                done = super().train(*args, **kwargs)
                self.finite.check()
            if isinstance(self.train_dataset, IterableDataset) and not self.state.global_step + loop.trained_pairs:
                raise RequestError(
                    "nothing was trained: the stream gave no pair. It is empty, or every pair was left out (see the "
                    "warnings above; prompts that fill max_length are); train_dataset.take(5) shows its first rows"
                )
            return done
        finally:
            if loop.execution.graphs is not None:
                loop.execution.graphs.release()  # what comes after training can use their memory

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load the policy as transformers does, and with it the reference that the run began with."""
        loaded, checkpoint = self.model if model is None else model, Path(resume_from_checkpoint)
        with nullcontext() if is_sharded(self.model) else trained_as_before(self.model):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            self.finite.see_loaded(loaded, resume_from_checkpoint)
            if is_sharded(self.model):
                return
            load_default_adapter(loaded, checkpoint)
        if self.preference_step is not None:
            take_reference(self.preference_step, checkpoint)
        if self.args.sync_ref_model and self.ref_model is not None:
            load_reference(self.ref_model, checkpoint)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save a checkpoint, unless there is anything in it that is not finite."""
        self.finite.see_before_saving(self.model, self.state.global_step)
        super()._save_checkpoint(model, trial)

    def write_extras(self, written: Path, folder: Path) -> None:
        """Add how rows are computed, in this process, to what a checkpoint holds."""
        super().write_extras(written, folder)
        if self.loop is not None:
            self.loop.write_execution(written)

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: DPOConfig, dataset_name: str
    ) -> Dataset | IterableDataset:
        """Tokenize in batches instead of row by row; the ids are TRL's. With a processor, TRL tokenizes the texts."""
        if isinstance(processing_class, PreTrainedTokenizerBase):
            return prepare_pairs(dataset, processing_class, args, dataset_name)
        whole = copy(args)
        whole.max_length = None  # rows that are too long are dropped below, after prompts were cut
        tokenized = super()._prepare_dataset(dataset, processing_class, whole, dataset_name)
        return prepare_pairs(tokenized, self._tokenizer, args, dataset_name)
