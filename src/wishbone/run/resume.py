"""What `--resume` continues, decided from the files of a run directory alone, before anything is loaded.

Three answers: this is another run, and what differs (refused); all its steps are done (nothing to do); or it goes on.
What settings do not tell, such as other pairs in the file of the same name, is compared when data and weights are there
(`trainer/fingerprint.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wishbone.config.load import parse_config, read_text
from wishbone.config.run_directory import CHECKPOINTS, CONFIG_FILE, checkpoints_in
from wishbone.config.schema import DataConfig, ModelConfig, RunConfig
from wishbone.data.json_text import parse_json
from wishbone.errors import RequestError
from wishbone.trainer.fingerprint import changes, read_fingerprint, refuse_changes

FREE = frozenset(
    {
        "training.max_steps", "training.epochs", "training.logging_steps", "training.eval_steps", "training.save_steps",
        "training.token_budget", "training.activations", "training.reference_store", "training.guard",
        "training.guard_steps", "model.sharding", "output.dir", "output.report_to", "output.answers",
    }
)  # fmt: skip
"""Settings that change no result, and how long the run is."""
MEETINGS = ("max_steps", "epochs", "eval_steps", "save_steps", "guard", "guard_steps")
"""Settings of training that change no result, and yet processes that differ in one would wait for each other."""
SEEN_LATER = frozenset(
    {
        "model.name", "model.revision", "model.dtype", "model.reference", "model.trust_remote_code",
        "data.train", "data.eval", "data.split", "data.eval_split", "data.invalid_rows", "data.template",
        "adapter.target_modules",
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


def settings_of_processes(config: RunConfig) -> dict[str, Any]:
    """Return the settings that all processes of a run must have: those above, and how often they meet."""
    training = config.training.model_dump(mode="json")
    return deciding_settings(config) | {f"training.{name}": training[name] for name in MEETINGS}


def nothing_saved(run_dir: Path) -> bool:
    """Whether the run ended before its first checkpoint, so that it can start again and nothing is lost."""
    return not checkpoints_in(run_dir / CHECKPOINTS) and _summary(run_dir).get("status") != "done"


def refuse_another_run(config: RunConfig, run_dir: Path) -> None:
    """Refuse settings that decide the result and are not those of the run.

    A setting that the run's version did not have yet counts as its default.

    Raises:
        RequestError: there is no checkpoint of a run that is not finished, or settings differ: all are listed.
    """
    checkpoints = checkpoints_in(run_dir / CHECKPOINTS)
    if not checkpoints:
        if finished_steps(config, run_dir) is not None:
            return
        raise RequestError(
            f"there is no checkpoint in {run_dir / CHECKPOINTS} to resume from; start again in another directory or "
            "delete it"
        )
    recorded = _recorded(checkpoints)
    if recorded is None and (before := _config(run_dir)):  # a run of version 0.1.0
        recorded = deciding_settings(before)
    if recorded is not None:
        defaults = RunConfig(model=ModelConfig(name=config.model.name), data=DataConfig(train=config.data.train))
        old = deciding_settings(defaults) | recorded
        refuse_changes(changes({"settings": old}, {"settings": deciding_settings(config)}), run_dir)


def template_of_run(config: RunConfig, run_dir: Path) -> RunConfig:
    """Return the settings with `data.template` as the run carried it out, where they leave that open.

    Version 0.1.0 had no such setting, and trained pairs of texts as they are.
    """
    before = _config(run_dir)
    if before is None or config.data.template != "auto":
        return config
    form = before.data.template if "template" in before.data.model_fields_set else "none"
    return config.model_copy(update={"data": config.data.model_copy(update={"template": form})})


def finished_steps(config: RunConfig, run_dir: Path) -> int | None:
    """Return the steps of a run that is done, if `config` asks for no more of them; else None."""
    summary = _summary(run_dir)
    steps = summary.get("steps")
    if summary.get("status") != "done" or not isinstance(steps, int):
        return None
    asked = config.training
    if asked.max_steps is not None:
        return steps if asked.max_steps <= steps else None
    before = _config(run_dir)
    if before is None or before.training.max_steps is not None:
        return None
    return steps if asked.epochs <= before.training.epochs else None


def heldout_before(run_dir: Path) -> dict[str, float] | None:
    """Return what the held-out pairs gave before the first step, if an earlier part of the run noted it."""
    found = _summary(run_dir).get("heldout_before")
    return found if isinstance(found, dict) else None


def tracked_before(run_dir: Path) -> str | None:
    """Return the name of the run in its trackers, if an earlier part of it noted one."""
    found = _summary(run_dir).get("tracked_as")
    return found if isinstance(found, str) else None


def _summary(run_dir: Path) -> dict[str, Any]:
    """What `summary.json` says; nothing where it is absent or damaged."""
    try:
        found = parse_json((run_dir / "summary.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _recorded(checkpoints: list[Path]) -> dict[str, Any] | None:
    """The settings in the newest checkpoint that has any; whether it is sound is seen later."""
    for checkpoint in reversed(checkpoints):
        facts = read_fingerprint(checkpoint)
        if facts is not None:
            return facts.get("settings")
    return None


def _config(run_dir: Path) -> RunConfig | None:
    """The settings that the run was last started with; None where they cannot be read. Its files may have moved."""
    try:
        return parse_config(read_text(run_dir / CONFIG_FILE))
    except RequestError:
        return None
