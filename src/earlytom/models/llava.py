"""What the LLaVA families share: a chosen encoder layer, videos as one tensor of equal lengths."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from earlytom.errors import UnsupportedModelError, VideoError
from earlytom.models.base import Adapter, find_submodule

_LAYERS = ("encoder.layers", "vision_model.encoder.layers")


class Llava(Adapter):
    """A vision tower, a projector and a language model below one module.

    Args:
        inner: the module that owns them.
        tower: its attribute that encodes videos.
    """

    def __init__(self, inner: nn.Module, tower: str = "vision_tower") -> None:
        super().__init__(inner)
        self.tower = find_submodule(inner, tower)
        layers = find_submodule(self.tower, *_LAYERS)
        assert isinstance(layers, nn.ModuleList)
        self.layers = layers
        self.projectors = [find_submodule(inner, "multi_modal_projector")]
        self.language_model = find_submodule(inner, "language_model")
        vision: Any = inner.config.vision_config  # type: ignore[union-attr]
        self.patch_side = vision.image_size // vision.patch_size
        self.patch_grid = (self.patch_side, self.patch_side)
        self.patch_size = vision.patch_size

    @property
    def usable_layers(self) -> int:
        """Layers up to the one named by ``vision_feature_layer``."""
        chosen = self.inner.config.vision_feature_layer  # type: ignore[union-attr]
        if not isinstance(chosen, int):
            raise UnsupportedModelError(
                f"vision_feature_layer={chosen!r}: features of several layers cannot be merged"
            )
        return chosen if chosen >= 0 else len(self.layers) + 1 + chosen

    def frame_counts(self, arguments: dict[str, Any]) -> list[int]:
        """``pixel_values_videos`` is ``[videos, frames, 3, height, width]``."""
        pixels = arguments.get("pixel_values_videos", arguments.get("pixel_values"))
        if not isinstance(pixels, Tensor) or pixels.dim() != 5:
            shape = tuple(pixels.shape) if isinstance(pixels, Tensor) else type(pixels).__name__
            raise VideoError(
                f"pixel_values_videos must be [videos, frames, 3, height, width], got {shape}"
            )
        if pixels.shape[1] == 0:
            raise VideoError(
                "pixel_values_videos holds videos of zero frames; at least 1 is needed"
            )
        return [pixels.shape[1]] * pixels.shape[0]


def class_tokens_of(tower: nn.Module) -> int:
    """Return the class tokens in front of the patches of a CLIP tower (1), 0 for SigLIP."""
    names = [name.rpartition(".")[2] for name, _ in tower.named_parameters()]
    return int("class_embedding" in names)
