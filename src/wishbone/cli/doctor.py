"""`wishbone doctor`: what this machine can do, and what is missing."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from wishbone.cli.console import binary_size, plain, screen
from wishbone.cli.libraries import settle_libraries
from wishbone.config.schema import EMBEDDED_MODEL
from wishbone.errors import RequestError
from wishbone.planning import hardware
from wishbone.version import __version__

PYTHON = "3.11"
REQUIRED = {
    "torch": "2.11",
    "transformers": "5.17",
    "trl": "1.16",
    "peft": "0.21",
    "accelerate": "1.10",
    "datasets": "4.7",
    "filelock": "3.13",
    "huggingface-hub": "1.5",
    "jinja2": "3.1",
    "numpy": "2.0",
    "psutil": "6.0",
    "pyarrow": "21",
    "tokenizers": "0.23.1",
    "safetensors": "0.8",
    "pydantic": "2.11",
    "pyyaml": "6.0.1",
    "typer": "0.20",
    "rich": "13.9",
    "gguf": "0.17",
}
OPTIONAL = {
    "triton": ("", "the GPU kernels; comes with torch for CUDA"),
    "bitsandbytes": ("0.50", "4-bit base models and 8-bit optimizers; pip install bitsandbytes"),
}
OK, MISSING, TOO_OLD, ABSENT, SLOWER = "ok", "missing", "too old", "absent", "slower"
_STYLES = {OK: "green", MISSING: "bold red", TOO_OLD: "bold red", ABSENT: "yellow", SLOWER: "yellow"}


@dataclass(frozen=True)
class Row:
    """One line of the report: a thing, what was found, the verdict on it (empty: a fact), what follows from it.

    `data` holds the same for programs, sizes in bytes.
    """

    group: str
    name: str
    found: str
    verdict: str = ""
    note: str = ""
    data: dict[str, Any] | None = None


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
    online: Annotated[bool, typer.Option("--online", help="Also ask whether the model hub answers.")] = False,
    model: Annotated[
        str | None,
        typer.Option("--model", help="Also count the parts of this model that run fused on a GPU, by its config.json."),
    ] = None,
) -> None:
    """Show what this machine can do, and what is missing. Exit status 1: something required is missing or too old."""
    rows = [*_machine(), *_packages(), *_accelerators(), *_models(online)]
    rows += [] if model is None else _fused_parts(model)
    fit = not any(row.verdict in (MISSING, TOO_OLD) for row in rows)
    if as_json:
        typer.echo(json.dumps({"wishbone": __version__, "fit": fit, "rows": [asdict(row) for row in rows]}, indent=2))
    else:
        _print(rows, fit)
    raise typer.Exit(0 if fit else 1)


def _print(rows: list[Row], fit: bool) -> None:
    console = screen()
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for group, members in groupby(rows, key=lambda row: row.group):
        table.add_row(plain(group, "bold"))
        for row in members:
            detail = plain("; ".join(filter(None, (row.found, row.note))))
            detail.stylize("dim", len(row.found))
            table.add_row(plain(f"  {row.name}"), plain(row.verdict, _STYLES.get(row.verdict, "")), detail)
    console.print(table)
    console.print(plain("\nReady to train." if fit else "\nNot ready: see the lines in red.", "bold"))


def _machine() -> Iterator[Row]:
    group = f"wishbone {__version__}"
    version = platform.python_version()
    yield Row(group, "Python", version, _verdict(version, PYTHON), f"needs {PYTHON} or newer")
    yield Row(group, "System", f"{platform.system()} {platform.release()} {platform.machine()}")
    cpu = hardware.read_cpu()
    note = "bfloat16 in hardware" if cpu.bf16 else "no bfloat16 in hardware: float32 is faster on this processor"
    yield Row(
        group,
        "Processor",
        f"{cpu.model}, {cpu.cores} cores, {', '.join(cpu.features) or 'no AVX2'}",
        "",
        note,
        asdict(cpu),
    )
    memory = hardware.read_memory()
    yield Row(
        group, "Memory", f"{binary_size(memory.available)} free of {binary_size(memory.total)}", data=asdict(memory)
    )
    for name, path in (("Disk, here", Path.cwd()), ("Disk, models", _hub_cache())):
        free = hardware.free_disk(path)
        yield Row(group, name, f"{binary_size(free)} free", "", str(path), {"available": free})


def _packages() -> Iterator[Row]:
    for name, minimum in REQUIRED.items():
        version = _version(name)
        yield Row("Packages", name, version or "", _verdict(version, minimum), f"needs {minimum} or newer")
    for name, (minimum, gives) in OPTIONAL.items():
        version = _version(name)
        verdict = _verdict(version, minimum) if version else ABSENT
        yield Row("Optional packages", name, version or "", verdict, gives)


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _verdict(version: str | None, minimum: str) -> str:
    if version is None:
        return MISSING
    return OK if _release(version) >= _release(minimum) else TOO_OLD


def _release(version: str) -> tuple[int, ...]:
    """The numbers a version begins with: (2, 13, 0) of 2.13.0+cpu."""
    numbers = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(number) for number in numbers[0].split(".")) if numbers else ()


def _accelerators() -> Iterator[Row]:
    try:
        found = hardware.read_accelerators()
    except (ImportError, OSError) as error:
        yield Row("Accelerators", "GPU", "", MISSING, f"torch cannot be loaded: {error}")
        return
    for index, gpu in enumerate(found):
        memory = f", {binary_size(gpu.available)} free of {binary_size(gpu.memory)}" if gpu.memory else ""
        capability = ".".join(map(str, gpu.capability)) if gpu.capability else ""
        allows = [name for name, able in (("bfloat16", gpu.bf16), ("FP8", gpu.fp8), ("int8", gpu.int8)) if able]
        note = f"{f'compute capability {capability}: ' if capability else ''}{', '.join(allows) or 'float32, float16'}"
        yield Row("Accelerators", f"{gpu.kind}:{index}", f"{gpu.name}{memory}", OK, note, asdict(gpu))
    if not found and hardware.has_nvidia_driver():
        note = "an NVIDIA driver is here and torch does not use it: install torch built for CUDA"
        yield Row("Accelerators", "GPU", "", ABSENT, note)
    elif not found:
        yield Row("Accelerators", "GPU", "", ABSENT, "training runs on the processor: small models only")


def _models(online: bool) -> Iterator[Row]:
    from wishbone.cache import MANIFEST, cache_root

    made = sorted(cache_root().glob(f"{EMBEDDED_MODEL}-*/{MANIFEST}"))
    verdict, note = (OK, str(made[-1].parent)) if made else (ABSENT, "fetched when first used (93 MB)")
    yield Row("Models", "embedded", EMBEDDED_MODEL, verdict, note)
    if online:
        yield _hub()


def _fused_parts(name: str) -> Iterator[Row]:
    """The parts of a model, on how many layers they run fused on a CUDA GPU, and why not on the others."""
    settle_libraries()
    import torch

    from wishbone.fused.coverage import NO_GPU
    from wishbone.model.load import load_config
    from wishbone.policy.fused_parts import coverage_of_architecture

    group = f"Parts of {name} that run fused on a CUDA GPU, with LoRA"
    found = False
    try:
        config = load_config(name)
        found = True
        coverage = coverage_of_architecture(config)
    except RequestError as error:
        yield Row(group, "model", "", ABSENT if found else MISSING, "; ".join(error.problems))
        return
    if not torch.cuda.is_available():
        yield Row(group, "here", "no CUDA GPU", "", NO_GPU)
    for part, data in zip(coverage.parts, coverage.as_json(), strict=True):
        reasons = "; ".join(f"{reason} ({count})" for reason, count in part.why_not)
        verdict = OK if part.warning() is None else SLOWER
        yield Row(group, part.part, f"{part.fused} of {part.layers}", verdict, reasons, data)


def _hub() -> Row:
    """Whether the model hub answers within 3 seconds."""
    from urllib.error import HTTPError, URLError
    from urllib.request import Request, urlopen

    from huggingface_hub.constants import ENDPOINT

    try:
        with urlopen(Request(ENDPOINT, method="HEAD"), timeout=3):
            pass
    except HTTPError as error:
        return Row("Models", "hub", f"answers with status {error.code}", OK, ENDPOINT)
    except (URLError, OSError, ValueError) as error:
        return Row("Models", "hub", "no answer", ABSENT, f"{ENDPOINT}: {getattr(error, 'reason', error)}")
    return Row("Models", "hub", "answers", OK, ENDPOINT)


def _hub_cache() -> Path:
    """Where models of the hub are kept."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()
