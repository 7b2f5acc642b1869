"""The trained weights of the best measurement, kept so that a run that is stopped can end with them.

An adapter is small: a copy in host memory, and on disk for a resumed run. Where every weight is trained the copy would
be as large as the model; then the newest checkpoint before the trouble began is what is restored.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

FILE = "guard-best.safetensors"


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
            self._folder.mkdir(parents=True, exist_ok=True)
            partial = self._folder / f".{FILE}.{os.getpid()}"
            save_file(self._kept, partial, metadata={"step": json.dumps(step)})
            partial.replace(self._folder / FILE)

    def resume(self, step: int) -> None:
        """Take from disk what an earlier part of the run kept after `step` optimizer steps; else keep nothing."""
        try:
            with safe_open(self._folder / FILE, framework="pt") as file:
                if (file.metadata() or {}).get("step") == json.dumps(step):
                    self._kept = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                    self._step = step
        except (OSError, SafetensorError):
            return

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
        checkpoints = {int(path.name.rpartition("-")[2]): path for path in self._folder.glob("checkpoint-*[0-9]")}
        earlier = [saved for saved in checkpoints if saved <= step]
        if not earlier:
            return None
        self._load_checkpoint(str(checkpoints[max(earlier)]))
        return max(earlier)

    def discard(self) -> None:
        """Remove the copy on disk."""
        (self._folder / FILE).unlink(missing_ok=True)

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, weight) for name, weight in self._model.named_parameters() if weight.requires_grad]
