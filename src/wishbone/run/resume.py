"""What `--resume` continues, decided from the files of a run directory alone, before anything is loaded.

Three answers: this is another run, and what differs (refused); all its steps are done (nothing to do); or it goes on.
What settings do not tell, such as other pairs in the file of the same name, is compared when data and weights are there
(`trainer/fingerprint.py`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from wishbone.config.load import load_config
from wishbone.config.run_directory import CHECKPOINTS, CONFIG_FILE
from wishbone.config.schema import DataConfig, ModelConfig, RunConfig
from wishbone.errors import RequestError
from wishbone.trainer.checkpoint_files import checkpoints_in
from wishbone.trainer.fingerprint import changes, read_fingerprint, refuse_changes

FREE = frozenset(
    {
        "training.max_steps", "training.epochs", "training.logging_steps", "training.eval_steps", "training.save_steps",
        "training.token_budget", "training.activations", "training.reference_store", "output.dir", "output.report_to",
    }
)  # fmt: skip
"""Settings that change no result, and how long the run is."""
SEEN_LATER = frozenset(
    {
        "model.name", "model.revision", "model.dtype", "model.reference", "model.trust_remote_code",
        "data.train", "data.eval", "data.split", "data.eval_split", "data.invalid_rows", "adapter.target_modules",
    }
)  # fmt: skip
"""Settings that name contents: the pairs, the weights and the layers themselves are compared."""


def deciding_settings(config: RunConfig) -> dict[str, Any]:
    """Return the settings that decide the result of a run, by their dotted names, as values of JSON."""
    sections = config.model_dump(mode="json").items()
    return {
        f"{section}.{name}": value
        for section, fields in sections
        for name, value in fields.items()
        if f"{section}.{name}" not in FREE | SEEN_LATER
    }


def refuse_another_run(config: RunConfig, run_dir: Path) -> None:
    """Refuse settings that decide the result and are not those of the run.

    A setting that the run's version did not have yet counts as its default.

    Raises:
        RequestError: there is no checkpoint, or settings differ: all of them are listed.
    """
    checkpoints = checkpoints_in(run_dir / CHECKPOINTS)
    if not checkpoints:
        raise RequestError(
            f"there is no checkpoint in {run_dir / CHECKPOINTS} to resume from; start anew in another directory or "
            "delete it"
        )
    recorded = _recorded(checkpoints) or _of_the_config(run_dir)
    if recorded is not None:
        defaults = RunConfig(model=ModelConfig(name=config.model.name), data=DataConfig(train=config.data.train))
        old = deciding_settings(defaults) | recorded
        refuse_changes(changes({"settings": old}, {"settings": deciding_settings(config)}), run_dir)


def finished_steps(config: RunConfig, run_dir: Path) -> int | None:
    """Return the steps of a run that is done, if `config` asks for no more of them; else None."""
    try:
        summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
        done, steps = summary["status"] == "done", int(summary["steps"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not done:
        return None
    asked = config.training
    if asked.max_steps is not None:
        return steps if asked.max_steps <= steps else None
    before = load_config(run_dir / CONFIG_FILE).training
    return steps if before.max_steps is None and asked.epochs <= before.epochs else None


def _recorded(checkpoints: list[Path]) -> dict[str, Any] | None:
    """The settings in the newest checkpoint that has any; whether it is sound is seen later."""
    for checkpoint in reversed(checkpoints):
        try:
            facts = read_fingerprint(checkpoint)
        except (OSError, ValueError):
            continue
        if facts is not None:
            return facts.get("settings")
    return None


def _of_the_config(run_dir: Path) -> dict[str, Any] | None:
    """The settings in `config.yaml`, for a run of version 0.1.0."""
    path = run_dir / CONFIG_FILE
    return deciding_settings(load_config(path)) if path.exists() else None
