"""Which form of an op runs: the definition in PyTorch, or kernels in Triton."""

from __future__ import annotations

from typing import Literal

Backend = Literal["auto", "reference", "triton"]


def runs_triton(backend: Backend, *, auto: bool) -> bool:
    """Return whether a backend is Triton's; `auto` says it of "auto".

    Raises:
        ValueError: the backend is unknown.
    """
    if backend not in ("auto", "reference", "triton"):
        raise ValueError(f"backend {backend!r} is not one of auto, reference, triton")
    return auto if backend == "auto" else backend == "triton"
