r"""Rotary position embedding, written as the equation.

With (x1, x2) the elements of a pair and cos, sin of a token's angles at the same places,

    y1 = x1 cos1 - x2 sin1,        y2 = x2 cos2 + x1 sin2

Su et al. 2021, "RoFormer" (arXiv:2104.09864), equation 34. Which elements are pairs is the model family's choice
(`pairs.py`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from wishbone.ops.rotary.pairs import Form, Placement, placements, turned_elements


def rotary_reference(
    query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, *, form: Form = "halves"
) -> tuple[Tensor, Tensor]:
    """Return query and key, turned; as `rotary`, computed in float32 or better and rounded once."""
    return _turned(query, cos, sin, form), _turned(key, cos, sin, form)


def _turned(x: Tensor, cos: Tensor, sin: Tensor, form: Form) -> Tensor:
    precise = torch.promote_types(x.dtype, torch.float32)
    turned = turned_elements(form, cos.shape[-1])
    inputs, outputs, angles = placements(form, turned)
    x1, x2 = _pairs(x[..., :turned].to(precise), inputs)
    cos1, cos2 = _pairs(cos[:, None].to(precise), angles)
    sin1, sin2 = _pairs(sin[:, None].to(precise), angles)
    y1, y2 = x1 * cos1 - x2 * sin1, x2 * cos2 + x1 * sin2
    y = torch.cat((y1, y2), dim=-1) if outputs.step == 1 else torch.stack((y1, y2), dim=-1).flatten(-2)
    return torch.cat((y.to(x.dtype), x[..., turned:]), dim=-1).transpose(1, 2).contiguous().transpose(1, 2)


def _pairs(x: Tensor, placement: Placement) -> tuple[Tensor, Tensor]:
    """The first and the second elements of the pairs in the last dimension."""
    if placement.gap == 0:
        return x, x
    if placement.step == 2:
        return x[..., ::2], x[..., 1::2]
    first, second = x.chunk(2, dim=-1)
    return first, second
