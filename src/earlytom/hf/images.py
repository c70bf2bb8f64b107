"""Selecting tokens of images: stage II alone, for every image on its own.

An image is a video of one frame to the method. Nothing is merged in the encoder; its signals are
measured as for videos. Rows that must not reach the language model are NaN, as those of videos.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from earlytom.errors import ConfigError, UnsupportedModelError
from earlytom.hf.chunks import lead
from earlytom.hf.vision import VideoCall, VisionSide
from earlytom.models.images import ImageLayout, Packer
from earlytom.ops.tensors import to_device
from earlytom.running import select_video
from earlytom.stages import TokenSelection, VideoState

Signals = dict[str, Tensor]
_PATCHES = ("received", "probe", "keys")


class ImageTokens:
    """Runs stage II of the method of ``vision`` on images.

    Raises:
        ConfigError: the method has no token stage of an exact count.
        UnsupportedModelError: the family's images, or the signals of this method, are out of reach.
    """

    def __init__(self, vision: VisionSide, done: Callable[[], None]) -> None:
        self.vision, self.adapter, self.method = vision, vision.adapter, vision.method
        self.counts: list[tuple[int, int]] = []  # tokens of the images of the last call, and left
        self._done = done
        self._packer: Packer | None = None
        self._check()

    def _check(self) -> None:
        name, kind = self.method.name, type(self.adapter.inner).__name__
        if not self.method.selects_tokens or not self.method.exact_budget:
            raise ConfigError(
                f"images=True needs a token stage that keeps an exact count, which {name} with "
                "these settings does not have"
            )
        if self.adapter.no_images is not None:
            raise UnsupportedModelError(f"images=True with {kind}: {self.adapter.no_images}")
        signals = self.vision.score_layer is not None or self.method.needs_head()
        if signals and self.adapter.no_image_signals is not None:
            raise UnsupportedModelError(
                f"images=True with {kind}: {name} needs signals of the encoder, and "
                f"{self.adapter.no_image_signals}"
            )

    # ------------------------------------------------------------------ on and off
    def install(self, handles: list[Any]) -> None:
        """Put the hooks on and add their handles to ``handles``."""
        hook = self._before_tower
        handles.append(self.adapter.tower.register_forward_pre_hook(hook, with_kwargs=True))
        if self.adapter.packer_name is not None:
            inner, name = self.adapter.inner, self.adapter.packer_name
            self._packer = Packer(inner, name, self._watching)

    def _watching(self) -> bool:
        return self.vision.call is not None and self.vision.call.images

    def remove(self) -> None:
        """Take off what is not a hook."""
        if self._packer is not None:
            self._packer.remove()
            self._packer = None

    def _before_tower(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        call = self.vision.call
        if call is not None and call.images and not call.videos:
            rows = len(lead(args, kwargs))
            call.videos = [VideoState.start(rows, self.adapter.usable_layers)]

    # ------------------------------------------------------------------ calls
    def run(self, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Stand in for the model's own ``get_image_features``."""
        if self.vision.call is not None:  # Qwen3-VL encodes videos by this method, too
            return original(*args, **kwargs)
        arguments = inspect.signature(original).bind(*args, **kwargs).arguments
        output, videos = self._encode(functools.partial(original, *args, **kwargs), arguments)
        listed = isinstance(output, tuple | list)
        pooled = output if listed else output.pooler_output
        rows = list(pooled)  # one entry, or row of a tensor, for every image
        layouts, signals = self._layouts(rows, videos)
        chosen = self._select(rows, layouts, signals)
        together = torch.stack(chosen) if isinstance(pooled, Tensor) else type(pooled)(chosen)
        if listed:
            return together
        output.pooler_output = together
        return output

    def run_tiles(self, encode: Callable[[], Any], tiles: Sequence[int]) -> Any:
        """Encode images that are ``tiles`` each, for a family that joins nothing.

        Args:
            encode: returns the features of all tiles, in order.
            tiles: of every image.
        """
        adapter: Any = self.adapter  # of ImageFrames
        counts = list(tiles)
        output, videos = self._encode(encode, {})
        high, wide = adapter.grid
        layouts = [ImageLayout.plain((n * high, wide)) for n in counts]
        rows = [x.flatten(0, 1) for x in adapter.flat(output).split(counts)]
        pooled = {k: adapter.pool(x) for k, x in _patches(videos).items()}
        signals = [{k: x.split(counts)[i].flatten(0, 1) for k, x in pooled.items()}
                   for i in range(len(counts))]  # fmt: skip
        chosen = self._select(rows, layouts, signals)
        whole = torch.cat(chosen).unflatten(0, (-1, adapter.tokens_per_frame))
        return adapter.put_flat(output, whole)

    def _encode(
        self, encode: Callable[[], Any], arguments: dict[str, Any]
    ) -> tuple[Any, list[VideoState]]:
        vision, adapter = self.vision, self.adapter
        videos = []
        if adapter.packed:
            grids = {"video_grid_thw": arguments.get("image_grid_thw")}
            videos = [
                VideoState.start(t, adapter.usable_layers, grid)
                for t, grid in adapter.video_shapes(grids)
            ]
        call = VideoCall(videos, len(vision.points), arguments=arguments, images=True)
        vision.call = call
        try:
            return encode(), call.videos
        finally:
            vision.call = None
            vision.chunks.reset()

    def _layouts(
        self, rows: list[Tensor], videos: list[VideoState]
    ) -> tuple[list[ImageLayout], list[Signals]]:
        """Return per image where its tokens are, and the signals ``[tokens, ...]`` of these."""
        adapter = self.adapter
        if adapter.packed:
            layouts, signals = [], []
            for state in videos:
                assert state.grid is not None
                high, wide = state.grid
                layouts.append(ImageLayout.plain((state.n_input * high, wide)))
                found = _patches([state]).items()
                signals.append(
                    {k: adapter.pool_video(x, state.grid).flatten(0, 1) for k, x in found}
                )
            return layouts, signals
        if self._packer is None:
            grid = adapter.grid
            fits = [grid if grid[0] * grid[1] == len(x) else (1, len(x)) for x in rows]
            return [ImageLayout.plain(g) for g in fits], [{} for _ in rows]
        packer, patches = self._packer, _patches(videos)
        signals = [{} for _ in rows]
        for name, values in patches.items():
            parts = packer.joined(values.split(packer.crops))
            for mine, part in zip(signals, parts, strict=True):
                mine[name] = part
        vectors = videos[0].vectors if videos else None
        if vectors is not None:
            for mine, part in zip(signals, vectors.split(packer.crops), strict=True):
                mine["vectors"] = part[:1]  # of the whole picture
        return packer.layouts(adapter.patch_grid), signals

    # ------------------------------------------------------------------ selection
    def _select(
        self, images: list[Tensor], layouts: list[ImageLayout], signals: list[Signals]
    ) -> list[Tensor]:
        self.counts, done = [], []
        for rows, layout, found in zip(images, layouts, signals, strict=True):
            index = layout.tokens.to(rows.device)
            tokens = rows.index_select(0, index) if layout.lines else rows
            state = VideoState.start(1, self.adapter.usable_layers, layout.grid)
            for name, signal in found.items():
                value = signal.to(rows.device)
                if name in ("received", "probe"):
                    value = value[..., 0]
                setattr(state, name, value if name == "vectors" else value[None])
            chosen, _ = select_video(self.method, tokens[None], state, lambda x: x)
            wanted = self.method.token_budget(1, len(tokens))
            kept = len(tokens) if chosen is None else chosen.index.numel()
            if kept != min(wanted, len(tokens)):
                raise ConfigError(
                    f"{self.method.name} keeps {kept} of the {len(tokens)} tokens of an image "
                    f"where {wanted} were asked for; it cannot select tokens of images"
                )
            self.counts.append((len(tokens), kept))
            done.append(rows if chosen is None else _written(rows, tokens, layout, chosen))
        self._done()
        return done


def _patches(videos: list[VideoState]) -> Signals:
    """Return the signals ``[frames, patches, dim]`` that were measured."""
    found = {}
    for name in _PATCHES:
        parts = [getattr(v, name) for v in videos]
        if parts and parts[0] is not None:
            whole = parts[0] if len(parts) == 1 else torch.cat(parts)
            found[name] = whole if name == "keys" else whole.unsqueeze(-1)
    return found


def _written(rows: Tensor, tokens: Tensor, layout: ImageLayout, chosen: TokenSelection) -> Tensor:
    """Return the rows of an image with NaN for all that is not to reach the language model."""
    index = chosen.index.to(rows.device)
    values = tokens.index_select(0, index)
    if chosen.features is not None:
        values = chosen.features.to(rows.dtype)
    out = torch.full_like(rows, float("nan"))
    out.index_copy_(0, layout.tokens.to(rows.device)[index], values)
    if layout.lines:
        kept = torch.zeros(len(tokens), dtype=torch.bool)
        kept[chosen.index.cpu()] = True
        stay = to_device(layout.newlines(kept), rows.device)
        out.index_copy_(0, stay, rows.index_select(0, stay))
    return out
