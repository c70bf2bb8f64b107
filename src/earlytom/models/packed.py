"""Vision towers that take the patches of all frames as rows of one matrix (Qwen-VL families).

A *frame* of the engine is one step of the temporal grid: two pictures of the video. Its patches lie
side by side, neighbours of a merge window (2x2) first; attention segments never straddle frames, so
everything that a layer gets besides its states repeats from frame to frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from earlytom.errors import VideoError
from earlytom.models.base import Adapter, find_submodule
from earlytom.ops.tensors import to_device
from earlytom.stages import Grid, Shape, VideoState


class PackedTower(Adapter):
    """A model with ``visual`` (``blocks``, ``merger``) and three-dimensional rotary positions.

    Token grids differ from video to video: they follow from ``video_grid_thw``.
    """

    packed = True
    position_axes = 3

    def __init__(self, inner: nn.Module) -> None:
        super().__init__(inner)
        self.tower = find_submodule(inner, "visual")
        layers = find_submodule(self.tower, "blocks")
        assert isinstance(layers, nn.ModuleList)
        self.layers = layers
        self.projectors = [find_submodule(self.tower, "merger")]
        self.language_model = find_submodule(inner, "language_model")
        vision: Any = inner.config.vision_config  # type: ignore[union-attr]
        self.patch_size = int(vision.patch_size)
        self.merge = int(vision.spatial_merge_size)

    def embeddings(self) -> nn.Module:
        """Return the patch embeddings, called with patches ``[rows, values]``."""
        return find_submodule(self.tower, "patch_embed")

    # ------------------------------------------------------------------ geometry
    def frame_counts(self, arguments: dict[str, Any]) -> list[int]:
        """Steps of the temporal grid of every video.

        Raises:
            VideoError: ``video_grid_thw`` is missing or does not fit the pixels.
        """
        return [t for t, _ in self.video_shapes(arguments)]

    def video_shapes(self, arguments: dict[str, Any]) -> list[Shape]:
        """Steps of the temporal grid, and token grids behind the merger.

        Raises:
            VideoError: see :meth:`frame_counts`.
        """
        given = arguments.get("video_grid_thw")
        if given is None:
            raise VideoError("video_grid_thw is missing; pass what the processor returns")
        shapes = [(int(t), int(h), int(w)) for t, h, w in torch.as_tensor(given).tolist()]
        pixels = arguments.get("pixel_values_videos", arguments.get("pixel_values"))
        needed = sum(t * h * w for t, h, w in shapes)
        if isinstance(pixels, Tensor) and pixels.shape[0] != needed:
            raise VideoError(
                f"pixel_values_videos holds {pixels.shape[0]} patches, but video_grid_thw says "
                f"{needed}"
            )
        if any(t < 1 for t, _, _ in shapes):
            raise VideoError("video_grid_thw names a video of zero frames; at least 1 is needed")
        return [(t, (h // self.merge, w // self.merge)) for t, h, w in shapes]

    def frame_patches(self, grid: Grid | None) -> int:
        """As many patches for every token."""
        assert grid is not None
        return grid[0] * grid[1] * self.merge**2

    def segments(self, grid: Grid, layer: int) -> list[int]:
        """Patches of every attention segment of one frame in ``layer``, in order."""
        return [self.frame_patches(grid)]

    def token_order(self, grid: Grid) -> Tensor | None:
        """Place of every token (raster order) inside the encoder, ``[tokens]``; None: its own."""
        return None

    # ------------------------------------------------------------------ encoder states
    def encoder_rows(self, videos: Sequence[VideoState]) -> int:
        """One row per patch."""
        return sum(v.n_frames * self.frame_patches(v.grid) for v in videos)

    def split_videos(self, hidden: Tensor, videos: Sequence[VideoState]) -> list[Tensor]:
        """Cut ``[rows, ...]`` into ``[frames, patches, ...]``."""
        return _split(hidden, [(v.n_frames, self.frame_patches(v.grid)) for v in videos])

    def join_frames(self, videos: list[Tensor]) -> Tensor:
        """Undo :meth:`split_videos`."""
        return videos[0].flatten(0, 1) if len(videos) == 1 else torch.cat(_flat(videos))

    def split_projected(self, output: Tensor, videos: Sequence[VideoState]) -> list[Tensor]:
        """Cut the rows of the merger into ``[frames, tokens, dim]``."""
        return _split(output, [(v.n_frames, v.tokens_per_frame) for v in videos])

    def segment_frames(self, layer: int, videos: Sequence[VideoState]) -> list[int]:
        """Patches of a frame, once per segment."""
        found: list[int] = []
        for v in videos:
            assert v.grid is not None
            found += [self.frame_patches(v.grid)] * (len(self.segments(v.grid, layer)) * v.n_frames)
        return found

    def layer_inputs(
        self, layer: int, kwargs: dict[str, Any], videos: Sequence[VideoState]
    ) -> dict[str, Any]:
        """Cut segments and rotary embeddings, which repeat per frame, to the frames present."""
        lengths: list[int] = []
        for v in videos:
            assert v.grid is not None
            lengths += self.segments(v.grid, layer) * v.n_frames
        given: Tensor = kwargs["cu_seqlens"]
        ends = to_device([0, *accumulate(lengths)], given.device, given.dtype)
        rope = kwargs.get("position_embeddings")
        if rope is not None:
            rope = tuple(self._cut(x, videos) for x in rope)
        return {**kwargs, "cu_seqlens": ends, "position_embeddings": rope}

    def _cut(self, x: Tensor, videos: Sequence[VideoState]) -> Tensor:
        """Leave ``[rows of all input frames, dim]`` the rows of as many frames as are present."""
        parts = _split(x, [(v.n_input, self.frame_patches(v.grid)) for v in videos])
        left = [p[: v.n_frames].flatten(0, 1) for p, v in zip(parts, videos, strict=True)]
        return left[0] if len(left) == 1 else torch.cat(left)

    def pool_video(self, x: Tensor, grid: Grid | None) -> Tensor:
        """Average the patches of every token, and put the tokens into raster order."""
        assert grid is not None
        pooled = x.unflatten(1, (-1, self.merge**2)).mean(2)
        order = self.token_order(grid)
        return pooled if order is None else pooled.index_select(1, to_device(order, x.device))

    def flat_rope(self, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Older transformers join the axes ``[3, batch, L, head dim]`` inside every layer."""
        if rope[0].dim() == 3:
            return rope
        config: Any = self.language_model.config
        sections = list(config.rope_parameters["mrope_section"]) * 2
        cos, sin = (
            torch.cat([m[i % 3] for i, m in enumerate(x.split(sections, -1))], -1) for x in rope
        )
        return cos, sin

    # ------------------------------------------------------------------ tokens
    def video_placeholders(self, frames: int, grid: Grid | None) -> int:
        """One placeholder per token."""
        assert grid is not None
        return frames * grid[0] * grid[1]

    def take_tokens(self, rows: Tensor, n_frames: int) -> Tensor:
        """All rows are tokens."""
        return rows.unflatten(0, (n_frames, -1))

    def read_features(self, output: Any, frames: list[int]) -> list[Tensor]:
        """``pooler_output`` holds one ``[frames * tokens, dim]`` per video."""
        return list(output if isinstance(output, tuple | list) else output.pooler_output)

    def write_features(self, output: Any, videos: list[Tensor]) -> Any:
        """Put the rows back into the container that came in."""
        if isinstance(output, tuple | list):
            return type(output)(videos)
        output.pooler_output = tuple(videos)
        return output


def _split(rows: Tensor, shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
    parts = rows.split([frames * n for frames, n in shapes])
    return [x.unflatten(0, shape) for x, shape in zip(parts, shapes, strict=True)]


def _flat(videos: list[Tensor]) -> list[Tensor]:
    return [x.flatten(0, 1) for x in videos]
