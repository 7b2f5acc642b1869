"""Which scans run by kernels of other libraries: flash-linear-attention's gated delta rule, mamba-ssm's Mamba-2.

Both take a state to start from and give one back, so two calls run a packed row (`prefix_batches.py`).
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Literal

import torch
from packaging.version import Version

Library = Literal["fla", "mamba_ssm"]
INSTALL: dict[Library, str] = {
    "fla": "flash-linear-attention is not installed (pip install flash-linear-attention)",
    "mamba_ssm": "mamba-ssm is not installed (pip install mamba-ssm)",
}


def why_no_kernels(library: Library, device: torch.device) -> str | None:
    """Return why the kernels of a library do not run scans on a device, with the remedy; None where they do."""
    if device.type != "cuda":
        return "there is no CUDA GPU"
    if find_spec(library) is None:
        return INSTALL[library]
    if library == "fla" and torch.cuda.get_device_capability(device)[0] == 9 and find_spec("tilelang") is None:
        return _wrong_on_hopper(_triton())
    return None


def _wrong_on_hopper(triton: Version | None) -> str | None:
    """flash-linear-attention refuses the backward pass of gated rules there (its issue 640)."""
    if triton is None or not Version("3.4.0") <= triton < Version("3.7.1"):
        return None
    return f"flash-linear-attention refuses this GPU with Triton {triton}: install Triton 3.7.1 or newer, or tilelang"


def _triton() -> Version | None:
    try:
        return Version(version("triton"))
    except PackageNotFoundError:
        return None
