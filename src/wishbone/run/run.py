"""One run from its configuration to its run directory.

    config.yaml       every setting, resolved            metrics.jsonl   one line a log
    environment.json  versions and hardware              adapter/        what was learned, PEFT format
    checkpoints/      to resume from                     summary.json    the result in numbers
    report.html       the result to look at

Held-out pairs are evaluated before and after, so that a run says what it changed.
"""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import get_last_checkpoint

from wishbone.config.load import dump_config
from wishbone.config.run_directory import CHECKPOINTS, choose_run_directory
from wishbone.config.schema import ModelConfig, RunConfig
from wishbone.data.inspect import Inspection, inspect_pairs, refuse_or_drop, unteachable
from wishbone.data.rows import InvalidRows, MalformedRows
from wishbone.data.source import load_pairs
from wishbone.data.tokenize import tokenize_pairs
from wishbone.errors import RequestError
from wishbone.model.adapter import lora_config
from wishbone.model.load import load_model
from wishbone.preference.losses import are_reference_free
from wishbone.report.html import write_report
from wishbone.run.progress import ProgressBar
from wishbone.run.run_files import MetricsFile, environment, peak_memory_gib, write_json, write_text
from wishbone.trainer.arguments import DPOConfig
from wishbone.trainer.compatibility import trl_path_obstacle
from wishbone.trainer.trainer import DPOTrainer


def train(config: RunConfig, *, resume: bool = False, console: Console | None = None) -> Path:
    """Run preference optimization as `config` says and return the run directory.

    Args:
        config: the checked configuration.
        resume: continue from the newest checkpoint in the run directory.
        console: where progress goes; standard error by default.

    Raises:
        RequestError: if data, model or settings cannot be used, or there is nothing to resume.
    """
    console = console or Console(stderr=True)
    run_dir = choose_run_directory(config, resume=resume)
    checkpoint = _newest_checkpoint(run_dir) if resume else None
    model, tokenizer = _load(config.model, config.model.name, config.model.revision)
    train_pairs, heldout, dropped = prepare_data(config, tokenizer)
    lora = config.adapter.method == "lora"
    trainer = DPOTrainer(
        model=model,
        ref_model=None if config.model.reference is None else _load(config.model, config.model.reference)[0],
        args=training_arguments(config, run_dir, model.dtype),
        train_dataset=train_pairs,
        eval_dataset=heldout,
        processing_class=tokenizer,
        peft_config=_adapter(config, model) if lora else None,
        callbacks=[MetricsFile(run_dir / "metrics.jsonl"), ProgressBar(console)],
    )
    trainer.remove_callback(PrinterCallback)
    writes = trainer.is_world_process_zero()
    if writes:
        run_dir.mkdir(parents=True, exist_ok=True)
        write_text(run_dir / "config.yaml", dump_config(config))
        write_json(run_dir / "environment.json", environment())
    summary: dict[str, Any] = {
        "status": "running",
        "started": _now(),
        "model": config.model.name,
        "pairs": {"train": len(train_pairs), "heldout": 0 if heldout is None else len(heldout)},
        "dropped_rows": dropped,
        "form": trainer.preference_step.policy.form if trainer.preference_step else "trl",
        "form_reason": trainer.form_reason,
        "heldout_before": None if heldout is None else _evaluate(trainer),
    }
    if writes:
        write_json(run_dir / "summary.json", summary)
    began = time.perf_counter()
    trainer.train(resume_from_checkpoint=checkpoint)
    seconds = time.perf_counter() - began
    heldout_after = None if heldout is None else _evaluate(trainer)
    reference = trainer.reference_counts()
    if writes:
        save_to = run_dir / ("adapter" if lora else "model")
        trainer.accelerator.unwrap_model(trainer.model).save_pretrained(save_to)
        tokenizer.save_pretrained(save_to)
        summary |= {
            "status": "done",
            "finished": _now(),
            "heldout_after": heldout_after,
            "steps": trainer.state.global_step,
            "train_seconds": round(seconds, 2),
            "pairs_per_second": round(trainer.trained_pairs / seconds, 3),
            "tokens_per_second": round(trainer.trained_tokens / seconds, 1),
            "peak_memory_gib": round(peak_memory_gib(), 2),
            "device": trainer.args.device.type,
            "reference_pairs": reference or None,
        }
        write_json(run_dir / "summary.json", summary)
        if reference:
            counts = f"{reference['computed']} computed, {reference['reused']} reused"
            console.print(f"reference log-probabilities: {counts}", highlight=False)
        write_report(run_dir)
    return run_dir


def prepare_data(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> tuple[Dataset, Dataset | None, int]:
    """Load, tokenize and check the pairs of a run.

    Returns:
        Pairs to learn from, pairs held out or None, and how many unusable rows were dropped from both.

    Raises:
        RequestError: if the data cannot be read, holds no usable pair, or holds unusable rows that may not be dropped.
    """
    data = config.data

    def tokenized(source: str, split: str, invalid_rows: InvalidRows) -> tuple[Dataset, Inspection]:
        rows = load_pairs(source, split=split, invalid_rows=invalid_rows, system_prompt=data.system_prompt)
        pairs = tokenize_pairs(rows, tokenizer)
        return pairs, inspect_pairs(pairs, max_length=data.max_length, truncation=data.truncation)

    def usable(source: str, split: str) -> tuple[Dataset, int]:
        try:
            pairs, inspection = tokenized(source, split, data.invalid_rows)
        except MalformedRows as malformed:
            _, inspection = tokenized(source, split, "drop")
            raise RequestError([*malformed.problems, *unteachable(inspection)]) from malformed
        kept = refuse_or_drop(pairs, inspection, data.invalid_rows)
        return kept, len(pairs) - len(kept)

    pairs, dropped = usable(data.train, data.split)
    if data.eval is not None or data.eval_split is not None:
        heldout, heldout_dropped = usable(data.eval or data.train, data.eval_split or data.split)
        return pairs, heldout, dropped + heldout_dropped
    if data.eval_fraction > 0:
        if len(pairs) < 2:
            raise RequestError(
                f"data.eval_fraction {data.eval_fraction:g} of {len(pairs)} pair leaves nothing to train on"
            )
        count = min(max(1, round(len(pairs) * data.eval_fraction)), len(pairs) - 1)
        parts = pairs.train_test_split(test_size=count, seed=config.training.seed)
        return parts["train"], parts["test"], dropped
    return pairs, None, dropped


def training_arguments(config: RunConfig, run_dir: Path, dtype: torch.dtype) -> DPOConfig:
    """Return the trainer's arguments for a configuration; `dtype` is the model's."""
    training, preference, data = config.training, config.preference, config.data
    cuda = torch.cuda.is_available()
    evaluates = data.eval is not None or data.eval_split is not None or data.eval_fraction > 0
    every = {"eval": training.eval_steps, "save": training.save_steps}
    return DPOConfig(
        output_dir=str(run_dir / CHECKPOINTS),
        per_device_train_batch_size=training.batch_size,
        per_device_eval_batch_size=8,
        gradient_accumulation_steps=training.gradient_accumulation,
        learning_rate=training.learning_rate,
        num_train_epochs=training.epochs,
        max_steps=training.max_steps or -1,
        warmup_steps=training.warmup_ratio if training.warmup_ratio < 1 else 0.999,
        lr_scheduler_type=training.scheduler,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        optim=training.optimizer,
        seed=training.seed,
        logging_steps=training.logging_steps,
        logging_nan_inf_filter=False,
        eval_strategy=("no" if not evaluates else "steps" if every["eval"] else "epoch"),
        eval_steps=every["eval"],
        save_strategy="steps" if every["save"] else "epoch",
        save_steps=every["save"] or 500,
        save_total_limit=2,
        report_to=config.output.report_to or "none",
        disable_tqdm=True,
        use_cpu=not cuda,
        dataloader_pin_memory=cuda,
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        gradient_checkpointing=training.activations != "keep",
        activations="auto" if training.activations == "keep" else training.activations,
        max_length=data.max_length,
        truncation_mode=data.truncation,
        beta=preference.beta,
        loss_type=list(preference.loss),
        loss_weights=preference.loss_weights,
        label_smoothing=preference.label_smoothing,
        f_divergence_type=preference.f_divergence,
        f_alpha_divergence_coef=preference.f_alpha,
        ld_alpha=preference.ld_alpha,
        use_weighting=preference.use_weighting,
        discopop_tau=preference.discopop_tau,
        simpo_gamma=preference.simpo_gamma,
        dpop_lambda=preference.dpop_lambda,
        rdpo_alpha=preference.rdpo_alpha,
        cpo_alpha=preference.cpo_alpha,
        orpo_lambda=preference.orpo_lambda,
        token_budget=training.token_budget,
        precompute_ref_log_probs=_precomputes_reference(config),
        reference_store=training.reference_store,
        disable_dropout=config.adapter.dropout == 0,
    )


def _load(model: ModelConfig, name: str, revision: str | None = None) -> tuple[PreTrainedModel, Any]:
    """The model of that name and its tokenizer, with weights in the run's form."""
    return load_model(
        name,
        dtype=model.dtype,
        revision=revision,
        trust_remote_code=model.trust_remote_code,
        load_in_4bit=model.quantization == "nf4",
        load_in_fp8=model.quantization == "fp8",
    )


def _precomputes_reference(config: RunConfig) -> bool:
    """Whether the model itself is the reference, every weight of it will move, and TRL can compute its values here."""
    moves = config.adapter.method == "full" and config.model.reference is None
    possible = trl_path_obstacle("cuda" if torch.cuda.is_available() else "cpu") is None
    return moves and possible and not are_reference_free(config.preference.loss)


def _adapter(config: RunConfig, model: PreTrainedModel) -> LoraConfig:
    adapter = config.adapter
    return lora_config(
        model,
        rank=adapter.rank,
        alpha=adapter.alpha,
        dropout=adapter.dropout,
        target_modules=adapter.target_modules,
    )


def _evaluate(trainer: DPOTrainer) -> dict[str, float]:
    """Metrics of the held-out pairs without their prefix."""
    metrics = trainer.evaluate()
    return {name.removeprefix("eval_"): value for name, value in metrics.items() if name.startswith("eval_")}


def _newest_checkpoint(run_dir: Path) -> str:
    checkpoints = run_dir / CHECKPOINTS
    newest: str | None = get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None
    if newest is None:
        raise RequestError(
            f"there is no checkpoint in {checkpoints} to resume from; start anew in another directory or delete it"
        )
    return newest


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
