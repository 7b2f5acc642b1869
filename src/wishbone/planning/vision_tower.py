"""What a vision tower adds to a plan, from a model's config.json alone: tokens of an image, weights, activations.

A tower is a transformer over patches. An image has k patches for each token that the language model reads of it, so in
a row the tower runs over several times as many patches as there are tokens of images. With h elements a patch, inner
size m of its MLPs (3 matrices where they are gated, else 2) and L layers:

    weights        L (4 h^2 + 2 h m or 3 h m), and projections of h or k h elements to those of a token
    forward pass   one layer at a time, 6 h + 2 m elements a patch
    backward pass  of a trained tower: inputs of L layers, h elements each, and 10 h + 4 m of the one that is recomputed
    operations     of a forward pass: two a weight and patch, and 4 h for each patch that a patch attends to

Norms, biases and embeddings of positions are below a hundredth of that and are not counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wishbone.planning.memory import EIGHT_BITS, NF4_BYTES, STATE_ELEMENTS, MemoryPlan

GATED = frozenset({"qwen2_5_vl", "pixtral", "mistral3"})
"""Model types of towers whose MLPs have three matrices."""
ESTIMATED_TOKENS = 1000
"""Of an image whose tokens follow from its size: what Qwen's processors write for 900 x 900 pixels."""


@dataclass(frozen=True)
class Tower:
    """Sizes of a tower.

    Attributes:
        hidden, inner, layers: of its transformer.
        gated: whether its MLPs have three matrices.
        projections: inputs and outputs of the linear layers behind it.
        patches_a_token: patches for each token that the language model reads.
        tokens: tokens an image, where all images have equally many; None where they follow from its size.
        attending: layers in which a patch attends to all patches of its image; None: all. In the others windows are
            small enough to be left out.
    """

    hidden: int
    inner: int
    layers: int
    gated: bool
    projections: tuple[tuple[int, int], ...]
    patches_a_token: float
    tokens: int | None = None
    attending: int | None = None

    @property
    def tokens_an_image(self) -> int:
        """Tokens of an image, by estimate where they follow from its size."""
        return self.tokens or ESTIMATED_TOKENS

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """Inputs and outputs of all its linear layers."""
        layer = [(self.hidden, self.hidden)] * 4 + [(self.hidden, self.inner)] * (3 if self.gated else 2)
        return [*layer * self.layers, *self.projections]

    def forward_flop(self, image_tokens: float) -> float:
        """Return the operations of one forward pass over images of so many tokens together."""
        patches, of_image = (self.patches_a_token * tokens for tokens in (image_tokens, self.tokens_an_image))
        behind = sum(inputs * outputs for inputs, outputs in self.projections)
        layers = sum(inputs * outputs for inputs, outputs in self.matrices) - behind
        attending = self.layers if self.attending is None else self.attending
        return 2 * (layers * patches + behind * image_tokens) + 4 * self.hidden * attending * patches * of_image

    def bytes(self, plan: MemoryPlan, image_tokens: float, *, learns: bool) -> float:
        """Return what it takes in a run beside a row with so many tokens of images.

        Args:
            plan: of the run.
            image_tokens: of the row.
            learns: whether it is trained, or has adapters.
        """
        b, parameters = plan.element_bytes, sum(inputs * outputs for inputs, outputs in self.matrices)
        weights = {"nf4": NF4_BYTES} | dict.fromkeys(EIGHT_BITS, 1.0)
        frozen = weights.get(plan.weights, b) * parameters
        trained, each = float(parameters), b
        if plan.method == "lora":
            trained, each = plan.rank * sum(map(sum, self.matrices)), plan.adapter_bytes
        state = (plan.method == "lora") + 1 + STATE_ELEMENTS[plan.optimizer]
        patch = b * (6 * self.hidden + 2 * self.inner)
        if learns:
            patch = b * (self.layers * self.hidden + 10 * self.hidden + 4 * self.inner)
        copies = 2 if plan.reference == "separate" else 1
        learned = trained * each * state if learns else 0.0
        return copies * frozen + learned + image_tokens * self.patches_a_token * patch


def read_tower(config: Mapping[str, Any]) -> Tower | None:
    """Return the tower that a config.json describes, or None: it describes none, or not in words known here."""
    vision, text = config.get("vision_config"), config.get("text_config")
    if not isinstance(vision, Mapping) or not isinstance(text, Mapping):
        return None

    def size(*names: str, of: Mapping[str, Any] = vision) -> int:
        """The first of these that is a whole number, or the first of a list of them; 0 without any."""
        for name in names:
            found = of.get(name)
            found = found[0] if isinstance(found, list) and found else found
            if isinstance(found, int) and not isinstance(found, bool) and found > 0:
                return found
        return 0

    kind = str(config.get("model_type"))
    hidden, layers = size("embed_dim", "hidden_size"), size("num_hidden_layers", "depth")
    ratio = vision.get("mlp_ratio")
    inner = size("intermediate_size") or round(hidden * ratio if isinstance(ratio, int | float) else 0)
    side, patch, out = size("image_size"), size("patch_size"), size("hidden_size", of=text)
    if not (hidden and layers and inner and out):
        return None
    whole = (side // patch) ** 2 if side and patch else 0
    tokens = size("mm_tokens_per_image", of=config) or (whole if kind == "llava" else 0)
    merged = size("spatial_merge_size") or size("spatial_merge_size", of=config)
    a_token = whole / tokens if tokens and whole else float(merged**2 or size("scale_factor", of=config) ** 2 or 1)
    gated = str(vision.get("model_type")) in GATED or kind in GATED
    joined = hidden * merged**2
    projections = [(hidden, out), (out, out)]
    if merged:
        projections = [(joined, joined), (joined, out)] * (1 + len(vision.get("deepstack_visual_indexes") or ()))
    elif scaled := size("scale_factor", of=config):
        projections = [(hidden * scaled**2, out)]
    whole_view = vision.get("fullatt_block_indexes")
    attending = len(whole_view) if isinstance(whole_view, list) else None
    return Tower(hidden, inner, layers, gated, tuple(projections), a_token, tokens or None, attending)
