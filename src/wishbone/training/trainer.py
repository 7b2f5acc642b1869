"""`DPOTrainer`: TRL's trainer with Wishbone's step.

Everything around the step is TRL's and transformers': callbacks, schedules, trackers, checkpoints, hub upload, the
evaluation loop. What is ours is the data's way to token ids, the collator, and `training_step`: it collects the
batches of one optimizer step and hands them to `PreferenceStep` when the step is due. What the step does not cover runs
on TRL's own path, and one line says why.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import psutil
import torch
from datasets import Dataset, IterableDataset
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, TrainingArguments
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.dpo_trainer import DPOTrainer as TRLDPOTrainer

from wishbone.data.batch import TokenizedPair, truncated_pair
from wishbone.data.tokenize import tokenize_pairs
from wishbone.model.activations import Activations, chosen_activations
from wishbone.model.adapter import copy_adapter
from wishbone.model.capability import choose_form
from wishbone.model.policy import Policy
from wishbone.planning.budget import kept_tokens, token_budget
from wishbone.preference.metrics import PairMetrics
from wishbone.preference.objective import Objective
from wishbone.preference.reference import AdapterDisabled, NoReference, ReferencePolicy, SeparateModel, Stored
from wishbone.preference.scores import LossParameters
from wishbone.preference.synchronized import SynchronizedAdapter
from wishbone.training.arguments import DPOConfig
from wishbone.training.compatibility import OVERRIDDEN, check_trl
from wishbone.training.distributed import average_gradients, sum_over_processes
from wishbone.training.head_adapter import adapts_head, add_adapter_on_head, head_hidden
from wishbone.training.legacy import modern_arguments
from wishbone.training.step import PreferenceStep
from wishbone.training.synchronization import Synchronization, refuse_stale_reference
from wishbone.training.trl_path import refuse_on_trl_path, trl_path_reason

logger = logging.getLogger(__name__)


class PairCollator(DataCollatorForPreference):  # type: ignore[misc]
    """Turns rows of token ids into `TokenizedPair`s, truncated as TRL truncates; tensors are made by the step."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return `{"pairs": [TokenizedPair, ...]}`."""
        return {
            "pairs": [
                truncated_pair(
                    list(example["prompt_ids"]),
                    list(example["chosen_ids"]),
                    list(example["rejected_ids"]),
                    max_length=self.max_length,
                    keep_end=self.truncation_mode == "keep_end",
                    ref_chosen_logps=example.get("ref_chosen_logps"),
                    ref_rejected_logps=example.get("ref_rejected_logps"),
                )
                for example in examples
            ]
        }


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
        adapter_added = adapts_head(model, options.get("peft_config"))
        if adapter_added:
            model = add_adapter_on_head(model, options.pop("peft_config"), (config or DPOConfig).seed)
        synchronized = False
        if config is not None and config.sync_ref_model and (isinstance(model, PeftModel) or options.get("peft_config")):
            config, synchronized = config.changed({"sync_ref_model": False}), True
        with head_hidden(model) as head_adapted:
            refuse_stale_reference(config, head_adapted=head_adapted, synchronized=synchronized)
            super().__init__(model, ref_model, config, data_collator, **options)
        self.args = DPOConfig.from_arguments(self.args)
        self.args.sync_ref_model |= synchronized
        if isinstance(self.model, PeftModel) and "ref" in self.model.peft_config:
            if adapter_added:
                self.model.delete_adapter("ref")
            else:
                copy_adapter(self.model, "default", "ref")
        self.preference_step: PreferenceStep | None = None
        self.form_reason = trl_path_reason(self, DPOTrainer, collator_given=data_collator is not None)
        self.trained_pairs = 0
        if self.form_reason:
            refuse_on_trl_path(self, head_adapted=head_adapted, synchronized=synchronized)
            logger.warning("This run takes TRL's own path, because %s.", self.form_reason)
            return
        self.data_collator = PairCollator(
            pad_token_id=self._tokenizer.pad_token_id,
            max_length=self.args.max_length,
            truncation_mode=self.args.truncation_mode,
        )
        self._pair_metrics = {"train": PairMetrics(self.beta), "eval": PairMetrics(self.beta)}
        self._pending: list[list[TokenizedPair]] = []
        self.preference_step = self._build_step()

    @property
    def trained_tokens(self) -> int:
        """Tokens of all sequences trained on since construction."""
        return int(self._total_train_tokens)

    def _build_step(self) -> PreferenceStep:
        args = self.args
        objective = Objective(
            losses=tuple(self.loss_types),
            loss_weights=tuple(self.loss_weights),
            parameters=LossParameters(
                beta=args.beta,
                label_smoothing=args.label_smoothing,
                f_divergence=args.f_divergence_type,
                f_alpha=args.f_alpha_divergence_coef,
                discopop_tau=args.discopop_tau,
                simpo_gamma=args.simpo_gamma,
                dpop_lambda=args.dpop_lambda,
                rdpo_alpha=args.rdpo_alpha,
                cpo_alpha=args.cpo_alpha,
                orpo_lambda=args.orpo_lambda,
            ),
            ld_alpha=args.ld_alpha,
            use_weighting=args.use_weighting,
        )
        policy, self.form_reason = self._policy(self.model)
        budget = token_budget(args.token_budget, policy.device.type)
        return PreferenceStep(policy, self._reference(policy, objective), objective, budget)

    def _policy(self, model: nn.Module) -> tuple[Policy, str | None]:
        row_multiple = 128 if next(model.parameters()).is_cuda else 1
        capability = choose_form(model, max_length=self.args.max_length, row_multiple=row_multiple)
        if capability.reason:
            logger.warning("%s is trained on plain sequences: %s.", type(model).__name__, capability.reason)
        policy = Policy(
            model,
            form=capability.form,
            row_multiple=row_multiple,
            autocast=self.accelerator.autocast,
            activations=self._activations(model) if model is self.model else None,
        )
        return policy, capability.reason

    def _activations(self, model: nn.Module) -> Activations:
        """What the arguments say, or else what was noted on the model; without either the layers are left alone."""
        causal_lm: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        asked = self.args.activations if self.args.activations != "auto" else chosen_activations(causal_lm)
        if asked is None and not self.args.gradient_checkpointing:
            return Activations(causal_lm, None)
        if asked is not None:
            return Activations(causal_lm, sys.maxsize if asked == "keep" else 0, offload=asked == "offload")
        numbers = 2 if self.args.bf16 or self.args.fp16 else causal_lm.dtype.itemsize
        device = next(model.parameters()).device.type
        free = torch.cuda.mem_get_info()[0] if device == "cuda" else psutil.virtual_memory().available
        return Activations(causal_lm, kept_tokens(causal_lm.config.get_text_config(), numbers, free, device))

    def _reference(self, policy: Policy, objective: Objective) -> ReferencePolicy:
        if objective.reference_free:
            return NoReference()
        if self.precompute_ref_logps:
            return Stored()
        if self.ref_model is not None:
            return SeparateModel(self._policy(self.ref_model)[0], objective.ld_alpha)
        assert isinstance(policy.model, PeftModel)
        if self.args.sync_ref_model:
            reference = SynchronizedAdapter(policy, objective.ld_alpha)
            self.add_callback(Synchronization(reference))
            return reference
        return AdapterDisabled(policy, "ref" if "ref" in policy.model.peft_config else None, objective.ld_alpha)

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

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Collect the batches of one optimizer step; with the last one, compute its loss and gradients."""
        if self.preference_step is None:
            loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
            return loss
        model.train()
        if callable(getattr(self.optimizer, "train", None)):
            self.optimizer.train()
        self._pending.append(inputs["pairs"])
        if not self.accelerator.sync_gradients:
            return torch.zeros((), device=self.args.device)
        groups, self._pending = self._pending, []
        pairs = [pair for group in groups for pair in group]
        tokens = sum(len(pair.chosen) + len(pair.rejected) for pair in pairs)
        self.trained_pairs += sum_over_processes(len(pairs), self.accelerator)
        self._total_train_tokens += sum_over_processes(tokens, self.accelerator)
        with self.maybe_activation_offload_context:
            loss = self.preference_step.backward(groups, self._pair_metrics["train"], self.accelerator.backward)
        average_gradients(self.preference_step.policy.model, self.accelerator)
        return loss.to(self.args.device)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the mean loss of one batch without gradients (evaluation); training goes through `training_step`."""
        if self.preference_step is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        mode = "train" if self.model.training else "eval"
        return self.preference_step.evaluate(inputs["pairs"], self._pair_metrics[mode])

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Estimate the operations of a training step on one batch as transformers does, 6 a parameter and token."""
        if self.preference_step is None:
            return int(super().floating_point_ops(inputs))
        tokens = sum(len(pair.chosen) + len(pair.rejected) for pair in inputs["pairs"])
        return 6 * tokens * int(self.preference_step.policy.causal_lm.num_parameters(exclude_embeddings=True))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Read the metrics of the interval, reduced over processes, and pass everything on under TRL's names."""
        if self.preference_step is not None:
            mode = "train" if self.model.training else "eval"
            metrics = self._pair_metrics[mode].read(lambda sums: self.accelerator.reduce(sums, "sum"))
            for name, value in metrics.items():
                self._metrics[mode][name] = [value]
            if metrics:
                self._metrics[mode]["num_tokens"] = [self._total_train_tokens]
        super().log(logs, start_time)
