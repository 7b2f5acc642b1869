"""`DPOTrainer`: TRL's trainer with Wishbone's step.

Everything around the step is TRL's and transformers': callbacks, schedules, trackers, checkpoints, hub upload, the
evaluation loop. What is ours is the data's way to token ids, the collator, and `training_step`: it collects the
batches of one optimizer step and hands them to `PreferenceStep` when the step is due. What the step does not cover runs
on TRL's own path, and one line says why.
"""

from __future__ import annotations

import logging
from functools import cached_property
from typing import Any

import numpy as np
import torch
from accelerate.utils.memory import clear_device_cache
from datasets import Dataset, IterableDataset
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, TrainingArguments
from transformers.trainer_utils import PredictionOutput, TrainOutput
from trl.trainer.dpo_trainer import DPOTrainer as TRLDPOTrainer

from wishbone.data.batch import TokenizedPair
from wishbone.data.tokenize import tokenize_pairs
from wishbone.engine.differentiable import differentiable_loss
from wishbone.engine.distributed import average_gradients, sum_over_processes
from wishbone.engine.graph_selection import record_passes
from wishbone.engine.oom_retry import backward_that_fits
from wishbone.engine.rehearsal import rehearse
from wishbone.engine.row_lengths import longest_of_stream, pair_tokens
from wishbone.engine.step import PreferenceStep
from wishbone.model.adapter import copy_adapter, parameter_values, train_in_float32, undo_rounding
from wishbone.model.fp8_linear import refuse_readers_of_codes
from wishbone.preference.metrics import PairMetrics
from wishbone.reference.cache import CachedReference
from wishbone.reference.reference import is_base_for_now
from wishbone.trainer.arguments import DPOConfig
from wishbone.trainer.assembly import assemble_step
from wishbone.trainer.collator import PairCollator
from wishbone.trainer.compatibility import OVERRIDDEN, check_trl
from wishbone.trainer.finite_losses import FiniteLosses
from wishbone.trainer.head_adapter import adapts_head, add_adapter_on_head, head_hidden
from wishbone.trainer.ignored_options import name_options_without_effect
from wishbone.trainer.legacy import modern_arguments
from wishbone.trainer.synchronization import refuse_stale_reference
from wishbone.trainer.trl_path import (
    refuse_adapter_of_another_name,
    refuse_on_trl_path,
    refuse_trl_path_values,
    trl_path_reason,
)

logger = logging.getLogger(__name__)


class DPOTrainer(TRLDPOTrainer):  # type: ignore[misc]
    """Preference optimization with shared prefixes and packing; arguments and behaviour of TRL's `DPOTrainer`.

    Attributes:
        preference_step: the engine, or None where the run needs TRL's own path.
        form_reason: why it is not the fast form of the engine that runs, in one line, or None.
        trained_pairs, trained_tokens: what all processes trained on since construction; a pair's tokens are those of
            its two sequences.
    """

    args: DPOConfig

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
        options |= dict(zip(OVERRIDDEN["__init__"][5 : 5 + len(positional)], positional, strict=True))
        config, options = modern_arguments(args, options)
        if config is not None:
            config = name_options_without_effect(config)
            refuse_trl_path_values(config)
        refuse_adapter_of_another_name(model, ref_model)
        refuse_readers_of_codes(model, {"default": options.get("peft_config")})
        liger = config is not None and config.use_liger_kernel
        adapter_added = adapts_head(model, options.get("peft_config"), liger)
        if adapter_added:
            model = add_adapter_on_head(model, options.pop("peft_config"), (config or DPOConfig).seed)
        synchronized = False
        if (
            config is not None
            and config.sync_ref_model
            and (isinstance(model, PeftModel) or options.get("peft_config"))
        ):
            config, synchronized = config.changed({"sync_ref_model": False}), True
        with head_hidden(model, liger) as head_adapted:
            refuse_stale_reference(config, head_adapted=head_adapted, synchronized=synchronized)
            before = parameter_values(model)
            super().__init__(model, ref_model, config, data_collator, **options)
            undo_rounding(self.model, before)
        self.args = DPOConfig.from_arguments(self.args)
        self.args.sync_ref_model |= synchronized
        if isinstance(self.model, PeftModel) and "ref" in self.model.peft_config:
            if adapter_added or is_base_for_now(self.model):
                self.model.delete_adapter("ref")
            else:
                copy_adapter(self.model, "default", "ref")
        self.preference_step: PreferenceStep | None = None
        self.form_reason = trl_path_reason(self, DPOTrainer, collator_given=data_collator is not None)
        self.trained_pairs = 0
        self._pending: list[list[TokenizedPair]] = []
        self._losses: FiniteLosses | None = None
        self._filters = False
        self._rehearsed = False
        if self.form_reason:
            refuse_on_trl_path(
                self.form_reason,
                self.args.loss_type,
                self.args.device.type,
                head_adapted=head_adapted,
                synchronized=synchronized,
            )
            logger.warning("This run takes TRL's own path, because %s.", self.form_reason)
            return
        self.data_collator = PairCollator(
            pad_token_id=self._tokenizer.pad_token_id,
            max_length=self.args.max_length,
            truncation_mode=self.args.truncation_mode,
            pad_to_multiple_of=self.args.pad_to_multiple_of,
        )
        if self.accelerator.dataloader_config.dispatch_batches is None:
            self.accelerator.dataloader_config.dispatch_batches = False  # streams too: pairs cannot be sliced
        self.accelerator.dataloader_config.non_blocking = True  # the host need not wait for the step before
        self._pair_metrics = {"train": PairMetrics(self.beta), "eval": PairMetrics(self.beta)}
        if (self.args.fp16_full_eval or self.args.bf16_full_eval) and not self.is_model_parallel:
            self._move_model_to_device(self.model, self.args.device)  # transformers waits for training, a trial cannot
        assembly = assemble_step(self.model, self.ref_model, self.args, self.accelerator.autocast)
        self.preference_step, self.form_reason = assembly.step, assembly.form_reason
        for callback in assembly.callbacks:
            self.add_callback(callback)

    @property
    def trained_tokens(self) -> int:
        """Tokens of all sequences trained on since construction."""
        return int(self._total_train_tokens)

    def reference_counts(self) -> dict[str, int]:
        """Return how many pairs' reference values all processes `computed`, and how many they `reused`.

        Empty where values are not cached. Every process must call at the same time.
        """
        reference = self.preference_step.reference if self.preference_step else None
        if not isinstance(reference, CachedReference):
            return {}
        counts = {"reused": reference.reused, "computed": reference.computed}
        return {name: sum_over_processes(count, self.accelerator) for name, count in counts.items()}

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: DPOConfig, dataset_name: str
    ) -> Dataset | IterableDataset:
        """Tokenize in batches instead of row by row; the ids are TRL's."""
        if not isinstance(processing_class, PreTrainedTokenizerBase):
            return super()._prepare_dataset(dataset, processing_class, args, dataset_name)
        tokenized = tokenize_pairs(dataset, processing_class, num_proc=args.dataset_num_proc)
        if isinstance(args, DPOConfig) and args.max_prompt_length is not None:
            first = -args.max_prompt_length
            tokenized = tokenized.map(lambda prompt_ids: {"prompt_ids": prompt_ids[first:]}, input_columns="prompt_ids")
        if args.max_length is None or args.truncation_mode != "keep_start":
            return tokenized
        longest = args.max_length
        kept = tokenized.filter(lambda prompt_ids: len(prompt_ids) < longest, input_columns="prompt_ids")
        if isinstance(kept, Dataset) and len(kept) < len(tokenized):
            logger.warning(
                "%d of %d %s pairs were dropped: their prompt alone fills max_length=%d.",
                len(tokenized) - len(kept),
                len(tokenized),
                dataset_name,
                longest,
            )
        return kept

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train as TRL and transformers do; what an earlier call left unfinished is forgotten."""
        self._pending, self._losses = [], None
        train_in_float32(self.model)
        if self.preference_step is None:
            return super().train(*args, **kwargs)
        self._filters, self.args.logging_nan_inf_filter = self.args.logging_nan_inf_filter, False
        try:
            return super().train(*args, **kwargs)
        finally:
            self.args.logging_nan_inf_filter, self._filters = self._filters, False
            self.preference_step.policy.recorded = None  # what comes after training can use their memory

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Collect the batches of one optimizer step; with the last one, compute its loss and gradients."""
        if self.preference_step is None:
            loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
            return loss
        if not model.training:
            model.train()
        if callable(getattr(self.optimizer, "train", None)):
            self.optimizer.train()
        self._pending.append(inputs["pairs"])
        # A stream may end before a step is complete; what it ended with then counts towards the next step, as in TRL.
        if not self.accelerator.sync_gradients and len(self._pending) < self.current_gradient_accumulation_steps:
            return torch.zeros((), device=self.args.device)
        if not self._rehearsed:
            self._rehearsed = True
            self._rehearse(self.preference_step)
        groups, self._pending = self._pending, []
        pairs = [pair for group in groups for pair in group]
        tokens = sum(len(pair.chosen) + len(pair.rejected) for pair in pairs)
        self.trained_pairs += sum_over_processes(len(pairs), self.accelerator)
        self._total_train_tokens += sum_over_processes(tokens, self.accelerator)
        share = len(groups) / self.current_gradient_accumulation_steps  # 1, but where a callback ended a step early
        with self.maybe_activation_offload_context:
            loss = share * backward_that_fits(
                self.preference_step,
                groups,
                self._pair_metrics["train"],
                lambda loss: self.accelerator.backward(share * loss),
                [parameter for group in self.optimizer.param_groups for parameter in group["params"]],
            )
        average_gradients(self.preference_step.policy.model, self.accelerator)
        every = self.args.torch_empty_cache_steps
        if every is not None and self.state.global_step % every == 0:
            clear_device_cache()
        return self._logged(loss.to(self.args.device))

    def _logged(self, loss: Tensor) -> Tensor:
        """The loss that goes into logs."""
        if not self._filters:
            return loss
        if self._losses is None:
            self._losses = FiniteLosses(self.state.global_step)
        return self._losses.finite(loss, self.state.global_step)

    def _rehearse(self, step: PreferenceStep) -> None:
        """Before the first step: find out how much memory rows take, and record passes where that pays."""
        usual = self.args.train_batch_size * self.args.gradient_accumulation_steps
        pairs = max(usual, sum(map(len, self._pending)))
        known = isinstance(self.train_dataset, Dataset)
        if known:
            tokens = pair_tokens(self.train_dataset, self.args.max_length)
        else:
            tokens = np.full(pairs, longest_of_stream(self.args.max_length))
        rehearse(step, tokens, pairs, budget_fixed=self.args.token_budget != "auto")
        if self.args.cuda_graphs != "off" and known and self.accelerator.num_processes == 1:
            left = self.state.max_steps - self.state.global_step
            shown = not self.args.disable_tqdm
            record_passes(step, tokens, pairs, wanted=self.args.cuda_graphs, steps=left, show_progress=shown)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the mean loss of one batch; where the model trains and gradients are on, one to differentiate.

        Evaluation calls it; training goes through `training_step`. With `return_outputs` (`predict()`), also what the
        model gives for the padded batch, logits among it.
        """
        if self.preference_step is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        metrics = self._pair_metrics["train" if self.model.training else "eval"]
        if self.model.training and torch.is_grad_enabled():
            loss = differentiable_loss(self.preference_step, [inputs["pairs"]], metrics)
        else:
            loss = self.preference_step.evaluate(inputs["pairs"], metrics)
        if not return_outputs:
            return loss
        with torch.no_grad():
            return loss, model(**{name: inputs[name] for name in ("input_ids", "attention_mask")}, use_cache=False)

    def compute_ref_log_probs(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return TRL's reference log-probabilities of a padded batch, for values that are computed beforehand."""
        return super().compute_ref_log_probs(model, {name: inputs[name] for name in inputs if name != "pairs"})  # type: ignore[no-any-return]

    def predict(self, *args: Any, **kwargs: Any) -> PredictionOutput:
        """Predict as transformers does; the metrics of what is predicted are in no log, and in no later one either."""
        output = super().predict(*args, **kwargs)
        if self.preference_step is not None:
            self._pair_metrics["eval"].read()
        return output

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Estimate the operations of a training step on one batch as transformers does, 6 a parameter and token."""
        if self.preference_step is None:
            return int(super().floating_point_ops(inputs))
        tokens = sum(len(pair.chosen) + len(pair.rejected) for pair in inputs["pairs"])
        return 6 * tokens * self._parameters_outside_embeddings

    @cached_property
    def _parameters_outside_embeddings(self) -> int:
        assert self.preference_step is not None
        return int(self.preference_step.policy.causal_lm.num_parameters(exclude_embeddings=True))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Read the metrics of the interval, reduced over processes, and pass everything on under TRL's names."""
        if self.preference_step is not None:
            mode = "train" if self.model.training else "eval"
            metrics = self._pair_metrics[mode].read(lambda sums: self.accelerator.reduce(sums, "sum"))
            for name, value in metrics.items():
                self._metrics[mode][name] = [value]
            if metrics:
                self._metrics[mode]["num_tokens"] = [self._total_train_tokens]
            if "loss" in logs and self._losses is not None:
                self._losses.log(self.state.global_step)
            if "train_runtime" in logs:
                logs |= {f"train_reference_{name}": count for name, count in self.reference_counts().items()}
        super().log(logs, start_time)
