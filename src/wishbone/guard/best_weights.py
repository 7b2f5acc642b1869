"""The trained weights of the best measurement, kept so that a run that is stopped can end with them.

An adapter is small: a copy in host memory, and on disk for a resumed run. Where every weight is trained the copy would
be as large as the model; then the newest checkpoint before the trouble began is what is restored.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import torch
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from wishbone.config.run_directory import checkpoints_in, step_of
from wishbone.errors import one_line
from wishbone.reference.tensor_hash import tensor_hashes

FILE = "guard-best.safetensors"

logger = logging.getLogger(__name__)


class BestWeights:
    """Keeps and restores trained weights.

    Args:
        model: the model that is trained.
        folder: where checkpoints lie.
        load_checkpoint: loads the weights of a checkpoint's directory into the model.
    """

    def __init__(self, model: nn.Module, folder: Path, load_checkpoint: Callable[[str], None]) -> None:
        self._model, self._folder, self._load_checkpoint = model, folder, load_checkpoint
        self._copied = isinstance(model, PeftModel)
        self._kept: dict[str, Tensor] = {}
        self._step: int | None = None

    def keep(self, step: int, *, write: bool) -> None:
        """Keep the weights as they are after `step` optimizer steps; `write`: on disk too, on one process."""
        if not self._copied:
            return
        self._kept = {name: weight.detach().to("cpu", copy=True).contiguous() for name, weight in self._trained()}
        self._step = step
        if write:
            partial = self._folder / f".{FILE}.partial"
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                save_file(self._kept, partial, metadata={"step": json.dumps(step), "hash": _hash(self._kept)})
                partial.replace(self._folder / FILE)
            except (OSError, SafetensorError) as error:
                with suppress(OSError):
                    partial.unlink(missing_ok=True)
                logger.warning(
                    "%s cannot be written (%s): if this run is continued and the guard stops it, it ends with the "
                    "weights of a checkpoint.", self._folder / FILE, one_line(error),
                )  # fmt: skip

    def resume(self, step: int) -> None:
        """Take from disk what an earlier part of the run kept after `step` optimizer steps; else keep nothing."""
        try:
            with safe_open(self._folder / FILE, framework="pt") as file:
                about = file.metadata() or {}
                kept = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except FileNotFoundError:
            return
        except (OSError, SafetensorError) as error:
            self._say_damaged(one_line(error))
            return
        if about.get("step") != json.dumps(step):
            return
        if about.get("hash") != _hash(kept):
            self._say_damaged("other hash")
            return
        self._kept, self._step = kept, step

    def _say_damaged(self, reason: str) -> None:
        logger.warning(
            "%s is damaged (%s): if the guard stops this run, it ends with the weights of a checkpoint.",
            self._folder / FILE, reason,
        )  # fmt: skip

    def restore(self, step: int) -> int | None:
        """Restore the weights kept after `step` steps, or of the newest checkpoint up to there.

        Returns:
            The steps after which the model had these weights; None if there is nothing to restore.
        """
        if self._copied and self._step is not None:
            with torch.no_grad():
                for name, weight in self._trained():
                    weight.copy_(self._kept[name])
            return self._step
        checkpoints = {step_of(path): path for path in checkpoints_in(self._folder)}
        earlier = [saved for saved in checkpoints if saved <= step]
        if not earlier:
            return None
        self._load_checkpoint(str(checkpoints[max(earlier)]))
        return max(earlier)

    def discard(self) -> None:
        """Remove the copy on disk."""
        with suppress(OSError):
            (self._folder / FILE).unlink(missing_ok=True)

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, weight) for name, weight in self._model.named_parameters() if weight.requires_grad]


def _hash(weights: Mapping[str, Tensor]) -> str:
    """A hash of names, shapes and values."""
    rows = zip(sorted(weights), tensor_hashes([weights[name] for name in sorted(weights)]), strict=True)
    return json.dumps([[name, list(weights[name].shape), row] for name, row in rows])
