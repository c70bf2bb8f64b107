"""SmolVLM2 (and SmolVLM in transformers' ``smolvlm`` form): SigLIP tower, frames as images."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from earlytom.errors import UnsupportedModelError
from earlytom.models.base import find_submodule
from earlytom.models.image_frames import ImageFrames


class SmolVLM(ImageFrames):
    """``SmolVLMModel`` of transformers: blocks of patches (3x3 or 4x4) become one token.

    "Frame from 00:01:" in front of an image makes it a frame; a video goes on as long as nothing
    else stands between its frames. Position embeddings come from a mask of patches, so that frames
    cannot be encoded at a lower resolution.
    """

    model_types = ("smolvlm",)
    checkpoints = (
        "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
        "HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
    )
    language_name = "text_model"
    resizable = False
    no_images = "tiles of an image stand apart in the prompt, so its tokens cannot be counted"
    lead = re.compile(r"Frame from \d+:\d+:\s*(?:<[^<>]*>)*\s*$")

    def __init__(self, inner: nn.Module) -> None:
        super().__init__(inner)
        config: Any = inner.config
        self.tower = find_submodule(inner, "vision_model")
        layers = find_submodule(self.tower, "encoder.layers")
        assert isinstance(layers, nn.ModuleList)
        self.layers = layers
        self.projectors = [find_submodule(inner, "connector")]
        self.language_model = find_submodule(inner, "text_model")
        self.pooling = int(config.scale_factor)
        side = config.vision_config.image_size // config.vision_config.patch_size
        self.patch_grid = (side, side)
        self.grid = (side // self.pooling, side // self.pooling)
        self.patch_size = config.vision_config.patch_size

    @property
    def entry(self) -> nn.Module:
        """Norm behind the last layer."""
        return find_submodule(self.tower, "post_layernorm")

    def tiles(self, arguments: dict[str, Any]) -> dict[str, Tensor]:
        """``pixel_values`` is ``[batch, images, 3, height, width]``, 0 where there is no image."""
        names = ("pixel_values", "pixel_attention_mask")
        rows = {k: arguments[k].flatten(0, 1) for k in names if arguments.get(k) is not None}
        real = _real(arguments).flatten()
        return rows if bool(real.all()) else {k: v[real] for k, v in rows.items()}

    def call_arguments(self, tiles: dict[str, Tensor]) -> dict[str, Any]:
        """One sequence with all of them."""
        return {name: rows[None] for name, rows in tiles.items()}

    def numbers(self, rows: Tensor, arguments: dict[str, Any]) -> list[Tensor]:
        """One entry for every sequence of the batch."""
        counts = _real(arguments).sum(1).tolist()
        return [part.flatten(0, 1) for part in rows.split(counts)]

    def check_frames(self, tiles: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return frames without their mask of pixels, which may hide nothing."""
        mask = tiles.get("pixel_attention_mask")
        if mask is not None and not bool(torch.all(mask)):
            raise UnsupportedModelError(
                "frames with padding (pixel_attention_mask); the official processor resizes frames "
                "to squares without any"
            )
        return {"pixel_values": tiles["pixel_values"]}


def _real(arguments: dict[str, Any]) -> Tensor:
    """Return ``[batch, images]`` bool, False for padding; of nothing else one is taken."""
    real: Tensor = arguments["pixel_values"].flatten(2).any(2)
    real[0, 0] |= ~real.any()
    return real
