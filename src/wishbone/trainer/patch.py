"""`PatchDPOTrainer()`: code written for TRL trains with Wishbone, without another change.

The names `DPOTrainer` and `DPOConfig` in TRL's modules become Wishbone's, for imports that come later. For imports that
came earlier, constructing TRL's own class makes a Wishbone trainer: a class's `__new__` decides what is constructed,
and Python then runs the `__init__` of what it returned. A class derived from TRL's trainer before the patch keeps TRL's
behaviour, because its methods were written for that; a warning says so.
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
"""Modules that people import the two names from. `trl.trainer.dpo_config` keeps TRL's `DPOConfig`, so it pickles."""

logger = logging.getLogger(__name__)


class Patch:
    """What `PatchDPOTrainer()` returns; leaving it as a context manager ends the patch if this call started it.

    Attributes:
        began: whether this call started the patch; False if it was in place already.
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
    """Make every `DPOTrainer` of TRL's a Wishbone trainer, imported before this call or after it.

    A second call changes nothing. `UnpatchDPOTrainer()` ends the patch, and so does leaving `with PatchDPOTrainer():`.

    Raises:
        RequestError: Wishbone was not tested with the installed TRL; nothing is changed then.
    """
    check_trl()
    return Patch()


def UnpatchDPOTrainer() -> None:
    """Restore TRL's own trainer; existing trainers do not change."""
    if Patch.active:
        _set_names(TRLDPOTrainer, TRLDPOConfig)
        Patch.active = False


def _set_names(trainer: type, config: type) -> None:
    for name in MODULES:
        module = import_module(name)
        module.DPOTrainer = trainer  # type: ignore[attr-defined]
        module.DPOConfig = config  # type: ignore[attr-defined]


def _construct(cls: type, *_: Any, **__: Any) -> Any:
    """Replace `TRLDPOTrainer.__new__` for good: if it were deleted, Python would refuse arguments."""
    if Patch.active and cls is TRLDPOTrainer:
        cls = DPOTrainer
    elif Patch.active and not issubclass(cls, DPOTrainer):
        logger.warning(
            "%s was derived from TRL's DPOTrainer before PatchDPOTrainer() was called and runs as TRL wrote it; "
            "call PatchDPOTrainer() before you define the class.",
            cls.__qualname__,
        )
    return object.__new__(cls)
