"""TRL's trainer with checkpoints that survive a kill, and runs that continue exactly where one was written.

transformers writes a checkpoint into its place, file by file: a process that is killed meanwhile leaves a part of one,
which the next run takes for the newest. Here transformers writes it beside (`checkpoint_files.py`), and the trainer
puts it in place when every process has written its part. Before a run continues, the files are checked, and so is
whether it is the same run (`fingerprint.py`). It ends after `max_steps` steps, not one later.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from accelerate.utils import broadcast_object_list
from datasets import IterableDataset
from safetensors import SafetensorError
from torch import nn
from transformers import TrainerState
from transformers.trainer_utils import TrainOutput
from trl.trainer.dpo_trainer import DPOTrainer as TRLDPOTrainer

from wishbone.config.run_directory import checkpoints_in
from wishbone.data.json_text import parse_json
from wishbone.errors import RequestError, RunError, one_line
from wishbone.paths import room_at, writable_again
from wishbone.strict_json import without_nan
from wishbone.trainer.arguments import DPOConfig
from wishbone.trainer.checkpoint_files import (
    FINGERPRINT,
    STAGING,
    STATE,
    damage,
    has_manifest,
    newest_sound,
    publish,
    rotate,
)
from wishbone.trainer.fingerprint import (
    Facts,
    adapter_facts,
    changes,
    kind_of,
    model_facts,
    options_of,
    other_versions,
    pairs_facts,
    read_fingerprint,
    reference_facts,
    refuse_changes,
    settings_of,
    versions,
)
from wishbone.trainer.moving_reference import save_reference
from wishbone.trainer.script_signals import saved_before_signals
from wishbone.trainer.timed_saves import TimedSaves

logger = logging.getLogger(__name__)


_ARCHIVE = ("inline_container", "iostream")
"""Words of the errors that PyTorch's archive raises where a file cannot grow."""


STEADY = ("constant", "constant_with_warmup")
"""Schedules that do not depend on the number of steps."""
OPTIMIZER_FILES = ("*optimizer*", "global_step*")
"""What transformers, FSDP and DeepSpeed call the state of the optimizer in a checkpoint."""


class CheckpointNotWritten(RunError):
    """A checkpoint could not be written; the message says why and which one is the last."""

    resumable = True


class CheckpointedTrainer(TRLDPOTrainer):  # type: ignore[misc]
    """TRL's trainer; saves and resumes in its own way.

    Attributes:
        deciding: the settings that decide the result, by the names that the caller knows them by. A run that continues
            must have the same. None: the arguments.
        continued: the checkpoint that training continued from, or None.
        given_collator: the data collator that a script gave, or None.
    """

    args: DPOConfig
    deciding: dict[str, Any] | None = None
    continued: Path | None = None
    given_collator: object | None = None
    _total_train_tokens: int

    def _checkpoint_by_the_clock(self) -> None:
        """Prepare what saving and resuming need, once TRL has constructed itself."""
        self._staging: Path | None = None
        self._push_later = False
        self._checked: Path | None = None
        self._recorded: Facts | None = None
        self._weights: Facts | None = None
        self._timed: TimedSaves | None = None
        self._earlier_tokens = 0
        if self.args.save_minutes is not None:
            self._timed = TimedSaves(self.args.save_minutes, self.accelerator)
            self.add_callback(self._timed)

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
        self.continued = None
        if resume_from_checkpoint:
            resume_from_checkpoint = str(self.checkpoint_to_resume(resume_from_checkpoint))
            self.continued, self._checked = Path(resume_from_checkpoint), None  # a later call looks again
        with saved_before_signals(self):
            return super().train(resume_from_checkpoint or None, *args, **kwargs)

    def _record_weights(self) -> None:
        """Take the fingerprint of the model before it is divided over processes, where the first one has it whole."""
        if self.args.should_save:
            self._weights = model_facts(self.model)

    def _record(self) -> Facts:
        """Return the fingerprint of this run, taken before the first step is."""
        if self._recorded is None:
            self._recorded = {
                "settings": self.deciding or settings_of(self.args, self.accelerator.num_processes),
                "data": {"training pairs": pairs_facts(self.train_dataset), "held out": pairs_facts(self.eval_dataset)},
                "model": self._weights or model_facts(self.model),
                "reference": {} if self.ref_model is None or self._weights else reference_facts(self.ref_model),
                "adapter": adapter_facts(self.model),
                "given": {
                    "optimizer": kind_of(self.optimizer),
                    "scheduler": kind_of(self.lr_scheduler),
                    "data collator": kind_of(self.given_collator),
                    **options_of(self.optimizer),
                },
                "versions": versions(),
            }
        return self._recorded

    def checkpoint_to_resume(self, asked: str | Path | Literal[True] = True) -> Path:
        """Return the checkpoint that training continues from, checked by the first process for all.

        Args:
            asked: True for the newest sound checkpoint in `output_dir`, or the path of one.

        Raises:
            RequestError: there is none, or the one named is damaged.
        """
        if self._checked is not None and asked is not True and Path(asked) == self._checked:
            return self._checked
        found: list[Any] = [None, None]
        if self.is_world_process_zero():
            try:
                found[0] = self._sound_checkpoint(asked)
            except RequestError as error:
                found[1] = error.problems
        if self.accelerator.num_processes > 1:
            broadcast_object_list(found)
        if found[1] is not None:
            raise RequestError(found[1])
        path: Path = found[0]
        self._checked = path
        return path

    def _sound_checkpoint(self, asked: str | Path | Literal[True]) -> Path:
        """Choose and check; warn of what was skipped and of what cannot be checked."""
        if asked is not True:
            path = Path(asked)
            if path.is_dir() and (harm := damage(path)):
                other = newest_sound(path.parent).path
                remedy = f"{other} is sound" if other else "there is no sound one beside it"
                raise RequestError(f"resume_from_checkpoint: {path} is damaged ({harm}); {remedy}")
        else:
            folder = Path(self.args.output_dir)
            choice = newest_sound(folder)
            for line in choice.skipped:
                logger.warning("%s", line)
            if choice.path is None:
                why = "all of them are damaged" if choice.skipped else "there is none"
                raise RequestError(
                    f"no checkpoint in {folder} can be continued, because {why}; start anew in another directory"
                )
            path = choice.path
        if not path.is_dir():
            beside = ", ".join(found.name for found in checkpoints_in(path.parent)) or "none"
            raise RequestError(f"resume_from_checkpoint: there is no directory {path}; checkpoints beside it: {beside}")
        if (path / STATE).is_file() and not any(any(path.glob(name)) for name in OPTIMIZER_FILES):
            raise RequestError(
                f"{path} holds weights and no state of the optimizer (save_only_model), so the run cannot be continued "
                "exactly; train on from these weights as the model of a new run"
            )
        recorded = read_fingerprint(path)
        if recorded is not None:
            refuse_changes(changes(recorded, self._record()), path)
            if others := other_versions(recorded, self._record()):
                logger.warning("%s", others)
        _say_what_cannot_be_checked(path, recorded)
        if isinstance(self.train_dataset, IterableDataset):
            logger.warning("%s: whether the stream gives the same pairs in the same order is not checked.", path)
        return path

    @property
    def trained_tokens(self) -> int:
        """Tokens of all sequences trained on since construction."""
        return int(self._total_train_tokens - self._earlier_tokens)

    def _init_training_state(self, max_steps: int, *args: Any, **kwargs: Any) -> Any:
        """Restore the state as transformers does; how often is logged, evaluated and saved is what is asked for now.

        `num_tokens` goes on from the count of the checkpoint; in TRL it begins at 0 again.
        """
        begun = super()._init_training_state(max_steps, *args, **kwargs)
        if self.continued is not None:
            self._compare_steps(self.continued, max_steps)
        self.state.compute_steps(self.args, max_steps)
        if self.continued is not None and self.args.include_num_input_tokens_seen == "no":
            self._earlier_tokens += self.state.num_input_tokens_seen - self._total_train_tokens
            self._total_train_tokens = self.state.num_input_tokens_seen
        return begun

    def _compare_steps(self, continued: Path, max_steps: int) -> None:
        """Refuse to continue behind the end; say where the learning rate follows another schedule than it did.

        Raises:
            RequestError: the checkpoint was written after the last step that is asked for.
        """
        done = self.state.global_step
        if done > max_steps:
            raise RequestError(
                f"{continued} was written after step {done}, and the run is to end after step {max_steps}: ask "
                "for more steps or epochs, or continue from an earlier checkpoint"
            )
        if not self.is_world_process_zero():
            return
        before = parse_json((continued / STATE).read_bytes()).get("max_steps")
        own = self._record()["given"]["scheduler"] is None and self.args.lr_scheduler_type not in STEADY
        if own and before and before != max_steps and done < max_steps:
            logger.warning(
                "The run was to end after step %d and now ends after step %d: from step %d on, the learning rate "
                "follows the %s schedule of that many steps.",
                before,
                max_steps,
                done + 1,
                self.args.lr_scheduler_type.value,
            )

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Run an epoch, unless all steps are done or training was stopped: transformers asks only after a step."""
        if self.state.global_step >= self.state.max_steps or self.control.should_training_stop:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

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
            self._write_extras(staging / place.name, folder)
            self.accelerator.wait_for_everyone()
            if self.is_world_process_zero():
                publish(staging / place.name, place, rolling=rolling)
            self.accelerator.wait_for_everyone()
            if self.is_local_process_zero() and (staging / place.name).exists():  # of a node with a disk of its own
                publish(staging / place.name, place, rolling=rolling)
        except (OSError, RuntimeError, SafetensorError) as error:
            if not _is_of_the_disk(error):
                raise
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

    def _write_extras(self, written: Path, folder: Path) -> None:
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


def _say_what_cannot_be_checked(path: Path, recorded: Facts | None) -> None:
    """One line for a checkpoint of version 0.1.0, of transformers or of TRL."""
    absent = [] if has_manifest(path) else ["whether its files changed (no manifest.json)"]
    absent += [] if recorded is not None else [f"whether data, model and settings are the same (no {FINGERPRINT})"]
    if absent:
        logger.warning("%s was not written by this version; what cannot be checked: %s.", path, " and ".join(absent))


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
