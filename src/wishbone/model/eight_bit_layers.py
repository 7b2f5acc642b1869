"""Which layers of a 16-bit model are put into 8 bits: the linear layers of its backbone.

Embeddings, output head, norms and the routers of experts stay in 16 bits, and so do layers whose sizes are not
multiples of 16, which 8-bit hardware cannot multiply. Stacked experts are in 8 bits as well (`quantized_experts.py`).
"""

from __future__ import annotations

import logging

from torch import nn
from transformers import PreTrainedModel

from wishbone.errors import RequestError, some_of
from wishbone.model.quantized_experts import is_stack
from wishbone.ops.frozen_linear.scaled_product import MULTIPLE

ROUTERS = frozenset({"gate", "router", "shared_expert_gate"})

logger = logging.getLogger(__name__)


def layers_for_8_bits(model: PreTrainedModel, form: str) -> list[str]:
    """Return the names of the linear layers to put into 8 bits.

    Args:
        model: as yet without weights.
        form: what messages call the 8 bits.

    Raises:
        RequestError: there are none.
    """
    head = model.get_output_embeddings()
    whole = tuple(model._keep_in_fp32_modules or ()) + tuple(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    names: list[str] = []
    odd: list[str] = []
    for name, module in model.named_modules():
        if type(module) is not nn.Linear or module is head:
            continue
        parts = name.split(".")
        if parts[-1] in ROUTERS or not {*parts}.isdisjoint(whole):
            continue
        fits = module.in_features % MULTIPLE == 0 and module.out_features % MULTIPLE == 0
        (names if fits else odd).append(name)
    if not names:
        raise RequestError(
            f"this {model.config.model_type} model has no linear layer that can be in {form} (their sizes must be "
            f"multiples of {MULTIPLE}); load it in 16 bits"
        )
    if odd:
        logger.warning(
            "%d linear layers stay in 16 bits, because their sizes are not multiples of %d: %s.",
            len(odd),
            MULTIPLE,
            some_of(odd),
        )
    experts = [name for name, parameter in model.named_parameters() if parameter.dim() == 3 and "expert" in name]
    if not all(is_stack(model, name) for name in experts):
        logger.warning("Experts whose stacked weights transformers does not describe stay in 16 bits.")
    return names
