"""`DPOTrainer`: TRL's trainer with Wishbone's step.

Everything around the step is TRL's and transformers': callbacks, schedules, trackers, checkpoints, hub upload, the
evaluation loop. What is ours is the data's way to token ids, the collator, and `training_step`: it collects the
batches of one optimizer step and hands them to `PreferenceStep` when the step is due. What the step does not cover runs
on TRL's own path, and one line says why.
"""

from __future__ import annotations

import logging
from typing import Any

import psutil
import torch
from datasets import Dataset, IterableDataset
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from trl import DPOConfig as TRLDPOConfig
from trl import DPOTrainer as TRLDPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from wishbone.data.batch import TokenizedPair, truncated_pair
from wishbone.data.tokenize import tokenize_pairs
from wishbone.errors import RequestError
from wishbone.model.activations import Activations
from wishbone.model.capability import choose_form
from wishbone.model.policy import Policy
from wishbone.planning.budget import kept_tokens, token_budget
from wishbone.preference.losses import LOSSES
from wishbone.preference.metrics import PairMetrics
from wishbone.preference.objective import Objective
from wishbone.preference.reference import AdapterDisabled, NoReference, ReferencePolicy, SeparateModel, Stored
from wishbone.preference.scores import LossParameters
from wishbone.training.arguments import DPOConfig
from wishbone.training.compatibility import check_trl
from wishbone.training.distributed import average_gradients, sum_over_processes
from wishbone.training.step import PreferenceStep

logger = logging.getLogger(__name__)

TRL_LOSSES = LOSSES.keys() - {"dpop", "rdpo", "simpo", "cpo", "orpo"}


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
        args: TRLDPOConfig | None = None,
        data_collator: Any = None,
        *positional: Any,
        **options: Any,
    ) -> None:
        check_trl()
        if args is not None and not isinstance(args, DPOConfig):
            args = DPOConfig.from_trl(args)
        super().__init__(model, ref_model, args, data_collator, *positional, **options)
        if not isinstance(self.args, DPOConfig):
            self.args = DPOConfig.from_trl(self.args)
        self.preference_step: PreferenceStep | None = None
        self.form_reason = _trl_path_reason(self, collator_given=data_collator is not None)
        self.trained_pairs = 0
        if self.form_reason:
            own_losses = sorted(set(self.loss_types) - TRL_LOSSES)
            if own_losses:
                raise RequestError(
                    f"loss_type {', '.join(own_losses)} needs Wishbone's step, and this run needs TRL's own path, "
                    f"because {self.form_reason}: change that, or choose a loss of TRL's"
                )
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
        """Leave the layers alone without gradient checkpointing; with it, what fits ("auto") or none ("recompute")."""
        causal_lm: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        if not self.args.gradient_checkpointing:
            return Activations(causal_lm, None)
        if self.args.activations == "recompute":
            return Activations(causal_lm, 0)
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
        return AdapterDisabled(policy, "ref" if "ref" in policy.model.peft_config else None, objective.ld_alpha)

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: DPOConfig, dataset_name: str
    ) -> Dataset | IterableDataset:
        """Tokenize in batches instead of row by row; the ids are TRL's."""
        if not isinstance(processing_class, PreTrainedTokenizerBase):
            return super()._prepare_dataset(dataset, processing_class, args, dataset_name)
        tokenized = tokenize_pairs(dataset, processing_class, num_proc=args.dataset_num_proc)
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


def _trl_path_reason(trainer: DPOTrainer, *, collator_given: bool) -> str | None:
    """Return what the run asks for that only TRL's path does, or None."""
    model = trainer.model
    dropout = {m.p for m in model.modules() if isinstance(m, nn.Dropout)} - {0.0}
    attention_dropout = getattr(model.config.get_text_config(), "attention_dropout", 0.0)
    prompt_learning = isinstance(model, PeftModel) and any(c.is_prompt_learning for c in model.peft_config.values())
    reasons = {
        "the data has images": trainer._is_vision_dataset,
        "the model takes more than text": trainer._is_vlm,
        "a data collator was given": collator_given,
        "compute_metrics reads logits": trainer.compute_metrics is not None,
        "the model's mixture of experts has an auxiliary loss over whole batches": trainer.aux_loss_enabled,
        "dropout is on (disable_dropout=False)": bool(dropout),
        "attention dropout is on in the model's configuration": bool(attention_dropout),
        "prompt-learning adapters put virtual tokens before the prompt": prompt_learning,
        "the model is sharded by DeepSpeed or FSDP": trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled,
        "the reference model is synchronized with the policy": trainer.args.sync_ref_model,
    }
    found = [reason for reason, holds in reasons.items() if holds]
    return " and ".join(found) or None
