"""`DPOConfig`: TRL's training arguments and the few that Wishbone adds."""

from __future__ import annotations

import difflib
import logging
from copy import copy
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainingArguments
from transformers.utils import is_torch_bf16_gpu_available
from trl.trainer.dpo_config import DPOConfig as TRLDPOConfig

from wishbone.config.former_options import FORMER_LOSSES, FORMER_OPTIMIZERS, successor
from wishbone.errors import RequestError, one_line
from wishbone.trainer.option_values import losses_refused, numbers_refused, schedule_refused, words_refused

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    TokenBudget = int | str
else:
    TokenBudget = str  # command line parsers take one type; with a union with int they would refuse "auto"

ACTIVATIONS = ("auto", "keep", "recompute", "offload")
CUDA_GRAPHS = ("auto", "on", "off")
LOST_TEXT = ("refuse", "drop", "allow")
GUARDS = ("off", "report", "slow", "stop")

ALL_STEPS = 1 - 2**-30
"""All steps as a share that transformers reads as one: it rounds the number of steps up, and takes 1.0 for one step."""


@dataclass
class DPOConfig(TRLDPOConfig):  # type: ignore[misc]
    """All of TRL's `DPOConfig`, with further losses and settings of Wishbone's step.

    `loss_type` also takes `dpop`, `rdpo`, `simpo`, `cpo` and `orpo`.
    """

    if TYPE_CHECKING:  # TRL declares these and this class assigns to them
        bf16: bool | None
        fp16: bool
        loss_type: list[str]
        warmup_steps: float

    token_budget: TokenBudget = field(
        default="auto", metadata={"help": "Most tokens in one row, or 'auto'. Changes memory and speed, never results."}
    )
    activations: str = field(
        default="auto",
        metadata={
            "help": "With gradient_checkpointing: 'auto' recomputes only the rows whose activations do not fit, 'keep' "
            "none, 'recompute' all of them, 'offload' too, with layer inputs in host memory. Gradients are the same.",
            "choices": list(ACTIVATIONS),
        },
    )
    cuda_graphs: str = field(
        default="auto",
        metadata={
            "help": "Replay recorded passes: 'auto' where the GPU waits for the host and rows to come gain more than "
            "recording takes, 'on' wherever it is possible, all before the first step, 'off'. Rows are padded to "
            "recorded lengths.",
            "choices": list(CUDA_GRAPHS),
        },
    )
    max_prompt_length: int | None = field(
        default=None,
        metadata={"help": "Most tokens of a prompt; of a longer one the end is kept. TRL took it before 1.0."},
    )
    warmup_ratio: float | None = field(
        default=None, metadata={"help": "`warmup_steps` as a share of all steps, as transformers took it before 5.0."}
    )
    reference_store: str = field(
        default="auto",
        metadata={
            "help": "Where reference log-probabilities are kept for later epochs and runs: 'auto' (a file in the "
            "user's cache, where that is right), 'off', or the path of an SQLite file."
        },
    )
    shared_steps: bool = field(
        default=False,
        metadata={
            "help": "Several processes share out the pairs of each optimizer step by their tokens, so that the run is "
            "the one of a single process. False: each process adds a batch of its own to a step, as in TRL."
        },
    )
    save_minutes: float | None = field(
        default=3.0,
        metadata={
            "help": "With save_strategy 'steps' or 'epoch', also save when so many minutes passed since the last "
            "checkpoint, later where saving would take over 2 % of the time; the next checkpoint replaces it. None: "
            "never."
        },
    )
    lost_text: str = field(
        default="refuse",
        metadata={
            "help": "Pairs of which the chat template loses text (tool calls, thoughts), which TRL trains without a "
            "word: 'refuse' names them and ends, 'drop' leaves them out, 'allow' trains what remains of them.",
            "choices": list(LOST_TEXT),
        },
    )
    stop_on_non_finite: bool = field(
        default=True,
        metadata={
            "help": "Refuse weights that are NaN or infinite, and stop at the first loss or gradient that is. Overflow "
            "that loss scaling of fp16 expects does not count."
        },
    )
    guard: str = field(
        default="off",
        metadata={
            "help": "Watches held-out pairs and a few answers while training: 'report' says when they go wrong, 'slow' "
            "also halves the learning rate, 'stop' also ends the run with the best weights, 'off'.",
            "choices": list(GUARDS),
        },
    )
    guard_steps: int | None = field(
        default=None,
        metadata={"help": "Steps between two measurements of the guard, or None: as 3 % of the run's time allows."},
    )
    simpo_gamma: float = field(default=0.5, metadata={"help": "Target reward margin of the `simpo` loss."})
    dpop_lambda: float = field(default=50.0, metadata={"help": "Weight of the penalty of the `dpop` loss."})
    rdpo_alpha: float = field(default=0.01, metadata={"help": "Price of a completion token in the `rdpo` loss."})
    cpo_alpha: float = field(default=1.0, metadata={"help": "Weight of the likelihood term of the `cpo` loss."})
    orpo_lambda: float = field(default=0.1, metadata={"help": "Weight of the odds ratio term of the `orpo` loss."})

    def __new__(cls, *_: Any, **options: Any) -> DPOConfig:
        """Refuse options that do not exist, all at once, with what replaces those that TRL or transformers once had.

        Raises:
            RequestError: naming each of them and its successor.
        """
        known = [option.name for option in fields(cls) if option.init]
        if problems := [_unknown_option(name, known) for name in options if name not in known]:
            raise RequestError(problems)
        return super().__new__(cls)  # type: ignore[no-any-return]

    def __post_init__(self) -> None:
        self._refuse_unreadable()
        if self.bf16 is None and not self.use_cpu and not is_torch_bf16_gpu_available():
            self.bf16 = False  # TRL's default is True, which needs a GPU that computes in bfloat16
        if self.warmup_ratio is not None and not self.warmup_steps:
            self.warmup_steps = self.warmup_ratio if self.warmup_ratio < 1 else ALL_STEPS
        if instead := FORMER_OPTIMIZERS.get(str(self.optim)):
            raise RequestError(f"optim {self.optim!r} is not an optimizer any more: {instead}")
        try:
            super().__post_init__()
        except (TypeError, KeyError) as error:  # transformers' own ValueErrors name the option
            raise RequestError(f"DPOConfig: {one_line(error)}") from error
        self._check()

    def _check(self) -> None:
        """Refuse values that have no meaning, all at once; normalize those that TRL takes in two forms."""
        self._refuse_unreadable()
        if isinstance(self.token_budget, str) and self.token_budget.isdecimal():
            self.token_budget = int(self.token_budget)
        if self.fp16 and not torch.accelerator.is_available():
            logger.warning("fp16=True needs a GPU, and there is none: the run computes in the model's own dtype.")
            self.fp16, self.mixed_precision = False, "no"
        problems = schedule_refused(self.lr_scheduler_type, self.lr_scheduler_kwargs)
        problems += [
            f"loss_type {name!r} is not a loss any more: {instead}"
            for name in self.loss_type
            if (instead := FORMER_LOSSES.get(name))
        ]
        if not (isinstance(self.reference_store, str) and self.reference_store):
            problems.append(f"reference_store {self.reference_store!r} must be 'auto', 'off' or the path of a file")
        if self.token_budget != "auto" and not (isinstance(self.token_budget, int) and self.token_budget > 1):
            problems.append(f"token_budget {self.token_budget!r} must be 'auto' or a number of tokens above 1")
        if self.sync_ref_model and self.ref_model_sync_steps < 1:
            problems.append(f"ref_model_sync_steps {self.ref_model_sync_steps} must be 1 or more")
        if problems:
            raise RequestError(problems)

    def _refuse_unreadable(self) -> None:
        """Refuse what would end in an error of Python's or be ignored: no numbers, no losses, unknown words."""
        self.loss_type = [self.loss_type] if isinstance(self.loss_type, str) else self.loss_type
        if problems := (
            numbers_refused(self) + words_refused(self) + losses_refused(self.loss_type, self.loss_weights)
        ):
            raise RequestError(problems)

    @classmethod
    def from_arguments(cls, arguments: TrainingArguments) -> DPOConfig:
        """Return TRL's or transformers' arguments as this class; what was resolved stays resolved.

        Options that `arguments` has no field for get their defaults, as if they had not been given.
        """
        if isinstance(arguments, cls):
            return arguments
        own = object.__new__(cls)
        own.__dict__.update({f.name: _default(f) for f in fields(cls)} | arguments.__dict__)
        own._check()
        return own

    def changed(self, settings: dict[str, Any]) -> DPOConfig:
        """Return a copy with other values for some fields, which are checked as at construction."""
        if not settings:
            return self
        own = copy(self)
        own.__dict__.update(settings)
        own._check()
        return own


def _unknown_option(name: str, known: list[str]) -> str:
    """Say what replaces an option that does not exist."""
    if instead := successor(name):
        return f"DPOConfig has no option {name!r} any more: {instead}"
    near = difflib.get_close_matches(name, known, n=3)
    hint = f" (near: {', '.join(near)})" if near else ""
    return f"DPOConfig has no option {name!r}{hint}; remove it or correct its name"


def _default(option: Field[Any]) -> Any:
    """Return the default of an option; "auto" padding, which TRL resolves at construction, becomes None."""
    if option.name == "pad_to_multiple_of":
        return None
    return option.default if option.default_factory is MISSING else option.default_factory()
