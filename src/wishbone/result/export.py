"""What a run learned, in the formats of other programs. Each file is checked before it takes its place.

What is written is read back, and its log-probabilities of the run's own pairs are compared with those of the model in
memory: held-out pairs, or training pairs where none are held out, or texts of several kinds where the pairs are gone.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor

from wishbone.atomic_file import write_text
from wishbone.errors import RequestError
from wishbone.model.agreement import real_sequences, sequence_logps
from wishbone.model.atomic_directory import scratch_beside, writing
from wishbone.model.gguf_adapter import adapter_logps, write_gguf_adapter
from wishbone.model.gguf_check import FLOAT_NOISE, LARGEST_NOISE, Agreement, check_gguf
from wishbone.model.gguf_export import write_kind
from wishbone.model.merge import merge_adapter
from wishbone.paths import unwritten
from wishbone.result.base_name import base_name
from wishbone.result.finished_run import FinishedRun, was_trained_on_texts
from wishbone.result.modelfile import modelfile
from wishbone.result.trained_model import TrainedModel
from wishbone.run.preflight import obstacle
from wishbone.run.prepare_data import prepare_data

PAIRS, TOKENS = 4, 192
"""Pairs that are compared, and tokens of each of their sequences."""
DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16}
"""Dtype of the merged weights, by kind of GGUF file; all other kinds are made from float32."""


@dataclass(frozen=True)
class Written:
    """A file or directory that was written.

    Attributes:
        path: of it.
        what: in words.
        agreement: with the model in memory, in nats a token.
        notes: what the person should know, one sentence each.
    """

    path: Path
    what: str
    agreement: Agreement
    notes: tuple[str, ...] = ()


class Exporter:
    """Writes one run in several formats.

    Attributes:
        compared: what texts the comparison is on, in words.
    """

    def __init__(self, run: FinishedRun) -> None:
        """Load the model of the run.

        Raises:
            RequestError: as `TrainedModel`.
        """
        self.run = run
        self.model = TrainedModel(run)
        self.name = run.path.absolute().name
        self.compared, self._sequences = _texts(run, self.model)

    @cached_property
    def _expected(self) -> Tensor:
        return sequence_logps(self.model.trained, self._sequences)

    def merged(self, directory: Path, *, overwrite: bool) -> Written:
        """Write the model with the adapter merged into 16-bit weights.

        Raises:
            RequestError: the disk is full, or rounding does not explain the difference.
        """
        with writing(directory):
            merge = merge_adapter(
                self.model.trained,
                directory,
                self.model.processor,
                sequences=self._sequences,
                replace=overwrite,
            )
        agreement = Agreement(merge.difference, merge.largest, merge.allowed, merge.allowed_largest)
        return Written(directory, f"merged model, {str(merge.dtype).removeprefix('torch.')}", agreement)

    def gguf(self, file: Path, kind: str) -> Written:
        """Write the model as a GGUF file.

        Raises:
            RequestError: a tool of llama.cpp is needed, the disk is full, or what was written is not what was trained.
        """
        self._refuse_images("--gguf")
        with writing(file), scratch_beside(file) as scratch:
            what, agreement = self._write_gguf(scratch / file.name, file, kind)
            os.replace(scratch / file.name, file)
        return Written(file, what, agreement)

    def _write_gguf(self, written: Path, place: Path, kind: str) -> tuple[str, Agreement]:
        """Write and check the file `written`, which is for `place`, and return what it is and how it agrees."""
        tokenizer = self.model.tokenizer
        merged = written.with_name("merged")
        dtype = DTYPES.get(kind, torch.float32)
        merge_adapter(self.model.trained, merged, tokenizer, dtype=dtype, sequences=self._sequences)
        by = write_kind(merged, tokenizer, written, kind, self.name)
        agreement = check_gguf(written, kind, merged, tokenizer, self._sequences, self._expected)
        self._accept(place, agreement)
        return f"GGUF, {kind}, by {by}", agreement

    def ollama(self, directory: Path, kind: str) -> Written:
        """Write a GGUF file and a Modelfile for Ollama into a directory.

        Raises:
            RequestError: as `gguf`, or the Modelfile cannot quote a text of the model.
        """
        self._refuse_images("--ollama")
        file = directory / "model.gguf"
        tokenizer = self.model.tokenizer
        text, note = modelfile(
            file.name,
            tokenizer,
            ends=_ends(self.model),
            as_text=was_trained_on_texts(self.run, tokenizer),
            system=self.run.config.data.system_prompt,
        )
        with writing(directory), scratch_beside(file) as scratch:
            what, agreement = self._write_gguf(scratch / file.name, file, kind)
            write_text(scratch / "Modelfile", text)
            for name in (file.name, "Modelfile"):
                os.replace(scratch / name, directory / name)
        command = f"ollama create {shlex.quote(self.name)} -f {shlex.quote(str(directory / 'Modelfile'))}"
        notes = (f"then: {command} && ollama run {shlex.quote(self.name)}", *([note] if note else []))
        return Written(directory, f"{what}, and a Modelfile for Ollama", agreement, notes)

    def adapter_gguf(self, file: Path) -> Written:
        """Write the adapter alone as a GGUF file.

        Raises:
            RequestError: the run has no adapter, or it is not LoRA on linear layers.
        """
        self._refuse_images("--adapter-gguf")
        model = self.model.trained
        if not isinstance(model, PeftModel):
            raise RequestError("--adapter-gguf: the run trained every weight and has no adapter; use --gguf")
        with writing(file), scratch_beside(file) as scratch:
            written = scratch / file.name
            write_gguf_adapter(model, written, self.name)
            apart = (adapter_logps(model, written, self._sequences) - self._expected).abs()
            noise = 1.0 if model.dtype == torch.float32 else 1000.0  # the merged weight is rounded to 16 bits
            agreement = Agreement(float(apart.mean()), float(apart.max()), noise * FLOAT_NOISE, noise * LARGEST_NOISE)
            self._accept(file, agreement)
            os.replace(written, file)
        base = base_name(self.run.config.model)
        note = (
            f"it goes with a GGUF file of its base model {base.hub_id or base.name}: llama-server -m BASE.gguf --lora"
        )
        return Written(file, "LoRA adapter as GGUF, f32", agreement, (f"{note} {shlex.quote(str(file))}",))

    def _refuse_images(self, option: str) -> None:
        if self.model.reads_images:
            raise RequestError(
                f"{option}: the run was trained on images, and a GGUF file would hold the language model without them; "
                "--merged DIR writes the whole model with its processor"
            )

    def _accept(self, place: Path, agreement: Agreement) -> None:
        if not agreement.holds:
            raise RequestError(
                f"what was written for {place} differs from the trained model by {agreement.mean:.2g} nats a token "
                f"(at most {agreement.largest:.2g}), and rounding explains {agreement.allowed_mean:.2g} "
                f"({agreement.allowed_largest:.2g}); nothing was kept. Use --merged instead"
            )


def check_places(merged: Path | None, ollama: Path | None, files: Sequence[Path], *, overwrite: bool) -> None:
    """Refuse what cannot be written before anything is loaded.

    Raises:
        RequestError: a place is taken, or the name of a file does not say that it is GGUF.
    """
    directories = [place for place in (merged, ollama) if place is not None]
    for file in files:
        if file.suffix.lower() != ".gguf":
            raise RequestError(f"{str(file)!r} is to be a GGUF file; let its name end with .gguf")
        if file.is_dir():
            raise RequestError(f"{str(file)!r} is a directory; name a file")
    for place in (*directories, *files):
        if [*directories, *files].count(place) > 1:
            raise RequestError(f"{str(place)!r} is named twice; give each format a place of its own")
        if place in directories and place.is_file():
            raise RequestError(f"{str(place)!r} is a file; name a directory")
        with writing(place):
            taken = any(place.iterdir()) if place.is_dir() else place.exists()
        if taken and not overwrite:
            raise RequestError(f"{str(place)!r} exists; name another place, or replace it with --overwrite")
        if error := obstacle(place.parent):
            raise RequestError(unwritten(place, error))
    if merged is not None and merged.is_dir():
        _refuse_foreign(merged)


def _texts(run: FinishedRun, model: TrainedModel) -> tuple[str, list[list[int]]]:
    """Token ids of texts for the comparison, and what they are."""
    if model.reads_images:
        return "texts of several kinds, because the run's pairs have images", real_sequences(model.tokenizer)
    try:
        trained, heldout, _ = prepare_data(run.settings, model.tokenizer)
    except RequestError:
        return "texts of several kinds, because the run's pairs are not there", real_sequences(model.tokenizer)
    pairs = trained if heldout is None else heldout
    chosen = pairs.select(range(min(PAIRS, len(pairs))))
    sequences = [[*row["prompt_ids"], *row[side]][:TOKENS] for row in chosen for side in ("chosen_ids", "rejected_ids")]
    kind = "training" if heldout is None else "held-out"
    found = [sequence for sequence in sequences if len(sequence) > 1]
    return f"{len(chosen)} {kind} pairs", found or real_sequences(model.tokenizer)


def _ends(model: TrainedModel) -> list[str]:
    """Tokens that end an answer, as texts."""
    found = getattr(model.trained.generation_config, "eos_token_id", None)
    ids = found if isinstance(found, list) else [] if found is None else [found]
    if model.tokenizer.eos_token_id is not None:
        ids = [*ids, model.tokenizer.eos_token_id]
    return [str(token) for token in model.tokenizer.convert_ids_to_tokens(list(dict.fromkeys(ids)))]


def _refuse_foreign(directory: Path) -> None:
    """Refuse to replace a directory that holds something else than one model."""
    ours = {".json", ".jinja", ".safetensors", ".txt", ".model", ".md"}
    if foreign := sorted(entry.name for entry in directory.iterdir() if entry.is_dir() or entry.suffix not in ours):
        raise RequestError(
            f"{str(directory)!r} holds {foreign[0]!r}, which no merged model has; name another directory"
        )
