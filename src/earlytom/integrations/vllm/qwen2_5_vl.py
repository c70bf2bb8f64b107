"""Qwen2.5-VL whose videos are compressed."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models.qwen2_5_vl import (
    Qwen2_5_VLDummyInputsBuilder,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLMultiModalProcessor,
    Qwen2_5_VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from earlytom.integrations.vllm.encoding import VideoRun
from earlytom.integrations.vllm.item import VideoItem
from earlytom.integrations.vllm.model import CompressedVideos, flat_positions
from earlytom.integrations.vllm.processor import CompressingProcessor, item_of
from earlytom.integrations.vllm.qwen_tower import encode_frames
from earlytom.integrations.vllm.settings import renumbered
from earlytom.models.qwen2_5_vl import Qwen25VL
from earlytom.stages import Shape

_SECONDS = "second_per_grid_ts"


class Processor(CompressingProcessor, Qwen2_5_VLMultiModalProcessor):
    """Counts the placeholders of Qwen2.5-VL."""

    def _call_hf_processor(self, hf_data: Mapping[str, Any], hf_kwargs: Mapping[str, Any]) -> Any:
        """Keep the seconds between frames exact: vLLM rounds them to the dtype of the model."""
        processor = self.info.get_hf_processor(**hf_kwargs)
        seconds: list[Any] = []

        @functools.wraps(processor.__call__)
        def call(*args: Any, **kwargs: Any) -> Any:
            output = processor(*args, **kwargs)
            seconds.append(output.get(_SECONDS))
            return output

        output = self.info.ctx.call_hf_processor(call, hf_data, hf_kwargs)
        if seconds and seconds[0] is not None:
            output[_SECONDS] = torch.as_tensor(seconds[0], dtype=torch.float32)
        return output

    def _videos(self, outputs: Mapping[str, Any]) -> list[tuple[Shape, float]]:
        grids = outputs.get("video_grid_thw")
        if grids is None or "pixel_values_videos" not in outputs:
            return []
        merge = self.info.get_hf_config().vision_config.spatial_merge_size
        shapes = [(t, (h // merge, w // merge)) for t, h, w in torch.as_tensor(grids).tolist()]
        seconds = outputs.get(_SECONDS)
        spaces = [1.0] * len(shapes) if seconds is None else torch.as_tensor(seconds).tolist()
        return list(zip(shapes, spaces, strict=True))

    def _encoder_layers(self) -> int:
        return int(self.info.get_hf_config().vision_config.depth)

    def _video_token(self) -> int:
        return int(self.info.get_hf_config().video_token_id)

    def _lead(self, item: VideoItem) -> int:
        if not item.whole and renumbered(Qwen25VL, self._method):
            return 0
        vision = self.info.get_hf_config().vision_config
        return max(0, _span(item, vision.tokens_per_second) - item.tokens)


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=Qwen2_5_VLProcessingInfo, dummy_inputs=Qwen2_5_VLDummyInputsBuilder
)
class CompressedQwen25VL(CompressedVideos, Qwen2_5_VLForConditionalGeneration):
    """vLLM's Qwen2.5-VL; images, language model and weights are as they were."""

    FAMILY = Qwen25VL

    def _adapter(self) -> tuple[Qwen25VL, int]:
        return Qwen25VL(self), len(self.visual.blocks)

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """Encode images and videos: one ``[placeholders, dim (+ channels)]`` for each."""
        items = self._items(kwargs)
        if items is None or all(item.whole for item in items):
            return super().embed_multimodal(**kwargs)
        names = ("pixel_values_videos", "video_grid_thw", _SECONDS)
        pixels, grids, _ = (kwargs.pop(name, None) for name in names)
        done = list(super().embed_multimodal(**kwargs))
        parts = pixels.split(grids.prod(-1).tolist())
        for part, grid, item in zip(parts, grids, items, strict=True):
            if item.whole:
                done += super().embed_multimodal(
                    pixel_values_videos=part, video_grid_thw=grid[None]
                )
            else:
                done.append(self._compressed(part, item))
        return done

    def _encode_frames(self, pixels: Tensor, run: VideoRun) -> Tensor:
        assert self._encoder is not None
        adapter: Any = self._encoder.adapter
        return encode_frames(self.visual, adapter, pixels, run)

    def _offsets(self, cells: Tensor, item: VideoItem) -> Tensor:
        width = item.grid[1]
        place = cells % item.size
        steps = torch.div(cells, item.size, rounding_mode="floor")
        time = _times(item, self._per_second, cells.device).index_select(0, steps)
        return torch.stack([time, torch.div(place, width, rounding_mode="floor"), place % width])

    @property
    def _per_second(self) -> float:
        return float(getattr(self.config.vision_config, "tokens_per_second", 1.0))

    def get_mrope_input_positions(
        self, input_tokens: list[int], mm_features: list[Any]
    ) -> tuple[Tensor, int]:
        """Return the positions of a prompt, and what later tokens add to theirs.

        Text behind a video goes on behind the largest position of the whole video, also where
        its last frames are gone.
        """
        if self._method is None:
            return super().get_mrope_input_positions(input_tokens, mm_features)
        features = sorted(mm_features, key=lambda f: f.mm_position.offset)
        items = [item_of(f.data) if f.modality == "video" else None for f in features]
        if self._renumbers and not all(item is None or item.whole for item in items):
            return flat_positions(len(input_tokens), [], self.AXES)
        parts: list[tuple[int, int, Tensor | None, int]] = []
        for feature, item in zip(features, items, strict=True):
            place = feature.mm_position
            if item is None or item.whole:
                own = self._own_positions(feature, item)
                parts.append((place.offset, place.length, own, int(own.max()) + 1))
            else:
                span = _span(item, self._per_second)
                parts.append((place.offset, place.length, None, span))
        return flat_positions(len(input_tokens), parts, self.AXES)

    def _own_positions(self, feature: Any, item: VideoItem | None) -> Tensor:
        """Return ``[3, tokens]`` of an image, or of a video that is not compressed."""
        _, t, height, width, interval = next(iter(self.iter_mm_grid_thw([feature])))
        steps = torch.arange(t)
        time = (steps * interval).long() if item is None else _times(item, self._per_second)
        axes = time, torch.arange(height), torch.arange(width)
        return torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)

    def get_encoder_cudagraph_config(self) -> Any:
        """Leave videos out of graphs: where they are merged depends on what they show."""
        found = super().get_encoder_cudagraph_config()
        if self._method is not None:
            found.modalities = [m for m in found.modalities if m != "video"]
        return found


def _times(item: VideoItem, per_second: float, device: torch.device | None = None) -> Tensor:
    """Return the time positions of all frames ``[T]``, rounded as transformers does."""
    interval = torch.full((), item.seconds, device=device) * per_second  # waits for no device
    return (torch.arange(item.frames, device=device) * interval).long()


def _span(item: VideoItem, per_second: float) -> int:
    """Return how many positions a whole video takes."""
    last = int(_times(item, per_second)[-1])
    return max(last, *(side - 1 for side in item.grid)) + 1
