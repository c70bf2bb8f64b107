"""Families for which the frames of a video are images of the prompt (InternVL, SmolVLM2).

Their processors hand frames and images to the model alike. What makes images a video is the text
in front of each: "Frame1: <img>" or "Frame from 00:01:<image>". It is read from the prompt with the
checkpoint's tokenizer, so images are left as they are unless the processor was given a video.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from earlytom.checks import check_count
from earlytom.errors import ConfigError, UnsupportedModelError, VideoError
from earlytom.models.base import Adapter

logger = logging.getLogger(__name__)
T = TypeVar("T")

RULE = "_earlytom_frames"
_LEAD = 96  # tokens in front of an image that are looked at
_CLOSED = re.compile(r"\s*(?:<[^<>]*>)?\s*")  # what may stand between two frames of a video


@dataclass(frozen=True)
class FrameRule:
    """How frames are told from images.

    Attributes:
        tokenizer: decodes the text in front of images, or None.
        frames_per_video: so many images of a sequence are a video, whatever the text says; None:
            the text decides.
    """

    tokenizer: Any = None
    frames_per_video: int | None = None


@dataclass(frozen=True)
class FrameColumns:
    """Videos of a prompt.

    Attributes:
        visual: ``[batch, L]`` bool, placeholders of frames.
        tiles: images (tiles of them) that all placeholders of the prompt stand for.
        videos: first tile and frames of every video, in the order of the prompt.
        images: first tile and tiles of every other image.
    """

    visual: Tensor
    tiles: int
    videos: list[tuple[int, int]]
    images: list[tuple[int, int]] = field(default_factory=list)


class ImageFrames(Adapter):
    """A family whose module has ``get_image_features`` for images and frames.

    Tokens of a frame are joined from square blocks of patches, so tokens that a patch reduction
    leaves must become a grid again (``whole_grids``).
    """

    features_name = "get_image_features"
    whole_grids = True
    lead: ClassVar[re.Pattern[str]]  # text in front of a frame; its group counts frames, if any

    def __init__(self, inner: nn.Module) -> None:
        super().__init__(inner)
        self.videos: list[int] | None = None  # frames of the videos of the call
        self._rule: FrameRule | None = None

    # ------------------------------------------------------------------ data
    def frame_counts(self, arguments: dict[str, Any]) -> list[int]:
        """Return the frames of every video of ``input_ids``, else of the running or last prompt."""
        ids = arguments.get("input_ids")
        if isinstance(ids, Tensor):
            return [n for _, n in self.find_videos(ids).videos]
        if self.videos is None:
            raise VideoError("no prompt has said which of these images are frames of a video")
        return list(self.videos)

    @property
    def video_token_id(self) -> int:
        """Frames have the placeholder of images."""
        return int(self.inner.config.image_token_id)  # type: ignore[union-attr,arg-type]

    @property
    def projected(self) -> int:
        """Blocks of patches are joined in front of the linear layers of the projector."""
        return self.tokens_per_frame

    def projector_rows(self, patches: int, full: int) -> int:
        """A frame is whole again in front of the projector."""
        return patches // self.pooling**2

    def placeholder_count(self, frames: list[int]) -> int:
        """Tokens of every frame; the text around them is not counted."""
        return sum(frames) * self.tokens_per_frame

    def pool(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Average over the patches that a token is made of."""
        assert self.patch_grid is not None
        cells = x.unflatten(1, grid or self.patch_grid).permute(0, 3, 1, 2)
        return nn.functional.avg_pool2d(cells, self.pooling).flatten(2).transpose(1, 2)

    def tiles(self, arguments: dict[str, Any]) -> dict[str, Tensor]:
        """Return the arguments of ``get_image_features`` with a row for every image of the call.

        Padding images are left out.
        """
        raise NotImplementedError

    def check_frames(self, tiles: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the rows that are frames; UnsupportedModelError if they cannot be a video."""
        return tiles

    def call_arguments(self, tiles: dict[str, Tensor]) -> dict[str, Any]:
        """Undo :meth:`tiles` for some of the rows."""
        raise NotImplementedError

    def flat(self, output: Any) -> Tensor:
        """Return the pooled features ``[images, tokens, dim]`` of an output."""
        rows = output.pooler_output
        if not isinstance(rows, Tensor):
            rows = torch.cat(list(rows)).unflatten(0, (-1, self.tokens_per_frame))
        return rows

    def numbers(self, rows: Tensor, arguments: dict[str, Any]) -> Any:
        """Return ``[images, tokens, 1]`` in the form of the pooled features of a call."""
        return rows

    def put_flat(self, output: Any, rows: Tensor) -> Any:
        """Put ``[images, tokens, dim]`` into an output in its own form, as one sequence."""
        listed = not isinstance(output.pooler_output, Tensor)
        output.pooler_output = [rows.flatten(0, 1)] if listed else rows
        return output

    def read_features(self, output: Any, frames: list[int]) -> list[Tensor]:
        """All images of ``output`` are frames."""
        return [part.flatten(0, 1) for part in self.flat(output).split(frames)]

    def write_features(self, output: Any, videos: list[Tensor]) -> Any:
        """Join the rows of all videos."""
        return self.put_flat(output, torch.cat(videos).unflatten(0, (-1, self.tokens_per_frame)))

    # ------------------------------------------------------------------ prompt
    @property
    def rule(self) -> FrameRule:
        """What :func:`use_frame_prompts` said, else the tokenizer that lies beside the model."""
        told = self.inner.__dict__.get(RULE)
        if isinstance(told, FrameRule):
            return told
        if self._rule is None:
            self._rule = FrameRule(_tokenizer_of(self.inner))
            if self._rule.tokenizer is None:
                logger.warning(
                    "%s takes frames of a video as images, and no tokenizer lies beside the model "
                    "to tell them apart: images are left as they are; see "
                    "earlytom.models.use_frame_prompts",
                    type(self.inner).__name__,
                )
        return self._rule

    def find_videos(self, ids: Tensor) -> FrameColumns:
        """Find the videos in ``ids [batch, L]``; copies them to the host.

        Raises:
            VideoError: ``frames_per_video`` does not divide the images of a sequence.
        """
        size, rule = self.tokens_per_frame, self.rule
        host = ids.cpu()
        step = nn.functional.pad((host == self.video_token_id).int(), (1, 1)).diff(dim=1)
        starts, ends = (step == 1).nonzero().tolist(), (step == -1).nonzero().tolist()
        visual = torch.zeros(host.shape, dtype=torch.bool)
        videos: list[tuple[int, int]] = []
        images: list[tuple[int, int]] = []
        # count: number of the frame before, 0 after anything else
        tile, row, previous, count = 0, -1, 0, 0
        for (b, start), (_, end) in zip(starts, ends, strict=True):
            if b != row:
                previous = count = 0
            number = 0
            if end - start == size:
                near = start - previous <= _LEAD  # else there is more than a frame needs
                before = host[b, max(previous, start - _LEAD) : start]
                number = self._frame_number(rule, before, count if near else 0)
            if number == 1:
                videos.append((tile, 1))
            elif number:
                videos[-1] = videos[-1][0], number
            else:
                images.append((tile, (end - start) // size))
            visual[b, start:end] = number > 0
            tile, row, count, previous = tile + (end - start) // size, b, number, end
        found = FrameColumns(visual.to(ids.device), tile, videos, images)
        each = rule.frames_per_video
        if each is not None and any(n != each for _, n in videos):
            raise VideoError(
                f"{min(n for _, n in videos)} images in a row are left where every {each} are to "
                "be a video (frames_per_video)"
            )
        return found

    def _frame_number(self, rule: FrameRule, before: Tensor, count: int) -> int:
        """Return the number of a frame in its video, 0 for an image.

        Args:
            rule: how to tell.
            before: ids in front of it, from the image before on.
            count: number of the frame before, 0 if that is none.
        """
        if rule.frames_per_video is not None:
            return count % rule.frames_per_video + 1
        if rule.tokenizer is None:
            return 0
        text = rule.tokenizer.decode(before.tolist())
        found = self.lead.search(text)
        if found is None:
            return 0
        follows = count > 0 and _CLOSED.fullmatch(text[: found.start()]) is not None
        if self.lead.groups:  # numbered by the prompt itself
            number = int(found.group(1))
            return number if number == 1 or (follows and number == count + 1) else 0
        return count + 1 if follows else 1


def use_frame_prompts(model: T, tokenizer: Any = None, frames_per_video: int | None = None) -> T:
    """Say how frames of a video are told from images, for InternVL and SmolVLM2.

    By default the tokenizer that lies beside the checkpoint is loaded when a prompt with images
    comes, and images are frames where the official processor writes them as such. Call this if the
    model was not loaded from a folder or the Hub's cache, or for prompts of your own.

    Args:
        model: as for :func:`earlytom.compress`.
        tokenizer: tokenizer or processor of the model; None: the one beside the checkpoint.
        frames_per_video: in every sequence so many images in a row are a video; the text is not
            looked at. Images of several tiles never are.

    Returns:
        The same object.

    Raises:
        UnsupportedModelError: the model has a video input of its own.
        ConfigError: a bad argument.
    """
    from earlytom.models import find_adapter

    adapter = find_adapter(model)
    if not isinstance(adapter, ImageFrames):
        raise UnsupportedModelError(
            f"{type(adapter.inner).__name__} takes videos apart from images; nothing is to be told"
        )
    if frames_per_video is not None:
        check_count("frames_per_video", frames_per_video)
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # of a processor
    if tokenizer is not None and not callable(getattr(tokenizer, "decode", None)):
        raise ConfigError(f"expected a tokenizer or processor, got {type(tokenizer).__name__}")
    attributes = adapter.inner.__dict__
    attributes.pop(RULE, None)
    if tokenizer is not None or frames_per_video is not None:
        attributes[RULE] = FrameRule(tokenizer, frames_per_video)
    return model


def _tokenizer_of(inner: Any) -> Any:
    """Return the tokenizer of the checkpoint that ``inner`` was loaded from, if it is here."""
    name = getattr(inner.config, "_name_or_path", None)
    if not name:
        return None
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, local_files_only=True)
    except Exception as e:  # missing files, missing packages, unknown tokenizer classes ...
        logger.debug("no tokenizer beside %s: %s", name, e)
        return None
