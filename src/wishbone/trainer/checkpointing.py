"""TRL's trainer with checkpoints that survive a kill.

transformers writes a checkpoint into its place, file by file: a process that is killed meanwhile leaves a part of one,
which the next run takes for the newest. Here transformers writes it beside (`checkpoint_files.py`), and the trainer
puts it in place when every process has written its part.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn
from transformers import TrainerState
from transformers.trainer_utils import TrainOutput

from wishbone.config.run_directory import checkpoints_in
from wishbone.config.trackers import is_installed
from wishbone.errors import GONE, RunError, lost_another, one_line
from wishbone.paths import room_at, writable_again
from wishbone.strict_json import without_nan
from wishbone.trainer.checkpoint_files import (
    FINGERPRINT,
    STAGING,
    STATE,
    publish,
    rotate,
)
from wishbone.trainer.moving_reference import save_reference
from wishbone.trainer.resuming import ResumedTrainer
from wishbone.trainer.script_signals import saved_before_signals
from wishbone.trainer.timed_saves import TimedSaves

logger = logging.getLogger(__name__)

_ARCHIVE = ("inline_container", "iostream")
"""Words of the errors that PyTorch's archive raises where a file cannot grow."""


class CheckpointNotWritten(RunError):
    """A checkpoint could not be written; the message says why and which one is the last."""

    resumable = True


class CheckpointedTrainer(ResumedTrainer):
    """TRL's trainer; writes checkpoints in its own way."""

    _staging: Path | None = None
    _push_later = False
    _timed: TimedSaves | None = None

    def checkpoint_by_time(self) -> None:
        """Add timed checkpoints where the arguments ask for them; called after TRL's constructor."""
        if self.args.save_minutes is not None:
            self._timed = TimedSaves(self.args.save_minutes, self.accelerator)
            self.add_callback(self._timed)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write TRL's model card; not where a folder `trackio` beside the script ends TRL's own code in an error."""
        if find_spec("trackio") is not None and not is_installed("trackio"):
            logger.warning("A folder is called trackio, which TRL takes for the package: it writes no model card.")
            return
        super().create_model_card(*args, **kwargs)

    def train(self, resume_from_checkpoint: str | Path | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train as transformers does, from a checkpoint that was found to be sound.

        Args:
            resume_from_checkpoint: True for the newest sound checkpoint in `output_dir`, or the path of one.
            args: further arguments of transformers' `train`.
            kwargs: the same by name.

        Raises:
            RequestError: there is no sound checkpoint, or the one named is damaged.
            CheckpointNotWritten: the disk is full or fails; the last checkpoint is whole.
        """
        if self.args.should_save:
            self._record()
            self._remove_rest(Path(self.args.output_dir))
        checkpoint = self._continue_from(resume_from_checkpoint)
        with saved_before_signals(self):
            return super().train(checkpoint, *args, **kwargs)

    def _get_output_dir(self, trial: Any) -> str:
        """Where checkpoints go, which is beside their place while one is written."""
        return str(super()._get_output_dir(trial)) if self._staging is None else str(self._staging)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Upload as transformers does, but only what is in its place."""
        if self._staging is None:
            super()._push_from_checkpoint(checkpoint_folder)
        else:
            self._push_later = True

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Have transformers write a checkpoint beside its place; put it there when all processes have written."""
        began = time.monotonic()
        folder = Path(super()._get_output_dir(trial))
        staging = folder / STAGING
        place = folder / f"checkpoint-{self.state.global_step}"
        rolling = self._timed is not None and self._timed.rolling
        self._remove_rest(folder)
        self.accelerator.wait_for_everyone()
        self._staging, self._push_later = staging, False
        if self.args.include_num_input_tokens_seen == "no":  # otherwise transformers counts its own
            self.state.num_input_tokens_seen = self._total_train_tokens
        try:
            super()._save_checkpoint(model, trial)
            self.write_extras(staging / place.name, folder)
            self.accelerator.wait_for_everyone()
            if self.is_world_process_zero():
                publish(staging / place.name, place, rolling=rolling)
            self.accelerator.wait_for_everyone()
            if self.is_local_process_zero() and (staging / place.name).exists():  # of a node with a disk of its own
                publish(staging / place.name, place, rolling=rolling)
        except (OSError, RuntimeError, SafetensorError) as error:
            if lost_another(error) or not _is_of_the_disk(error):
                raise
            if isinstance(error, FileNotFoundError) and not staging.exists() and not self.is_local_process_zero():
                raise RunError(GONE) from error  # the first process failed, removed what was written and says why
            raise CheckpointNotWritten(_not_written(place, error)) from error
        finally:
            self._staging = None
            if self.is_local_process_zero():
                shutil.rmtree(staging, ignore_errors=True)
        if self._push_later and not rolling:
            super()._push_from_checkpoint(str(place))
        if self.args.should_save:
            best = self.state.best_model_checkpoint
            rotate(folder, self.args.save_total_limit, [] if best is None else [Path(best)], place)
        if self._timed is not None:
            self._timed.saved(time.monotonic() - began)

    def save_state(self) -> None:
        """Write the state into `output_dir` as transformers does, in JSON that every reader takes."""
        super().save_state()
        if self.is_world_process_zero():
            _save_state(self.state, Path(self.args.output_dir) / STATE)

    def _remove_rest(self, folder: Path) -> None:
        """Delete what a process that was killed left of a checkpoint."""
        rest = folder / STAGING
        if self.is_local_process_zero() and rest.is_dir():
            shutil.rmtree(rest)
        elif self.is_local_process_zero():
            rest.unlink(missing_ok=True)

    def write_extras(self, written: Path, folder: Path) -> None:
        """Add the fingerprint; write the state again, in JSON that every reader takes.

        There the best checkpoint has the name of its place, which is not where it was looked for.
        """
        if self.args.should_save:
            (written / FINGERPRINT).write_text(json.dumps(self._record(), indent=1) + "\n", encoding="utf-8")
            divided = self.is_fsdp_enabled or self.is_deepspeed_enabled
            if self.args.sync_ref_model and self.ref_model is not None and not divided:
                save_reference(self.ref_model, written)
        best = folder / f"checkpoint-{self.state.best_global_step}"
        if self.state.best_global_step and (best.exists() or best.name == written.name):
            self.state.best_model_checkpoint = str(best)
        if self.args.should_save and (written / STATE).is_file():
            _save_state(self.state, written / STATE)


def _save_state(state: TrainerState, file: Path) -> None:
    """Write a state as transformers does, with null for NaN and infinity, which its logs may hold in float16."""
    content = without_nan(asdict(state))
    file.write_text(json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")


def _is_of_the_disk(error: Exception) -> bool:
    """Whether writing failed. On a full disk PyTorch's archive raises a RuntimeError of positions or of its stream."""
    told = str(error).lower()
    return isinstance(error, OSError | SafetensorError) or any(word in told for word in ("write", *_ARCHIVE))


def _not_written(place: Path, error: Exception) -> str:
    """A message: what failed, how much room there is, and which checkpoint is the last."""
    others = checkpoints_in(place.parent)
    last = f"{others[-1].name} is whole" if others else "no checkpoint was written before"
    reason = "a file is not whole" if any(word in str(error) for word in _ARCHIVE) else one_line(error)
    return (
        f"{place} could not be written ({reason}; {room_at(place.parent)}); {last}. "
        f"{writable_again(error)} and continue with --resume, or with resume_from_checkpoint=True"
    )
