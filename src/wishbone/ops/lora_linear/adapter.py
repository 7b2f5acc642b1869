"""Low-rank adapters as functions of autograd take them: their factors one after the other, A_1 .. A_m, B_1 .. B_m."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Adapter:
    """A low-rank addition s B A to a weight.

    Attributes:
        a: [r, K], usually float32.
        b: [N, r], usually float32.
        scale: s.
    """

    a: Tensor
    b: Tensor
    scale: float = 1.0


def factors_and_scales(adapters: Sequence[Adapter | None]) -> tuple[list[Tensor | None], list[float]]:
    """Return A_1 .. A_m, B_1 .. B_m and the scales of m layers; None and 1 for a layer without adapter."""
    factors = [adapter.a if adapter else None for adapter in adapters]
    factors += [adapter.b if adapter else None for adapter in adapters]
    return factors, [adapter.scale if adapter else 1.0 for adapter in adapters]


def adapters_of(factors: Sequence[Tensor | None], scales: Sequence[float]) -> list[Adapter | None]:
    """Return the adapters that `factors_and_scales` has taken apart."""
    m = len(scales)
    return [
        None if a is None or b is None else Adapter(a, b, scale)
        for a, b, scale in zip(factors[:m], factors[m:], scales, strict=True)
    ]


def of_dtypes(
    gradients: Sequence[Tensor | None], parameters: Sequence[Tensor | None], needed: Sequence[bool]
) -> list[Tensor | None]:
    """Return the gradients that are needed, in the dtypes of their parameters."""
    return [
        gradient.to(parameter.dtype) if need and gradient is not None and parameter is not None else None
        for gradient, parameter, need in zip(gradients, parameters, needed, strict=True)
    ]
