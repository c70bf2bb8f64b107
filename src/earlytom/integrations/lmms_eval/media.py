"""The visuals of lmms-eval's requests, decoded."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from earlytom.errors import ConfigError, VideoError
from earlytom.integrations.lmms_eval.options import Options
from earlytom.video import Video, load_video
from earlytom.video.sampling import uniform


@dataclass(frozen=True)
class Prompt:
    """One question with its visuals.

    Attributes:
        text: the question, without placeholders.
        visuals: paths of video files and PIL images, in any number.
    """

    text: str
    visuals: tuple[Any, ...] = ()


@dataclass
class Ready:
    """A prompt with its media decoded."""

    text: str
    videos: list[Video] = field(default_factory=list)
    images: list[Any] = field(default_factory=list)


class MediaLoader:
    """Decodes the visuals of prompts.

    Args:
        options: how to sample, and what to do with images.
        frames: frames per video file, unless ``options`` sample by rate.
    """

    def __init__(self, options: Options, frames: int) -> None:
        self._options = options
        self._frames = frames
        self._decoded: dict[str, Video] = {}

    def load(self, prompts: Sequence[Prompt]) -> list[Ready | VideoError]:
        """Decode the visuals of ``prompts``; a video that cannot be read gives its error.

        Raises:
            ConfigError: a visual that is neither a path nor a PIL image.
        """
        # questions about one video follow each other: keep what the last call decoded
        wanted = {os.fspath(v) for p in prompts for v in p.visuals if _is_path(v)}
        self._decoded = {k: v for k, v in self._decoded.items() if k in wanted}
        found: list[Ready | VideoError] = []
        for prompt in prompts:
            try:
                found.append(self._one(prompt))
            except VideoError as e:
                found.append(e)
        return found

    def _one(self, prompt: Prompt) -> Ready:
        ready = Ready(prompt.text)
        for visual in prompt.visuals:
            if _is_path(visual):
                ready.videos.append(self._decode(os.fspath(visual)))
            elif callable(getattr(visual, "convert", None)):  # a PIL image
                ready.images.append(visual.convert("RGB"))
            else:
                raise ConfigError(
                    "a visual must be the path of a video or a PIL image, got "
                    f"{type(visual).__name__}"
                )
        if ready.images and self._options.images_as_video:
            ready.videos.append(_from_images(ready.images, self._frames))
            ready.images = []
        return ready

    def _decode(self, path: str) -> Video:
        if path not in self._decoded:
            o = self._options
            count = self._frames if o.fps is None else None
            self._decoded[path] = load_video(path, count, fps=o.fps, max_frames=o.max_frames)
        return self._decoded[path]


def batches(prompts: Sequence[Ready]) -> Iterator[list[Ready]]:
    """Cut into runs that one call can take: no images, and all videos of one length."""
    for key, group in itertools.groupby(prompts, key=_batch_key):
        members = list(group)
        alone = key is None or len(set(key)) > 1
        yield from ([m] for m in members) if alone else [members]


def _batch_key(prompt: Ready) -> tuple[int, ...] | None:
    return None if prompt.images else tuple(len(v) for v in prompt.videos)


def _is_path(visual: Any) -> bool:
    return isinstance(visual, (str, os.PathLike))


def _from_images(images: list[Any], count: int) -> Video:
    chosen = [images[i] for i in uniform(len(images), count)]
    return Video.from_frames(
        [
            torch.frombuffer(bytearray(i.tobytes()), dtype=torch.uint8).view(i.height, i.width, 3)
            for i in chosen
        ]
    )
