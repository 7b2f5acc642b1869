"""The second model that follows the policy (`sync_ref_model`), kept in the checkpoints of a run.

Its weights are a mean of what the policy was at several steps, which no other file holds. A run that continued with the
model that it began with would compare the policy with another one.
"""

from __future__ import annotations

import logging
from pathlib import Path

from safetensors.torch import load_model, save_model
from torch import nn

FILE = "reference.safetensors"

logger = logging.getLogger(__name__)


def save_reference(model: nn.Module, checkpoint: Path) -> None:
    """Write the reference into a checkpoint."""
    save_model(model, str(checkpoint / FILE))


def load_reference(model: nn.Module, checkpoint: Path) -> None:
    """Load the reference from a checkpoint; log a warning where the checkpoint has none."""
    if (checkpoint / FILE).is_file():
        load_model(model, checkpoint / FILE)
    else:
        logger.warning(
            "%s does not hold the reference, which follows the policy (sync_ref_model): it starts again from the "
            "given model, so the run differs from an uninterrupted one.",
            checkpoint,
        )
