r"""Rotary position embedding, written as the equation.

With (x1, x2) the halves of the turned part of a head and cos, sin of a token's angles in the same halves,

    y1 = x1 cos1 - x2 sin1,        y2 = x2 cos2 + x1 sin2

Su et al. 2021, "RoFormer" (arXiv:2104.09864), equation 34, with the pairs of coordinates (i, i + turned / 2).
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_reference(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Return query and key, turned; as `rotary`, computed in float32 or better and rounded once."""
    return _turned(query, cos, sin), _turned(key, cos, sin)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    precise = torch.promote_types(x.dtype, torch.float32)
    turned = cos.shape[-1]
    part = x[..., :turned].to(precise)
    first, second = part.chunk(2, dim=-1)
    rotated = part * cos[:, None].to(precise) + torch.cat((-second, first), dim=-1) * sin[:, None].to(precise)
    return torch.cat((rotated.to(x.dtype), x[..., turned:]), dim=-1).transpose(1, 2).contiguous().transpose(1, 2)
