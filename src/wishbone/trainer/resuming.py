"""TRL's trainer that resumes exactly from where a checkpoint was written.

Before a run continues, the files of the checkpoint are checked (`checkpoint_files.py`), and so is whether it is the
same run (`fingerprint.py`). It ends after `max_steps` steps, not one later.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

from accelerate.utils import broadcast_object_list
from datasets import IterableDataset
from trl.trainer.dpo_trainer import DPOTrainer as TRLDPOTrainer

from wishbone.config.run_directory import checkpoints_in
from wishbone.data.json_text import parse_json
from wishbone.errors import RequestError
from wishbone.trainer.arguments import DPOConfig
from wishbone.trainer.checkpoint_files import (
    FINGERPRINT,
    STATE,
    damage,
    has_manifest,
    newest_sound,
)
from wishbone.trainer.fingerprint import (
    HELD_OUT,
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
    trained_facts,
    versions,
)
from wishbone.trainer.ignored_options import not_reached
from wishbone.trainer.option_values import refuse_warmup_without_decay

logger = logging.getLogger(__name__)

STEADY = ("constant", "constant_with_warmup")
"""Schedules that do not depend on the number of steps."""
MEASURING = ("reduce_lr_on_plateau", "greedy")
"""Schedules that follow what is measured on held-out pairs."""
OPTIMIZER_FILES = ("*optimizer*", "global_step*")
"""What transformers, FSDP and DeepSpeed call the state of the optimizer in a checkpoint."""


class ResumedTrainer(TRLDPOTrainer):  # type: ignore[misc]
    """TRL's trainer; resumes in its own way.

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
    _checked: Path | None = None
    _recorded: Facts | None = None
    _epochs_without_step = 0
    _weights: Facts | None = None
    _trained: str | None = None
    _earlier_tokens = 0
    _total_train_tokens: int

    def record_weights(self) -> None:
        """Record the fingerprint of the model before it is sharded, while the first process still has all weights."""
        if self.args.should_save:
            self._weights = model_facts(self.model)
            self._trained = trained_facts(self.model)

    def _record(self) -> Facts:
        """Return the fingerprint of this run, taken before the first step is."""
        if self._recorded is None:
            self._recorded = {
                "settings": self.deciding or settings_of(self.args, self.accelerator.num_processes),
                "data": {"training pairs": pairs_facts(self.train_dataset), HELD_OUT: pairs_facts(self.eval_dataset)},
                "model": self._weights or model_facts(self.model),
                "reference": {} if self.ref_model is None or self._weights else reference_facts(self.ref_model),
                "adapter": adapter_facts(self.model),
                "given": {
                    "optimizer": kind_of(self.optimizer),
                    "scheduler": kind_of(self.lr_scheduler),
                    "data collator": kind_of(self.given_collator),
                    "trained parameters": self._trained or trained_facts(self.model),
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

    def _continue_from(self, asked: str | Path | bool | None) -> str | None:
        """Return the checkpoint that training now continues from; arguments and errors as `checkpoint_to_resume`."""
        self.continued = None
        if not asked and self.args.resume_from_checkpoint:
            logger.warning(
                "The run starts from its first step: train() ignores the option resume_from_checkpoint=%r, as in "
                "transformers; call train(resume_from_checkpoint=...).",
                self.args.resume_from_checkpoint,
            )
        if not asked and asked != "":
            return None
        if not (asked is True or (asked and isinstance(asked, str | Path))):
            raise RequestError(f"resume_from_checkpoint is {asked!r}; give True for the newest, or the path of one")
        self.continued = self.checkpoint_to_resume(asked)
        if self.args.ignore_data_skip:
            logger.warning(
                "ignore_data_skip begins the epoch anew: pairs from before the checkpoint come again, and the run is "
                "not the uninterrupted one. Leave it out to continue where the data was left."
            )
        self._checked = None  # a later call looks again
        return str(self.continued)

    def _sound_checkpoint(self, asked: str | Path | Literal[True]) -> Path:
        """Choose and check; warn of what was skipped and of what cannot be checked."""
        if asked is not True:
            path = Path(asked)
            if not (path / STATE).exists() and (inside := checkpoints_in(path)):
                names = ", ".join(found.name for found in inside)
                raise RequestError(
                    f"resume_from_checkpoint: {path} is no checkpoint; it holds {names}. Name one of them"
                )
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
                    f"no checkpoint in {folder} can be continued, because {why}; start again in another directory"
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
            own, data = self._record(), recorded.get("data", {})
            if not self._learns_from_held_out and data.get(HELD_OUT, held := own["data"][HELD_OUT]) != held:
                recorded = recorded | {"data": data | {HELD_OUT: held}}
                logger.warning("%s was measured on other held-out pairs, or on none; the run trains as before.", path)
            refuse_changes(changes(recorded, own), path)
            if others := other_versions(recorded, self._record()):
                logger.warning("%s", others)
        _say_what_cannot_be_checked(path, recorded)
        if isinstance(self.train_dataset, IterableDataset):
            logger.warning("%s: whether the stream gives the same pairs in the same order is not checked.", path)
        return path

    @property
    def _learns_from_held_out(self) -> bool:
        """Whether held-out pairs decide what is trained or kept; in a run with a report they are one curve."""
        args = self.args
        judged = args.load_best_model_at_end or args.save_strategy == "best" or args.guard in ("slow", "stop")
        return self.deciding is not None or judged or args.lr_scheduler_type in MEASURING

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
        refuse_warmup_without_decay(self.args, max_steps)
        if self.deciding is None and self.is_world_process_zero():
            for sentence in not_reached(self.args, max_steps):
                logger.warning("%s", sentence)
        if self.continued is not None and self.args.include_num_input_tokens_seen == "no":
            self._earlier_tokens += self.state.num_input_tokens_seen - self._total_train_tokens
            self._total_train_tokens = self.state.num_input_tokens_seen
        return begun

    def _compare_steps(self, continued: Path, max_steps: int) -> None:
        """Refuse to resume after the last step; warn where the learning rate schedule has changed.

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
        """Run an epoch, unless all steps are done or training stopped, which transformers checks only after a step.

        Raises:
            RequestError: two epochs had no step, and so has no other. Of a run that continues, the first may be over.
        """
        before = self.state.global_step
        if before >= self.state.max_steps or self.control.should_training_stop:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)
        done = self.state.global_step > before or self.control.should_training_stop
        self._epochs_without_step = 0 if done else self._epochs_without_step + 1
        if self._epochs_without_step == 2:
            raise RequestError(
                "an epoch of the training data has fewer batches than gradient_accumulation_steps, "
                f"{self.args.gradient_accumulation_steps}, and the end of a stream completes no step, so none "
                "would ever come; lower it to the number of batches that each process reads, or give more pairs"
            )


def _say_what_cannot_be_checked(path: Path, recorded: Facts | None) -> None:
    """One line for a checkpoint of version 0.1.0, of transformers or of TRL."""
    absent = [] if has_manifest(path) else ["whether its files changed (no manifest.json)"]
    absent += [] if recorded is not None else [f"whether data, model and settings are the same (no {FINGERPRINT})"]
    if absent:
        logger.warning("%s was not written by this version; what cannot be checked: %s.", path, " and ".join(absent))
