"""One run from its configuration to its run directory.

    config.yaml       every setting, resolved            metrics.jsonl   one line a log
    environment.json  versions and hardware              adapter/        what was learned, PEFT format
    checkpoints/      to resume from                     summary.json    the result in numbers
    report.html       the result to look at

Held-out pairs are evaluated before and after training, so the summary shows what changed.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import transformers
from rich.console import Console
from transformers.trainer_callback import PrinterCallback

from wishbone.atomic_file import write_text
from wishbone.config.load import dump_config
from wishbone.config.run_directory import CONFIG_FILE, METRICS, claimed_run_directory
from wishbone.config.schema import RunConfig
from wishbone.config.trackers import chosen_trackers
from wishbone.errors import RequestError, RunError, counted_of
from wishbone.model.saved_adapter import name_base
from wishbone.phases import heard, phase
from wishbone.report.answers import Answer, write_answers
from wishbone.report.html import REPORT, write_report
from wishbone.run.closing_answers import ClosingAnswers
from wishbone.run.ending import early_end_noted, now, write_result
from wishbone.run.heldout import evaluate, evaluated_last
from wishbone.run.loading import adapter_of, load_pairs, load_policy, load_reference
from wishbone.run.phase_display import phases_shown
from wishbone.run.planned_memory import planned_memory
from wishbone.run.preflight import check_access
from wishbone.run.prepare_data import trained_template
from wishbone.run.processes import agreed_directory, is_first_process
from wishbone.run.progress import TrainingPhases
from wishbone.run.resume import (
    deciding_settings,
    finished_steps,
    heldout_before,
    nothing_saved,
    refuse_another_run,
    settings_of_processes,
    template_of_run,
    tracked_before,
)
from wishbone.run.run_files import MetricsFile, environment, peak_memory_gib, write_json
from wishbone.run.sharding import FSDP, divided_before, divides_model, loading_place
from wishbone.run.shown_pairs import write_shown_pairs
from wishbone.run.stop_signals import StopSignals
from wishbone.run.tracker_texts import TrackerTexts
from wishbone.run.trackers import open_trackers, tracked_name
from wishbone.run.training_arguments import training_arguments
from wishbone.trainer.fingerprint import pairs_facts
from wishbone.trainer.image_tokens import images_of, trained_columns
from wishbone.trainer.same_run import failure_announced, libraries, refuse_differences
from wishbone.trainer.stop_after_step import StopAfterStep
from wishbone.trainer.trainer import DPOTrainer
from wishbone.trainer.whole_weights import whole_weights

logger = logging.getLogger(__name__)


def train(
    config: RunConfig,
    *,
    resume: bool = False,
    console: Console | None = None,
    run_dir: Path | None = None,
    signals: StopSignals | None = None,
) -> Path:
    """Run preference optimization as `config` says and return the run directory.

    Args:
        config: the checked configuration.
        resume: continue from the newest sound checkpoint in the run directory; nothing is done where all steps are.
        console: where progress goes; standard error by default.
        run_dir: directory that the caller has claimed (`claimed_run_directory`); None: the one of `config`.
        signals: after one of these training saves a checkpoint and stops; None: signals do what they did.

    Raises:
        RequestError: data, model or settings cannot be used; there is nothing to resume, or it is another run.
        RunError: a loss or a gradient is NaN or infinite, or a checkpoint cannot be written.
        Stopped: a signal came.
    """
    console = console or Console(stderr=True)
    with ExitStack() as opened, failure_announced():
        if is_first_process() and not heard():
            opened.enter_context(phases_shown(console))
        if run_dir is None and is_first_process():
            run_dir = opened.enter_context(claimed_run_directory(config, resume=resume))
        datasets.disable_progress_bars()  # phases are shown instead
        transformers.utils.logging.disable_progress_bar()
        return _train(config, run_dir, resume, console, signals, opened)


def _train(
    config: RunConfig,
    claimed: Path | None,
    resume: bool,
    console: Console,
    signals: StopSignals | None,
    opened: ExitStack,
) -> Path:
    """Train in a directory that this process has claimed, or None where another process of the run has."""
    run_dir = agreed_directory(claimed)
    several = int(os.environ.get("WORLD_SIZE") or 1) > 1
    if several:
        refuse_differences({**settings_of_processes(config), **libraries()})
    if resume and nothing_saved(run_dir):
        console.print("no checkpoint was written before, so the run begins with its first step", highlight=False)
        resume = False
    if resume:
        refuse_another_run(config, run_dir)
        if (steps := finished_steps(config, run_dir)) is not None:
            console.print(
                f"this run is finished: {counted_of(steps, steps, 'step')}; to train on, set training.max_steps above "
                f"{steps}",
                highlight=False,
            )
            if claimed is not None and not (run_dir / REPORT).exists():
                _report(run_dir)
            return run_dir
        config = template_of_run(config, run_dir)
    check_access(config.model_copy(update={"output": config.output.model_copy(update={"dir": str(run_dir)})}))
    described, train_pairs, heldout, dropped = load_pairs(config)
    if several:
        refuse_differences({"training data": pairs_facts(train_pairs), "held-out data": pairs_facts(heldout)})
    images = images_of(train_pairs) + (0 if heldout is None else images_of(heldout))
    divided = divides_model(config, described, train_pairs, divided_before(run_dir) if resume else None)
    if divided and images:
        raise RequestError(
            "a model that reads images is not divided over GPUs, because rows with and without images run other parts "
            "of it; set model.sharding to none, with model.quantization nf4 or fp8 where one GPU does not hold it"
        )
    place = loading_place(config) if divided else {}
    model, processor = load_policy(config, place, images=images > 0)
    tokenizer = getattr(processor, "tokenizer", processor)
    dtype = model.dtype
    lora = config.adapter.method == "lora"
    metrics = MetricsFile(run_dir / METRICS)
    tracked_as = (resume and tracked_before(run_dir)) or tracked_name(run_dir)
    asked_for = chosen_trackers(config.output.report_to) if is_first_process() else []
    trackers = opened.enter_context(open_trackers(asked_for, run_dir))
    trainer = DPOTrainer(
        model=model,
        ref_model=load_reference(config, place, images=images > 0),
        args=training_arguments(config, run_dir, dtype, tracked_as, FSDP if divided else {}, images=images > 0),
        train_dataset=trained_columns(train_pairs),
        eval_dataset=None if heldout is None else trained_columns(heldout),
        processing_class=processor,
        peft_config=adapter_of(config, model, images=images > 0) if lora else None,
        callbacks=[
            metrics,
            TrainingPhases(),
            *trackers,
            *([StopAfterStep(signals)] if signals else []),
        ],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.deciding = deciding_settings(config)
    checkpoint = str(trainer.checkpoint_to_resume()) if resume else None
    if trainer.guard is not None:
        trainer.guard.record.folder = run_dir
    writes = trainer.is_world_process_zero()
    if writes and not resume:
        metrics.begin_anew()
    summary: dict[str, Any] = {
        "status": "running",
        "started": now(),
        "tracked_as": tracked_as,
        "model": config.model.name,
        "pairs": {"train": len(train_pairs), "heldout": 0 if heldout is None else len(heldout)},
        "dropped_rows": dropped,
        **({"images": images} if images else {}),
        "form": trainer.preference_step.policy.form if trainer.preference_step else "trl",
        "form_reason": trainer.form_reason,
        "fused_parts": trainer.coverage.as_json() if trainer.coverage else None,
        "memory_plan": planned_memory(
            config, model.config.to_dict(), train_pairs, processes=trainer.accelerator.num_processes
        ),
        "heldout_before": None if heldout is None else (resume and heldout_before(run_dir)) or evaluate(trainer),
    }
    if writes:
        form = trained_template(train_pairs, config.data.template)
        data = config.data.model_copy(update={"template": form})
        write_text(run_dir / CONFIG_FILE, dump_config(config.model_copy(update={"data": data})))
        write_json(run_dir / "environment.json", environment())
        write_json(run_dir / "summary.json", summary)
        shown = write_shown_pairs(run_dir, train_pairs, heldout, processor, config.data.max_length)
        if images and config.output.answers:
            logger.warning("No prompts with images are answered during a run; `wishbone compare` does that afterwards.")
        texts = TrackerTexts(trackers, lambda: trainer.guard.record.rows if trainer.guard else (), shown)
        trainer.add_callback(texts)
        asked = train_pairs if heldout is None else heldout
        if divided and config.output.answers:
            logger.warning("A divided model answers no prompts during its run; `wishbone compare` asks it afterwards.")
        answers = ClosingAnswers(trainer, asked, tokenizer, 0 if images or divided else config.output.answers)
    with early_end_noted(summary, run_dir / "summary.json" if writes else None, lambda: trainer.state.global_step):
        began = time.perf_counter()
        with signals.saving() if signals else nullcontext():
            trainer.train(resume_from_checkpoint=checkpoint)
        seconds = time.perf_counter() - began
        heldout_after = None if heldout is None else evaluated_last(trainer) or evaluate(trainer)
        reference = trainer.reference_counts()
        whole = whole_weights(trainer.model, keep=writes, dtype=None if lora else dtype) if divided else None
        if writes:
            learned = trainer.accelerator.unwrap_model(trainer.model)
            own = learned.save_pretrained if whole is None else partial(learned.save_pretrained, state_dict=whole)
            writers = [own, processor.save_pretrained]
            if lora:
                writers.append(partial(name_base, name=config.model.name, revision=config.model.revision))
            with phase("saving"):
                write_result(run_dir / ("adapter" if lora else "model"), *writers)
            summary |= {
                "status": "done",
                "finished": now(),
                "heldout_after": heldout_after,
                "steps": trainer.state.global_step,
                "train_seconds": round(seconds, 2),
                "pairs_per_second": round(trainer.trained_pairs / seconds, 3),
                "tokens_per_second": round(trainer.trained_tokens / seconds, 1),
                "peak_memory_gib": round(peak_memory_gib(), 2),
                "device": trainer.args.device.type,
                "execution": _execution(trainer),
                "reference_pairs": reference or None,
                "lost_metrics_lines": metrics.lost,
                "guard": trainer.guard.summary() if trainer.guard else None,
            }
            write_json(run_dir / "summary.json", summary)
    if writes:
        found = answers.finish()
        texts.tell_answers(found, trainer.state.global_step)
        _report(run_dir, found)
        if trainer.guard is not None:
            trainer.guard.discard()  # last: a run that is killed before this ends with the same weights when continued
    return run_dir


def _report(run_dir: Path, answers: Sequence[Answer] = ()) -> None:
    """Write the report of a run that is done, and its answers if there are any.

    Raises:
        RunError: the disk is full or fails.
    """
    try:
        if answers:
            write_answers(run_dir, answers)
        write_report(run_dir)
    except RequestError as error:
        raise RunError(f"{error}. The run is done and what it learned is whole; --resume writes the report") from error


def _execution(trainer: DPOTrainer) -> dict[str, Any] | None:
    """How rows were computed when the run ended; null on TRL's own path."""
    step = trainer.preference_step
    return None if step is None else trainer.execution.summary(len(step.policy.layers))
