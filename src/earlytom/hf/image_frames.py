"""Vision side for families whose videos are images of the prompt.

Only the prompt says which images are frames, so features are made when it is known: in a forward,
the hook of the model has seen it before images are encoded. ``generate`` of newer transformers
encodes images ahead of the prompt; it gets numbers of images instead of their features, repeats
them for beams as it likes, and the hook puts features in their place.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from earlytom.errors import UnsupportedModelError, VideoError
from earlytom.hf.images import ImageTokens
from earlytom.hf.vision import VisionSide
from earlytom.models.image_frames import FrameColumns, ImageFrames
from earlytom.ops.tensors import to_device

_ENCODED = "image"  # key of ahead-of-time features


class AwaitsPrompt(BaseModelOutputWithPooling):
    """Stands in for image features: ``pooler_output`` holds the number of every image."""

    arguments: dict[str, Any] | None = None


@dataclass
class ImageSide:
    """Finds videos among the images of a prompt, and encodes them apart from other images.

    Args:
        adapter: the live model.
        vision: runs the method on videos.
        done: called after videos were encoded.
        tokens: selects tokens of other images, None: they are left as they are.
    """

    adapter: ImageFrames
    vision: VisionSide
    done: Callable[[], None]
    tokens: ImageTokens | None = None
    _videos: list[tuple[int, int]] | None = field(default=None, init=False)  # of the next call
    _images: list[tuple[int, int]] = field(default_factory=list, init=False)  # likewise

    def before_model(self, ids: Tensor, kwargs: dict[str, Any]) -> FrameColumns | None:
        """Read a prompt; features that waited for it are put into ``kwargs``.

        Args:
            ids: ``[batch, L]``.
            kwargs: arguments of the multimodal model.

        Returns:
            Videos of the prompt, None without any.

        Raises:
            VideoError: placeholders and images do not fit.
            UnsupportedModelError: a part of a prompt (chunked prefill).
        """
        self._videos = None
        ahead = kwargs.get("mm_encoder_outputs") or {}
        waiting = ahead.get(_ENCODED)
        if kwargs.get("pixel_values") is None and waiting is None:
            return None
        found = self.adapter.find_videos(ids)
        if isinstance(waiting, AwaitsPrompt):
            ahead[_ENCODED] = self._encode(waiting, found)
        elif waiting is None:
            self._videos, self._images = found.videos, found.images
        return found if found.videos else None

    def _encode(self, waiting: AwaitsPrompt, found: FrameColumns) -> Any:
        """Return features of the images of a prompt in its order; a video is encoded once."""
        if waiting.arguments is None:
            raise UnsupportedModelError(
                "a part of a prompt whose videos are images (chunked prefill); pass "
                "prefill_chunk_size=None"
            )
        order = self.adapter.flat(waiting)[:, 0, 0].tolist()
        if len(order) != found.tiles:
            raise VideoError(
                f"the prompt holds placeholders of {found.tiles} images, but {len(order)} are given"
            )
        self._videos = list(dict.fromkeys((order[first], n) for first, n in found.videos))
        self._images = list(dict.fromkeys((order[first], n) for first, n in found.images))
        features: Any = getattr(self.adapter.inner, self.adapter.features_name)
        output = features(**waiting.arguments)
        rows = self.adapter.flat(output)
        index = to_device(order, rows.device)
        return self.adapter.put_flat(output, rows.index_select(0, index))

    def call(self, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Stand in for the model's ``get_image_features``."""
        videos, self._videos = self._videos, None
        arguments = inspect.signature(original).bind(*args, **kwargs).arguments
        named = {**arguments.pop("kwargs", {}), **arguments}
        if videos is None:
            # asked for by generate, which will show the prompt; other callers get all features
            return self._wait(named) if kwargs.get("return_dict") else original(*args, **kwargs)
        if not videos:
            return self._encode_images(functools.partial(original, *args, **kwargs))
        adapter = self.adapter
        tiles = adapter.tiles(named)
        total = len(tiles["pixel_values"])
        if max(first + n for first, n in videos) > total:
            raise VideoError(f"the prompt has placeholders of more than the {total} images given")
        frames = [i for first, n in videos for i in range(first, first + n)]
        adapter.videos = [n for _, n in videos]
        rest = {k: v for k, v in named.items() if k not in tiles}
        chosen = to_device(frames, tiles["pixel_values"].device)
        part = tiles
        if frames != list(range(total)):  # pixels are large: no copy of a single video
            part = {k: v.index_select(0, chosen) for k, v in tiles.items()}
        part = adapter.check_frames(part)
        output = self.vision.run(original, (), {**rest, **adapter.call_arguments(part)})
        self.done()
        others = sorted(set(range(total)) - set(frames))
        if others or frames != sorted(frames):
            rows = adapter.flat(output)
            joined = rows.new_empty(total, *rows.shape[1:])
            joined[chosen.to(rows.device)] = rows
            if others:
                left = to_device(others, chosen.device)
                part = {k: v.index_select(0, left) for k, v in tiles.items()}
                images = self._encode_images(
                    functools.partial(original, **rest, **adapter.call_arguments(part))
                )
                joined[left.to(rows.device)] = adapter.flat(images)
            output = adapter.put_flat(output, joined)
        return output

    def _encode_images(self, encode: Callable[[], Any]) -> Any:
        """Return the features of all images that are no frames, in the order of the call."""
        images, self._images = self._images, []
        if self.tokens is None or not images:
            return encode()
        return self.tokens.run_tiles(encode, [n for _, n in sorted(images)])

    def _wait(self, arguments: dict[str, Any]) -> AwaitsPrompt:
        tiles = self.adapter.tiles(arguments)["pixel_values"]
        number = torch.arange(len(tiles), device=tiles.device)
        rows = number[:, None, None].expand(-1, self.adapter.tokens_per_frame, 1)
        waiting = AwaitsPrompt(pooler_output=self.adapter.numbers(rows, arguments))
        waiting.arguments = arguments
        return waiting
