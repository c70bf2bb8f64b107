"""What the engine needs to know about a model family."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from earlytom.errors import ConfigError, UnsupportedModelError


class Adapter:
    """One live model of one family, seen through the names that the engine uses.

    A family is one subclass. The default methods suit encoders that take every frame as a row of
    the batch (SigLIP and CLIP towers).

    Attributes:
        inner: the module that owns ``get_video_features`` and the language model.
        tower: the vision encoder.
        layers: its layers, in order.
        projectors: modules behind the encoder that run on whole frames; behind them every video
            must have its original number of frames again.
        language_model: the decoder, called with keyword arguments.
        grid: (height, width) of the tokens of a frame after pooling.
        patch_grid: (height, width) of the patches of a frame inside the encoder, or None where
            patches cannot be reduced (a layer must be attention, second norm, MLP).
        patch_size: pixels along a side of a patch.
    """

    model_types: ClassVar[tuple[str, ...]] = ()

    inner: nn.Module
    tower: nn.Module
    layers: nn.ModuleList
    projectors: list[nn.Module]
    language_model: nn.Module
    grid: tuple[int, int]
    patch_grid: tuple[int, int] | None = None
    patch_size: int = 0

    def __init__(self, inner: nn.Module) -> None:
        self.inner = inner

    # ------------------------------------------------------------------ structure
    @property
    def usable_layers(self) -> int:
        """Number of encoder layers whose output reaches the projector."""
        return len(self.layers)

    def check_encoder_layers(self, layers: Iterable[int]) -> None:
        """Raise ConfigError unless all ``layers`` are among the usable ones."""
        for layer in layers:
            if not 0 <= layer < self.usable_layers:
                raise ConfigError(
                    f"encoder layer {layer} is out of range; "
                    f"this model uses layers 0..{self.usable_layers - 1}"
                )

    def check_patches(self, what: str) -> None:
        """Raise UnsupportedModelError if single patches of a frame cannot be left out.

        Args:
            what: who wants that, e.g. ``"tome reduces patches"``.
        """
        if self.patch_grid is None:
            raise UnsupportedModelError(
                f"{what} inside the vision encoder, which is not possible in "
                f"{type(self.inner).__name__}"
            )

    @property
    def tokens_per_frame(self) -> int:
        """Tokens of one frame after pooling."""
        return self.grid[0] * self.grid[1]

    @property
    def decoder_layers(self) -> nn.ModuleList:
        """Layers of the language model."""
        layers = self.language_model.layers
        assert isinstance(layers, nn.ModuleList)
        return layers

    @property
    def video_token_id(self) -> int:
        """Id of the video placeholder token."""
        return int(self.inner.config.video_token_id)  # type: ignore[union-attr,arg-type]

    def attention(self, layer: nn.Module) -> nn.Module:
        """Return the attention module of an encoder or decoder layer."""
        for name in ("self_attn", "attn", "attention"):
            module = getattr(layer, name, None)
            if isinstance(module, nn.Module):
                return module
        raise UnsupportedModelError(f"{type(layer).__name__} has no attention module known here")

    @property
    def pooling_head(self) -> nn.Module | None:
        """Attention-pooling head of the encoder (``probe`` and ``attention``), None without one."""
        for path in ("head", "vision_model.head"):
            try:
                head = self.tower.get_submodule(path)
            except AttributeError:
                continue
            if isinstance(getattr(head, "attention", None), nn.MultiheadAttention):
                return head
        return None

    def second_norm(self, layer: nn.Module) -> nn.Module:
        """Return the norm between attention and MLP of an encoder layer."""
        return find_submodule(layer, "layer_norm2", "norm2")

    def mlp(self, layer: nn.Module) -> nn.Module:
        """Return the MLP of an encoder layer."""
        return find_submodule(layer, "mlp")

    def embeddings(self) -> nn.Module:
        """Return the patch embeddings, called with pixels ``[frames, 3, height, width]``."""
        return find_submodule(self.tower, "embeddings", "vision_model.embeddings")

    # ------------------------------------------------------------------ data
    def frame_counts(self, arguments: dict[str, Any]) -> list[int]:
        """Return the frames of every video from the arguments of ``get_video_features``."""
        raise NotImplementedError

    def split_frames(self, hidden: Tensor, frames: list[int]) -> list[Tensor]:
        """Split encoder states into ``[frames, patches, dim]`` per video."""
        return list(hidden.split(frames))

    def join_frames(self, videos: list[Tensor]) -> Tensor:
        """Undo :meth:`split_frames`."""
        return torch.cat(videos)

    def pool(self, x: Tensor) -> Tensor:
        """Pool ``[frames, patches, dim]`` to ``[frames, tokens, dim]`` as the model does."""
        return x

    def placeholder_count(self, frames: list[int]) -> int:
        """Placeholder tokens that a prompt with videos of so many frames must hold."""
        raise NotImplementedError

    def take_tokens(self, rows: Tensor, n_frames: int) -> Tensor:
        """Return the visual tokens ``[frames, tokens, dim]`` among the rows of one video."""
        total = n_frames * self.tokens_per_frame
        return rows[:total].unflatten(0, (n_frames, self.tokens_per_frame))

    def put_tokens(self, rows: Tensor, tokens: Tensor, kept: Tensor) -> Tensor:
        """Undo :meth:`take_tokens`; rows of other tokens (newlines) stay or become NaN.

        Args:
            rows: ``[rows, dim]`` of one video.
            tokens: ``[frames, tokens, dim]``, NaN where a token was dropped.
            kept: ``[frames, tokens]`` bool.
        """
        return torch.cat([tokens.flatten(0, 1), rows[kept.numel() :]])

    def read_features(self, output: Any, frames: list[int]) -> list[Tensor]:
        """Return per video the rows ``[frames * tokens + extra, dim]`` that will be scattered."""
        raise NotImplementedError

    def write_features(self, output: Any, videos: list[Tensor]) -> Any:
        """Return ``output`` with its rows replaced (same row counts)."""
        raise NotImplementedError


def find_submodule(root: nn.Module, *paths: str) -> nn.Module:
    """Return the first of ``paths`` that exists below ``root``.

    Raises:
        UnsupportedModelError: none exists.
    """
    for path in paths:
        try:
            return root.get_submodule(path)
        except AttributeError:
            continue
    raise UnsupportedModelError(f"{type(root).__name__} has none of: {', '.join(paths)}")
