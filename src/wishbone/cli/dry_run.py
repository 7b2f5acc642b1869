"""`wishbone train --dry-run`: the plan of a run from its configuration, tokenizer and data; loads no weights."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from rich.table import Table

from wishbone.cli.console import plain, say, screen
from wishbone.config.emit import number_text
from wishbone.config.schema import AdapterConfig, PreferenceConfig, RunConfig
from wishbone.data.inspect import Inspection, inspect_pairs
from wishbone.errors import counted
from wishbone.model.load import load_tokenizer, read_model_config
from wishbone.planning.schedule import schedule
from wishbone.run.prepare_data import prepare_data, processor_of
from wishbone.run.sequence_lengths import check_lengths, this_cpu


def print_plan(config: RunConfig) -> None:
    """Read and check the pairs of a run as training would, and print what training would do.

    Raises:
        RequestError: the tokenizer or the pairs cannot be loaded or used.
    """
    model, data = config.model, config.data
    described = read_model_config(model.name, model.revision, model.trust_remote_code, weights=False)
    tokenizer = load_tokenizer(model.name, revision=model.revision, trust_remote_code=model.trust_remote_code)
    pairs, heldout, dropped = prepare_data(config, tokenizer, processor_of(model, described))
    check_lengths(config, described, pairs, None if torch.cuda.is_available() else this_cpu())
    inspection = inspect_pairs(pairs, max_length=data.max_length, truncation=data.truncation)
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in _lines(config, inspection, 0 if heldout is None else len(heldout), dropped):
        table.add_row(plain(name, "bold"), plain(text))
    screen().print(table)
    for warning in inspection.warnings:
        say(warning, marker="note: ", style="bold yellow", error=True)


def _lines(config: RunConfig, inspection: Inspection, heldout: int, dropped: int) -> Iterator[tuple[str, str]]:
    data, training = config.data, config.training
    plan = schedule(inspection.rows, training)
    revision = f" at {config.model.revision}" if config.model.revision else ""
    weights = "" if config.model.quantization == "none" else f", {config.model.quantization}"
    yield "Model", f"{config.model.name}{revision}, dtype {config.model.dtype}{weights}"
    yield "Trained", _trained(config.adapter)
    if config.model.reference is not None:
        yield "Reference", config.model.reference
    yield (
        "Pairs",
        f"{inspection.rows:,} of {data.train}, split {data.split}"
        + (f"; {counted(dropped, 'row')} dropped" if dropped else ""),
    )
    if heldout:
        yield "Held out", counted(heldout, "pair") + (f" of {data.eval}" if data.eval else "")
        every = "once per epoch" if training.eval_steps is None else f"every {counted(training.eval_steps, 'step')}"
        yield "Evaluation", f"before training, {every}, and after training"
    else:
        yield "Held out", "none; with data.eval_fraction=0.05 the run would also be measured on pairs it does not see"
    for name, lengths in inspection.lengths.items():
        yield f"Tokens, {name}", f"median {lengths.p50}, 95% up to {lengths.p95}, longest {lengths.max}"
    yield "Truncation", _truncation(config, inspection)
    saved = 1 - inspection.shared_tokens / inspection.separate_tokens
    yield "One epoch", f"{inspection.shared_tokens:,} tokens, {saved:.0%} fewer than with each prompt computed twice"
    yield "Loss", _loss(config.preference)
    yield (
        "Steps",
        f"{counted(plan.steps, 'optimizer step')} of {counted(plan.pairs_a_step, 'pair')}, epochs: {plan.epochs:.3g}",
    )
    yield (
        "Learning rate",
        f"{number_text(training.learning_rate)}, {training.scheduler} after {counted(plan.warmup_steps, 'step')} of "
        "warm-up",
    )
    yield (
        "Optimizer",
        f"{training.optimizer}, weight decay {number_text(training.weight_decay)}, gradient norm up to "
        f"{training.max_grad_norm:g}",
    )
    yield "Run directory", str(config.output.dir)


def _trained(adapter: AdapterConfig) -> str:
    if adapter.method == "full":
        return "every weight"
    targets = adapter.target_modules
    of = {"all-linear": "all linear layers", "language-linear": "the linear layers of the language model"}
    where = of[targets] if isinstance(targets, str) else ", ".join(targets)
    alpha = adapter.rank if adapter.alpha is None else adapter.alpha
    return f"LoRA adapters of rank {adapter.rank}, alpha {alpha:g}, dropout {adapter.dropout:g}, on {where}"


def _truncation(config: RunConfig, inspection: Inspection) -> str:
    limit = config.data.max_length
    if limit is None:
        return "none"
    end = config.data.truncation.removeprefix("keep_")
    if not inspection.truncated_rows:
        return f"none needed: every prompt with a completion fits into {limit} tokens"
    return (
        f"pairs longer than {limit} tokens: {inspection.truncated_rows}; their {end} is kept, "
        f"{counted(inspection.truncated_tokens, 'token')} {'is' if inspection.truncated_tokens == 1 else 'are'} cut"
    )


def _loss(preference: PreferenceConfig) -> str:
    weights = preference.loss_weights or [1.0] * len(preference.loss)
    terms = " + ".join(
        name if weight == 1 else f"{weight:g} {name}" for name, weight in zip(preference.loss, weights, strict=True)
    )
    unusual = {
        name: value
        for name, value in preference.model_dump(exclude={"loss", "loss_weights", "beta"}).items()
        if value != PreferenceConfig.model_fields[name].default
    }
    return ", ".join([terms, f"beta {preference.beta:g}", *(f"{name} {value}" for name, value in unusual.items())])
