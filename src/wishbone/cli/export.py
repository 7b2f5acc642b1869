"""`wishbone export`: what a run learned, in the formats of other programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wishbone.cli.console import plain, say, screen
from wishbone.cli.finished import RunDirectory, TrustRemoteCode, opened_run
from wishbone.cli.libraries import settle_libraries
from wishbone.cli.request import requested
from wishbone.errors import RequestError
from wishbone.paths import user_path

if TYPE_CHECKING:
    from wishbone.result.export import Written


def export(
    run: RunDirectory,
    merged: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write the model with the adapter merged, 16 bits.", show_default=False),
    ] = None,
    gguf: Annotated[
        Path | None, typer.Option(metavar="FILE.gguf", help="Write the model as GGUF.", show_default=False)
    ] = None,
    ollama: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write a GGUF file and a Modelfile.", show_default=False)
    ] = None,
    adapter_gguf: Annotated[
        Path | None,
        typer.Option("--adapter-gguf", metavar="FILE.gguf", help="Write the adapter alone.", show_default=False),
    ] = None,
    vllm: Annotated[bool, typer.Option("--vllm", help="Print the command that serves it with vLLM.")] = False,
    quantize: Annotated[
        str, typer.Option(metavar="KIND", help="Of the GGUF file: f32, f16, bf16, q8_0; with llama.cpp also q4_k_m ...")
    ] = "q8_0",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Write what a run learned in the formats of other programs, and check what was written."""
    settle_libraries()
    shown: list[dict[str, Any]] = []
    with requested():
        if not (merged or gguf or ollama or adapter_gguf or vllm):
            raise RequestError("nothing to write; give --merged, --gguf, --ollama, --adapter-gguf or --vllm")
        finished = opened_run(run, trust_remote_code=trust_remote_code)
        with screen(error=True).status("loading torch"):
            from wishbone.model.gguf_export import check_quantizer, gguf_kinds
            from wishbone.result.export import Exporter, check_places
            from wishbone.result.vllm import vllm_command

        (kind,) = gguf_kinds(quantize, option="--quantize")
        merged, gguf, ollama, adapter_gguf = (
            None if place is None else user_path(place) for place in (merged, gguf, ollama, adapter_gguf)
        )
        files = [place for place in (gguf, adapter_gguf) if place]
        check_places(merged, ollama, files, overwrite=overwrite)
        if gguf or ollama:
            check_quantizer(kind)
        if vllm:
            command, note = vllm_command(finished, merged)
        if merged or gguf or ollama or adapter_gguf:
            with screen(error=True).status("loading the model"):
                exporter = Exporter(finished)
            for place, write in (
                (merged, lambda place: exporter.merged(place, overwrite=overwrite)),
                (gguf, lambda place: exporter.gguf(place, kind)),
                (ollama, lambda place: exporter.ollama(place, kind)),
                (adapter_gguf, lambda place: exporter.adapter_gguf(place)),
            ):
                if place is None:
                    continue
                with screen(error=True).status(f"writing {plain(str(place)).plain}"):
                    written = write(place)
                shown.append(_as_json(written, exporter.compared))
                if not as_json:
                    _print(written, exporter.compared)
        if vllm:
            shown.append({"what": "vLLM", "command": command, "notes": [note] if note else []})
            if not as_json:
                screen().print(plain(command), soft_wrap=True)
                if note:
                    say(note, marker="note: ", style="bold yellow", error=True)
    if as_json:
        typer.echo(json.dumps(shown, indent=2))


def _print(written: Written, compared: str) -> None:
    found = written.agreement
    say(f"{written.path} ({written.what})", marker="written: ", style="bold green")
    say(
        f"on {compared} it differs from the trained model by {found.mean:.2g} nats a token, at most "
        f"{found.largest:.2g}; rounding explains {found.allowed_mean:.2g} and {found.allowed_largest:.2g}",
        marker="checked: ",
        style="bold",
    )
    for note in written.notes:
        say(note, marker="note: ", style="bold")


def _as_json(written: Written, compared: str) -> dict[str, Any]:
    found = written.agreement
    return {
        "path": str(written.path),
        "what": written.what,
        "compared_on": compared,
        "difference": {
            "mean": found.mean,
            "largest": found.largest,
            "allowed_mean": found.allowed_mean,
            "allowed_largest": found.allowed_largest,
        },
        "notes": list(written.notes),
    }
