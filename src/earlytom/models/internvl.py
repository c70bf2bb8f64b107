"""InternVL in transformers' form: InternViT tower, pixel shuffle, frames as images."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, nn

from earlytom.errors import UnsupportedModelError
from earlytom.models.base import find_submodule
from earlytom.models.image_frames import ImageFrames


class InternVL(ImageFrames):
    """``InternVLModel`` of transformers: 32x32 patches become 16x16 tokens.

    The CLS token of a frame goes through the encoder with it and is cut off behind it: it is
    merged as its frame is, no reduction or reuse of patches touches it, and methods never see it.
    Blocks of 2x2 patches become one token in front of the projector. "Frame1: <img>" in front of a
    single tile makes it a frame.

    Raises:
        UnsupportedModelError: features of another layer than the last, or CLS among the tokens.
    """

    model_types = ("internvl",)
    checkpoints = ("OpenGVLab/InternVL3-1B-hf", "OpenGVLab/InternVL3-8B-hf")
    class_tokens = entry_class_tokens = 1
    masked_layers = False
    lead = re.compile(r"Frame(\d+): ?(?:<[^<>]*>)?\s*$")

    def __init__(self, inner: nn.Module) -> None:
        super().__init__(inner)
        config: Any = inner.config
        layer, strategy = config.vision_feature_layer, config.vision_feature_select_strategy
        if layer != -1 or strategy != "default":
            raise UnsupportedModelError(
                f"InternVL with vision_feature_layer={layer!r} and vision_feature_select_strategy="
                f"{strategy!r}; supported: -1 and 'default', as in all published checkpoints"
            )
        self.tower = find_submodule(inner, "vision_tower")
        layers = find_submodule(self.tower, "encoder.layer")
        assert isinstance(layers, nn.ModuleList)
        self.layers = layers
        self.projectors = [find_submodule(inner, "multi_modal_projector")]
        self.language_model = find_submodule(inner, "language_model")
        self.pooling = int(1 / config.downsample_ratio)
        vision = config.vision_config
        height, width = (n // p for n, p in zip(vision.image_size, vision.patch_size, strict=True))
        self.patch_grid = (height, width)
        self.grid = (height // self.pooling, width // self.pooling)
        self.patch_size = vision.patch_size[0]

    @property
    def entry(self) -> nn.Module:
        """Norm behind the last layer (or the identity)."""
        return find_submodule(self.tower, "layernorm")

    def add_mlp(self, layer: nn.Module, hidden: Tensor, output: Tensor) -> Tensor:
        """Layers scale the output of their MLP."""
        scale: Any = layer.lambda_2
        scaled: Tensor = hidden + scale * output
        return scaled

    def tiles(self, arguments: dict[str, Any]) -> dict[str, Tensor]:
        """``pixel_values`` is ``[tiles, 3, height, width]``."""
        for name, allowed in (
            ("vision_feature_layer", -1),
            ("vision_feature_select_strategy", "default"),
        ):
            if arguments.get(name) not in (None, allowed):
                raise UnsupportedModelError(
                    f"a call with {name}={arguments[name]!r}; compressed calls allow {allowed!r}"
                )
        return {"pixel_values": arguments["pixel_values"]}

    def call_arguments(self, tiles: dict[str, Tensor]) -> dict[str, Any]:
        """As they are."""
        return dict(tiles)
