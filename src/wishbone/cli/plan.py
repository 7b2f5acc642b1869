"""`wishbone plan`: whether a run fits, what takes the memory, how its pairs are packed into rows, how long it takes.

Only the model's config.json, its tokenizer and the data are read, so a run can be planned for another machine.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from wishbone.cli.console import plain, say, screen
from wishbone.cli.libraries import settle_libraries
from wishbone.cli.request import requested
from wishbone.config.cautions import cautions
from wishbone.config.load import load_config
from wishbone.config.schema import RunConfig
from wishbone.errors import RequestError, counted

if TYPE_CHECKING:
    from wishbone.planning.alternatives import Alternative
    from wishbone.planning.gpus import Gpu
    from wishbone.planning.lengths import PairLengths
    from wishbone.planning.room import Machine
    from wishbone.planning.run_plan import RunPlan, Target

NO_GPU = ("none", "cpu", "no")
LINKS = {"NVLink": 300e9, "PCIe 4": 20e9, "100 Gbit/s": 10e9}
"""Bytes a second at which gradients are added up over a connection, assumed."""
GIB = 2**30
MOST_BAR, BESIDE_BAR = 44, 54
"""Columns of the longest bar, and of the names, sizes and limit beside it."""
DOES_NOT_FIT = 2
COLORS = {"weights": "cyan", "embeddings and head": "cyan", "adapter": "green", "gradients": "green",
          "optimizer": "green", "activations": "magenta", "head chunk": "magenta", "reference": "blue",
          "vision tower": "yellow", "workspace": "bright_black", "runtime": "bright_black"}  # fmt: skip


def plan(
    config_path: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="File of the run.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="SECTION.KEY=VALUE", help="Values that replace those of the file.", show_default=False),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(help='GPU to plan for, such as "RTX 4090", or none; by default that of this machine.'),
    ] = None,
    gpu_memory_gib: Annotated[
        float | None, typer.Option(min=0.1, max=4096, help="Memory of the GPU, if it differs from the known size.")
    ] = None,
    gpus: Annotated[int, typer.Option(min=1, max=128, help="GPUs that train at the same time.")] = 1,
    pairs: Annotated[
        int | None,
        typer.Option(min=1, max=10**9, help="Plan for this many pairs of given lengths; read no data."),
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(min=1, max=2**24, help="Median prompt, with --pairs.")] = 128,
    completion_tokens: Annotated[int, typer.Option(min=1, max=2**24, help="Median completion, with --pairs.")] = 256,
    longest_tokens: Annotated[
        int, typer.Option(min=2, max=2**24, help="Longest prompt plus completion, with --pairs.")
    ] = 1024,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Say before a run whether it fits and how long it takes. Exit status 2: it does not fit."""
    settle_libraries()
    with requested():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            config = load_config(config_path, overrides or [])
        from wishbone.planning.alternatives import alternatives
        from wishbone.planning.lengths import given_lengths, measured_lengths, tower_in
        from wishbone.planning.model_files import find_shape
        from wishbone.planning.run_plan import Target, plan_run

        shape, directory = find_shape(config.model.name, config.model.revision)
        reference = config.model.reference
        device, machine, here = _device(gpu, gpu_memory_gib)
        if pairs is None:
            lengths = measured_lengths(config.data, directory)
        else:
            lengths = given_lengths(
                pairs, prompt_tokens, completion_tokens, max(longest_tokens, prompt_tokens + completion_tokens)
            )
        other = None if reference is None else find_shape(reference)[0]
        target = Target(shape, lengths, machine, device, other, None if directory is None else tower_in(directory))
        found = plan_run(config, target, processes=gpus)
        offers = () if found.fits else tuple(alternatives(config, target, processes=gpus))
    if as_json:
        typer.echo(json.dumps(_data(config, target, found, offers), indent=2, ensure_ascii=False))
    else:
        for caution in cautions(config):
            say(caution, marker="note: ", style="bold yellow", error=True)
        _print(config, target, found, "this machine's" if here else "not this machine's", gpus, directory)
        if not found.fits:
            _print_alternatives(screen(), offers)
    raise typer.Exit(0 if found.fits else DOES_NOT_FIT)


def device_here() -> tuple[Gpu | None, Machine, bool]:
    """Return this machine's GPU, or None for its CPU, its memory, and that it is in this machine."""
    return _device(None, None)


def _device(name: str | None, memory_gib: float | None) -> tuple[Gpu | None, Machine, bool]:
    """The GPU (None for the CPU), its memory, and whether it is in this machine."""
    from wishbone.planning import hardware
    from wishbone.planning.gpus import Gpu, assumed_gpu, find_gpu
    from wishbone.planning.memory import CONTEXT
    from wishbone.planning.room import Machine

    if name is not None and name.lower() not in NO_GPU:
        gpu = find_gpu(name)
        if assumed := assumed_gpu(name):
            say(assumed, marker="note: ", style="bold yellow", error=True)
        memory = (memory_gib or gpu.memory_gib) * GIB
        return gpu, Machine("cuda", memory, memory), False
    accelerators = hardware.read_accelerators() if name is None and hardware.has_nvidia_driver() else []
    cuda = [accelerator for accelerator in accelerators if accelerator.kind == "cuda" and accelerator.capability]
    if cuda:
        own = cuda[0]
        try:
            gpu = find_gpu(own.name, own.memory / GIB)
        except RequestError:
            gpu = Gpu.unlisted(own.name, own.memory / GIB, own.capability or (0, 0))
        if memory_gib is not None:
            return gpu, Machine("cuda", memory_gib * GIB, memory_gib * GIB), True
        free = min(own.available + CONTEXT, own.memory)  # this process has a context there already
        return gpu, Machine("cuda", own.memory, free), True
    if memory_gib is not None:
        raise RequestError(f"--gpu-memory-gib: {memory_gib:g} needs a GPU, and there is none; name it with --gpu")
    memory_here = hardware.read_memory()
    return None, Machine("cpu", memory_here.total, memory_here.available), True


def _print(config: RunConfig, target: Target, found: RunPlan, whose: str, gpus: int, directory: Path | None) -> None:
    console = screen()
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in _lines(config, target, found, whose, gpus, directory):
        table.add_row(plain(name, "bold"), plain(text))
    console.print(table)
    console.print()
    _print_memory(console, found)
    console.print()
    need, limit = found.rows.memory.total, found.machine.limit
    if found.fits:
        console.print(plain(f"Fits: it needs {_gib(need)} GiB of the {_gib(limit)} that may be used.", "bold green"))
    else:
        console.print(plain(f"Does not fit: it needs {_gib(need)} GiB, and {_gib(limit)} may be used.", "bold red"))


def _lines(
    config: RunConfig, target: Target, found: RunPlan, whose: str, gpus: int, directory: Path | None
) -> Iterator[tuple[str, str]]:
    from wishbone.planning.memory import trained_parameters
    from wishbone.planning.run_plan import memory_plan

    shape, rows = target.shape, found.rows
    known = "its config.json" if directory else "known by name"
    yield "Model", f"{config.model.name}: {_count(shape.parameters)} weights, {_form(found.weights)} ({known})"
    trained = _count(trained_parameters(shape, memory_plan(config, target)))
    full = config.adapter.method == "full"
    yield (
        "Trained",
        f"every weight, {trained}" if full else f"adapters of rank {config.adapter.rank}, {trained} parameters",
    )
    if target.gpu is None:
        yield "Device", f"this machine's CPU, {_gib(found.machine.free)} of {_gib(found.machine.memory)} GiB free"
    else:
        count, each = (f"{gpus} x ", " each") if gpus > 1 else ("", "")
        yield "Device", f"{count}{target.gpu.name}, {_gib(found.machine.memory)} GiB{each} ({whose})"
    yield "Pairs", f"{found.pairs:,} of {config.data.train}; tokens {target.lengths.source}"
    if target.lengths.image_tokens:
        tower = "counted by estimate" if target.sees_images else "not counted, as its config.json is not here"
        yield "Images", f"the vision tower is {tower}, in memory and in the time of a step"
    yield "Tokens per pair", _spread(target.lengths, config.data.max_length)
    yield (
        "Rows",
        f"{found.rows_a_step:.1f} per step, with {found.row_tokens:,.0f} tokens on average and {rows.budget:,} at most",
    )
    yield "Activations", _activations(shape.layers, rows.kept_layers, offload=rows.offload)
    yield (
        "Steps",
        f"{found.schedule.steps:,}, with {counted(found.schedule.pairs_a_step, 'pair')} and "
        f"{found.step_tokens:,.0f} tokens each",
    )
    yield "Time", _time(target, found)
    if gpus > 1:
        times = [f"{_duration(found.exchanged / rate)} over {link}" for link, rate in LINKS.items()]
        yield (
            "Between GPUs",
            f"{found.exchanged / 1e9:.2g} GB of gradients a step from and to each: {', '.join(times)} (assumed rates)",
        )
    if found.sharded:
        yield (
            "Weights",
            f"divided over {gpus} GPUs (FSDP2); a row gathers {found.gathered / 1e9:.3g} GB into each, which takes "
            + ", ".join(f"{_duration(found.gathered / rate)} over {link}" for link, rate in LINKS.items()),
        )
    longest = f"{found.longest_sequence:,} tokens fit" if found.longest_sequence else "none fits"
    limit = config.data.max_length
    yield "Longest sequence", f"{longest}; data.max_length is {'not set' if limit is None else format(limit, ',')}"


def _spread(lengths: PairLengths, max_length: int | None) -> str:
    tokens = sorted(lengths.rows(max_length).tolist())
    return f"median {tokens[len(tokens) // 2]:,}, longest {tokens[-1]:,}, the prompt counted once"


def _activations(layers: int, kept: int, *, offload: bool) -> str:
    if kept == layers:
        return f"all {layers} layers kept"
    rest = "all layers" if not kept else f"{kept} of {layers} layers kept, the others"
    return f"{rest} recomputed in the largest row" + (", their inputs in host memory" if offload else "")


def _time(target: Target, found: RunPlan) -> str:
    if found.seconds is None:
        return "not estimated: no speed was measured for such a run"
    least = "at least" if found.seconds_at_least else "about"
    source = "rates measured on an H200"
    if target.gpu is None or target.gpu.measured is None:
        source += ", scaled by the published rates of this GPU"
    whole = _duration(found.seconds * found.schedule.steps)
    return f"{least} {_duration(found.seconds)} per step, {whole} in all ({source})"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def _print_memory(console: Console, found: RunPlan) -> None:
    """A bar for each item, which starts where the bar above ends; then a bar for the total, and the limit."""
    memory, limit = found.rows.memory, found.machine.limit
    width = max(10, min(MOST_BAR, console.width - BESIDE_BAR))
    scale = width / max(memory.total, limit)
    block, mark = ("█", "│") if "utf" in console.encoding.lower() else ("#", "|")
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, justify="right")
    table.add_column(no_wrap=True)
    table.add_row(plain("Memory", "bold"), plain("GiB", "dim"), "")
    start = 0.0
    for name, size in memory.items.items():
        if size > 0:
            bar = _bar(start * scale, (start + size) * scale, width, block, COLORS[name])
            table.add_row(plain(f"  {name}"), plain(f"{size / GIB:.2f}"), bar)
        start += size
    bar = _bar(0, memory.total * scale, width, block, "green" if found.fits else "red")
    edge = round(limit * scale)
    bar.append(" " * max(0, edge - len(bar)))
    bar.append(f"{mark} {_gib(limit)} may be used" if edge >= len(bar) - 1 else "")
    table.add_row(plain("  largest row", "bold"), plain(f"{memory.total / GIB:.2f}", "bold"), bar)
    console.print(table)


def _bar(begin: float, end: float, width: int, block: str, style: str) -> Text:
    first = min(round(begin), width - 1)
    return Text(" " * first) + Text(block * max(round(end) - first, 1), style)


def _print_alternatives(console: Console, offers: Sequence[Alternative]) -> None:
    if not offers:
        console.print(plain("No other setting and no known GPU fits; choose a smaller model.", "bold"))
        return
    console.print(plain("What fits instead (each was planned like this run):"))
    table = Table.grid(padding=(0, 2))
    table.add_column(overflow="fold")
    table.add_column(no_wrap=True, justify="right")
    for alternative in offers:
        gpu = [f'--gpu "{alternative.gpu}"'] if alternative.gpu else []
        what = " ".join([*alternative.settings, *gpu])
        table.add_row(plain(f"  {what}"), plain(f"{_gib(alternative.memory)} GiB"))
    console.print(table)


def _data(config: RunConfig, target: Target, found: RunPlan, offers: Sequence[Alternative]) -> dict[str, Any]:
    """The plan as data for other programs; sizes in bytes."""
    lengths = target.lengths
    return {
        "fits": found.fits,
        "model": {"name": config.model.name, "parameters": target.shape.parameters, "weights": found.weights},
        "device": {
            "name": target.gpu.name if target.gpu else "cpu",
            "memory": found.machine.memory,
            "limit": found.machine.limit,
        },
        "data": {
            "pairs": found.pairs,
            "lengths": lengths.source,
            "longest_pair": found.longest,
            "longest_sequence_that_fits": found.longest_sequence,
        },
        "rows": {
            "token_budget": found.rows.budget,
            "largest": found.rows.largest,
            "a_step": found.rows_a_step,
            "mean_tokens": found.row_tokens,
            "step_tokens": found.step_tokens,
            "kept_layers": found.rows.kept_layers,
            "offload": found.rows.offload,
        },
        "memory": {"items": found.rows.memory.items, "total": found.rows.memory.total},
        "schedule": asdict(found.schedule),
        "step_seconds": found.seconds,
        "step_seconds_is_a_lower_bound": found.seconds_at_least,
        "exchanged_bytes_a_step": found.exchanged,
        "sharded": found.sharded,
        "gathered_bytes_a_row": found.gathered,
        "alternatives": [asdict(alternative) for alternative in offers],
    }


def _form(weights: str) -> str:
    return {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "fp8": "FP8", "int8": "int8", "nf4": "NF4"}[weights]


def _count(number: float) -> str:
    return f"{number / 1e9:.2f} billion" if number >= 1e9 else f"{number / 1e6:.1f} million"


def _gib(size: float) -> str:
    return f"{size / GIB:.1f}"
