"""`PatchDPOTrainer()`: code written for TRL trains with Wishbone, without another change.

The names `DPOTrainer` and `DPOConfig` in TRL's modules become Wishbone's, which serves imports that come later. For
those that came before, constructing TRL's own class makes a Wishbone trainer: a class's `__new__` decides what is
constructed, and Python runs the `__init__` of what it returned. A class that was derived from TRL's trainer before
keeps TRL's behaviour, because what it overrides was written against that, and a warning says so.
"""

from __future__ import annotations

import logging
from importlib import import_module
from types import TracebackType
from typing import Any

from trl.trainer.dpo_config import DPOConfig as TRLDPOConfig
from trl.trainer.dpo_trainer import DPOTrainer as TRLDPOTrainer

from wishbone.trainer.arguments import DPOConfig
from wishbone.trainer.compatibility import check_trl
from wishbone.trainer.trainer import DPOTrainer

MODULES = ("trl", "trl.trainer", "trl.trainer.dpo_trainer")
"""Where people import the two names from. TRL's own `DPOConfig` stays in its home, so that it can be pickled."""

logger = logging.getLogger(__name__)


class Patch:
    """What `PatchDPOTrainer()` returns: as a context manager it ends the patch that it began.

    Attributes:
        began: whether this call began the patch; False if it was in place already.
    """

    active = False

    def __init__(self) -> None:
        self.began = not Patch.active
        if self.began:
            _set_names(DPOTrainer, DPOConfig)
            TRLDPOTrainer.__new__ = staticmethod(_construct)
            Patch.active = True

    def __enter__(self) -> Patch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.began:
            UnpatchDPOTrainer()


def PatchDPOTrainer() -> Patch:
    """Make every `DPOTrainer` of TRL's a Wishbone trainer, whether it was imported before this call or comes after.

    Calling it again changes nothing. `UnpatchDPOTrainer()` ends it, and so does leaving `with PatchDPOTrainer():`.

    Raises:
        RequestError: the installed TRL is not one that Wishbone was tested with; nothing is changed then.
    """
    check_trl()
    return Patch()


def UnpatchDPOTrainer() -> None:
    """Give TRL its own trainer back; trainers that exist already stay what they are."""
    if Patch.active:
        _set_names(TRLDPOTrainer, TRLDPOConfig)
        Patch.active = False


def _set_names(trainer: type, config: type) -> None:
    for name in MODULES:
        module = import_module(name)
        module.DPOTrainer = trainer  # type: ignore[attr-defined]
        module.DPOConfig = config  # type: ignore[attr-defined]


def _construct(cls: type, *_: Any, **__: Any) -> Any:
    """Stand in for `TRLDPOTrainer.__new__`; it stays after the patch ends, because Python cannot take it back."""
    if Patch.active and cls is TRLDPOTrainer:
        cls = DPOTrainer
    elif Patch.active and not issubclass(cls, DPOTrainer):
        logger.warning(
            "%s was derived from TRL's DPOTrainer before PatchDPOTrainer() was called and runs as TRL wrote it; "
            "call PatchDPOTrainer() before the class is defined.",
            cls.__qualname__,
        )
    return object.__new__(cls)
