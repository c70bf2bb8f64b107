"""LLaVA-OneVision whose videos are compressed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models.interfaces import SupportsMRoPE
from vllm.model_executor.models.llava_onevision import (
    LlavaOnevisionDummyInputsBuilder,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionMultiModalProcessor,
    LlavaOnevisionProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from earlytom.hf.context import span_of, squeezed, video_room
from earlytom.integrations.vllm.encoding import Encoded, VideoRun
from earlytom.integrations.vllm.families import token_grid, usable_layers
from earlytom.integrations.vllm.item import VideoItem
from earlytom.integrations.vllm.model import CompressedVideos, flat_positions
from earlytom.integrations.vllm.processor import CompressingProcessor, item_of
from earlytom.integrations.vllm.settings import renumbered
from earlytom.integrations.vllm.siglip import encode_frames
from earlytom.models.llava_onevision import LlavaOnevision
from earlytom.stages import Shape

_NEWLINES = 1  # tokens behind every video


class Info(LlavaOnevisionProcessingInfo):
    """What vLLM asks to size its buffers: a request may ask for all tokens of its videos."""

    def get_mm_max_tokens_per_item(
        self, seq_len: int, mm_counts: Mapping[str, int]
    ) -> Mapping[str, int]:
        """Return the most tokens of an image and of a video."""
        most = {
            "image": self.get_max_image_tokens,
            "video": lambda: self.get_max_video_tokens(seq_len, mm_counts),
        }
        return {k: f() for k, f in most.items() if mm_counts.get(k, 0) > 0}


class Processor(CompressingProcessor, LlavaOnevisionMultiModalProcessor):
    """Counts the placeholders of LLaVA-OneVision."""

    def _videos(self, outputs: Mapping[str, Any]) -> list[tuple[Shape, float]]:
        grid = token_grid(self.info.get_hf_config())
        return [((len(video), grid), 1.0) for video in outputs.get("pixel_values_videos", ())]

    def _encoder_layers(self) -> int:
        return usable_layers(self.info.get_hf_config())

    def _video_token(self) -> int:
        return int(self.info.get_hf_config().video_token_index)

    def _extra_tokens(self) -> int:
        return _NEWLINES

    def _lead(self, item: VideoItem) -> int:
        if self._method is None or renumbered(LlavaOnevision, self._method):
            return 0
        text = self.info.ctx.model_config.hf_text_config
        room = video_room(LlavaOnevision, self._method, text)
        return _span(item, room) - item.tokens - _NEWLINES


@MULTIMODAL_REGISTRY.register_processor(
    Processor, info=Info, dummy_inputs=LlavaOnevisionDummyInputsBuilder
)
class CompressedLlavaOnevision(
    CompressedVideos, LlavaOnevisionForConditionalGeneration, SupportsMRoPE
):
    """vLLM's LLaVA-OneVision; images, language model and weights are as they were."""

    FAMILY = LlavaOnevision

    def _adapter(self) -> tuple[LlavaOnevision, int]:
        return LlavaOnevision(self), len(self.vision_tower.vision_model.encoder.layers)

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """Encode images and videos: one ``[placeholders, dim (+ channels)]`` for each."""
        items, videos = self._items(kwargs), kwargs.pop("pixel_values_videos", None)
        done = list(super().embed_multimodal(**kwargs))
        if videos is None:
            return done
        if items is None:
            items = [None] * len(videos)  # type: ignore[list-item]
        for pixels, item in zip(videos, items, strict=True):
            if item is None or item.whole:
                # one at a time: vLLM cannot take videos of different length together
                done += super().embed_multimodal(pixel_values_videos=pixels[None])
            else:
                done.append(self._compressed(pixels, item))
        return done

    def _encode_frames(self, pixels: Tensor, run: VideoRun) -> Tensor:
        hidden = encode_frames(self.vision_tower.vision_model, pixels, run)
        return self.apply_pooling(self.multi_modal_projector(hidden))

    def _finished(self, done: Encoded) -> Encoded:
        return Encoded(torch.cat([done.rows, self.image_newline[None].to(done.rows)]), done.cells)

    def _offsets(self, cells: Tensor, item: VideoItem) -> Tensor:
        total = item.frames * item.size
        places = torch.cat([cells, torch.arange(total, total + _NEWLINES, device=cells.device)])
        places = squeezed(places, total + _NEWLINES, _span(item, self._room))
        return places.expand(self.AXES, -1)

    def get_mrope_input_positions(
        self, input_tokens: list[int], mm_features: list[Any]
    ) -> tuple[Tensor, int]:
        """Return the positions of a prompt, the same on all axes, and what later tokens add."""
        parts = []
        for feature in sorted(mm_features, key=lambda f: f.mm_position.offset):
            item = item_of(feature.data) if feature.modality == "video" else None
            if item is None or item.whole:
                continue  # counted like text
            place = feature.mm_position
            parts.append((place.offset, place.length, None, _span(item, self._room)))
        return flat_positions(len(input_tokens), parts, self.AXES)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load a checkpoint; newer ones leave out a level in the names of the vision tower."""
        return super().load_weights((_renamed(name), x) for name, x in weights)


def _span(item: VideoItem, room: int | None) -> int:
    """Positions of a video, its newline tokens counted, as the transformers engine has them."""
    return span_of(item.frames * item.size + _NEWLINES, item.tokens + _NEWLINES, room)


def _renamed(name: str) -> str:
    level = "vision_tower."
    if level not in name or f"{level}vision_model." in name:
        return name
    return name.replace(level, f"{level}vision_model.", 1)
