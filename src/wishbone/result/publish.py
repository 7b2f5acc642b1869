"""What is published of a run: its weights, the tokenizer, a card, the curves, and the settings without local paths."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from wishbone.config.load import dump_config
from wishbone.config.schema import RunConfig
from wishbone.errors import RequestError, one_line
from wishbone.model.atomic_directory import writing
from wishbone.model.merge import merge_adapter
from wishbone.model.saved_adapter import CONFIG, name_base
from wishbone.result.base_name import BaseName, base_name
from wishbone.result.card import PICTURE, SETTINGS, model_card, shown_name
from wishbone.result.curves_picture import curves_picture
from wishbone.result.finished_run import FinishedRun
from wishbone.result.trained_model import TrainedModel

PUBLISHED = ("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", CONFIG,
             "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.jinja",
             "spiece.model")  # fmt: skip
"""Files of a result that are published; whatever else lies beside them stays here."""
MOST_BYTES = 2**20
ROOM = "set TMPDIR to a directory with room for what is published"


@contextmanager
def publication(
    run: FinishedRun, repository: str, *, merged: bool, base: str | None, licence: str | None
) -> Iterator[Path]:
    """Yield a directory with what is published of a run.

    Args:
        run: the run.
        repository: "owner/name" on the hub.
        merged: publish the adapter merged into its base model.
        base: hub id of the base model, where the run trained a copy of it on this machine.
        licence: of the result, as the hub names licences.

    Raises:
        RequestError: not a name of a repository, the base model has no name that others know, or as `merge_adapter`; no
            room for temporary files.
    """
    for name, option in ((repository, "REPO"), (base, "--base")):
        _check_name(name, option)
    known = base_name(run.config.model) if base is None else BaseName(run.config.model.name, base)
    whole = merged or not run.is_adapter
    if known.hub_id is None and not whole:
        raise RequestError(
            f"the base model {known.name!r} is on this machine only, so nobody could load the adapter; name it on the "
            "hub with --base OWNER/MODEL, or publish the whole model with --merged"
        )
    with ExitStack() as opened:
        with writing(_temporary(), ROOM):
            root = opened.enter_context(TemporaryDirectory(prefix="wishbone-"))
            directory = Path(root) / "published"
            _gather(run, directory, known, whole=whole)
            picture = curves_picture(run.record)
            if picture is not None:
                (directory / PICTURE).write_text(picture, encoding="utf-8")
            (directory / SETTINGS).write_text(dump_config(_portable(run.config, known)), encoding="utf-8")
            card = model_card(run, repository, known, merged=whole, licence=licence, picture=picture is not None)
            card.save(directory / "README.md")
        yield directory


def _temporary() -> Path:
    """The directory of temporary files, as far as there is one that can be written."""
    try:
        return Path(gettempdir())
    except FileNotFoundError:
        return Path(os.environ.get("TMPDIR") or "/tmp")


def _gather(run: FinishedRun, directory: Path, base: BaseName, *, whole: bool) -> None:
    """Write the weights and the tokenizer of a run into a new directory, without paths of this machine."""
    if whole and run.is_adapter:
        model = TrainedModel(run)
        merge_adapter(model.trained, directory, model.tokenizer)
    else:
        directory.mkdir()
        for path in sorted({path for pattern in PUBLISHED for path in run.weights.glob(pattern)}):
            if path.is_file() and not path.is_symlink():
                shutil.copy(path, directory)
    if not whole:
        name_base(directory, str(base.hub_id), run.config.model.revision)
    _forget_paths(directory)


def _check_name(name: str | None, option: str) -> None:
    if name is None:
        return
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise RequestError(
            f"{option} {name!r} is not a name on the hub ({one_line(error)}); give OWNER/NAME"
        ) from error
    if name.count("/") != 1:
        raise RequestError(f"{option} {name!r} is not a name on the hub; give OWNER/NAME")


def _forget_paths(directory: Path) -> None:
    """Take out of configurations where this machine kept the model."""
    for path in directory.glob("*.json"):
        if path.stat().st_size > MOST_BYTES:
            continue
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and {"_name_or_path", "name_or_path"} & content.keys():
            kept = {key: value for key, value in content.items() if key not in ("_name_or_path", "name_or_path")}
            path.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _portable(config: RunConfig, base: BaseName) -> RunConfig:
    """The settings of a run, in which paths of this machine are names."""
    model, data = config.model, config.data
    names = {"train": shown_name(data.train), "eval": None if data.eval is None else shown_name(data.eval)}
    reference = None if model.reference is None else shown_name(model.reference)
    told = model.model_copy(update={"name": base.hub_id or base.name, "reference": reference})
    if base.note:  # the embedded model has the same name everywhere
        told = told.model_copy(update={"name": base.name})
    return config.model_copy(
        update={
            "model": told,
            "data": data.model_copy(update=names),
            "output": type(config.output)(),
        }
    )
