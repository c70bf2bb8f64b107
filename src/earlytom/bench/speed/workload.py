"""What is timed: a model, videos as raw frames, and prompts of token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from earlytom.bench.speed.architectures import architecture, build, random_model
from earlytom.errors import ConfigError
from earlytom.models import find_adapter
from earlytom.models.base import Adapter
from earlytom.preprocess import FrameConfig, preprocess_video
from earlytom.preprocess.checkpoint import check_source, load_error
from earlytom.stages import Grid

RAW_SIZE = (360, 640)  # height, width of a decoded frame
_QUESTION = 24  # text tokens behind a video
_FIRST_ID, _LAST_ID = 8, 64  # ordinary tokens in every vocabulary here


@dataclass(frozen=True)
class Workload:
    """A model with the inputs of one call.

    Attributes:
        model: in evaluation mode.
        adapter: of the model.
        name: name of the architecture or checkpoint.
        weights: ``random``, or where they come from.
        frames: frames of every video.
        raw: one uint8 video ``[T, H, W, 3]`` per sequence.
        config: how frames are preprocessed.
    """

    model: Any
    adapter: Adapter
    name: str
    weights: str
    frames: int
    raw: list[Tensor]
    config: FrameConfig

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.adapter.tower.parameters()).device

    @property
    def steps(self) -> int:
        """Frames of every video as the encoder counts them."""
        return self.frames

    @property
    def grid(self) -> Grid:
        """(height, width) of the tokens of such a frame."""
        return self.adapter.grid

    @property
    def tokens(self) -> int:
        """Visual tokens of all videos without compression."""
        return len(self.raw) * self.steps * self.grid[0] * self.grid[1]

    def pixels(self) -> Tensor:
        """Preprocess all videos: ``[batch, T, 3, height, width]`` on the device."""
        done = torch.cat([preprocess_video(video, self.config) for video in self.raw])
        return done.to(self.device, self.model.dtype)

    def inputs(self, pixels: Tensor) -> dict[str, Tensor]:
        """Return the arguments of ``generate``."""
        batch = len(self.raw)
        g = torch.Generator().manual_seed(1)
        text = torch.randint(_FIRST_ID, _LAST_ID, (batch, 2 * _QUESTION), generator=g)
        count = self.adapter.video_placeholders(self.steps, self.grid)
        video = torch.full((batch, count), self.adapter.video_token_id)
        ids = torch.cat([text[:, :_QUESTION], video, text[:, _QUESTION:]], 1).to(self.device)
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pixel_values_videos": pixels,
        }


def workload(
    source: str,
    *,
    named: bool,
    random: bool = False,
    frames: int | None,
    batch: int,
    device: torch.device,
    dtype: torch.dtype,
    attn: str | None,
) -> Workload:
    """Load or build the model and draw its videos.

    Args:
        source: name of an architecture (``named``), or a checkpoint.
        named: build an architecture with random weights; ``tiny`` is the shipped model.
        random: only read the configuration of a checkpoint, and draw its weights.
        frames: frames of a video; None for what the architecture is used with (32; tiny: 16). Must
            be even for models that encode two pictures at a time.
        batch: sequences, one video each.
        device: where to run.
        dtype: of weights and activations.
        attn: attention implementation, None for the default.

    Raises:
        ConfigError: unknown architecture, or a number out of range.
        EarlyTomError: the checkpoint cannot be loaded.
    """
    from earlytom.pipeline.loading import load_model, shipped_model

    usual, weights = 32, "random"
    if named and source != "tiny":
        arch = architecture(source)
        model, usual = build(arch, device, dtype, attn), arch.frames
    elif random:
        config = _config(shipped_model() if named else source)
        model = random_model(config, device, dtype, attn)
    else:
        where = shipped_model() if named else source
        model = load_model(where, device, dtype, attn).requires_grad_(False)
        usual, weights = (16, "trained (generated videos)") if named else (32, str(source))
    adapter = find_adapter(model)
    count = usual if frames is None else frames
    if adapter.packed:
        return _packed(model, adapter, source, weights, count, batch)
    raw = [draw_video(count, seed) for seed in range(batch)]
    side = int(model.config.vision_config.image_size)
    return Workload(model, adapter, source, weights, count, raw, FrameConfig(size=(side, side)))


def _packed(
    model: Any, adapter: Adapter, source: str, weights: str, frames: int, batch: int
) -> Workload:
    from earlytom.bench.speed.packed import SIDE, PackedWorkload

    if frames % 2:
        raise ConfigError(f"{source} encodes two pictures at a time; frames must be even")
    if type(adapter).model_types[0] == "qwen3_vl":
        raise ConfigError("Qwen3-VL writes timestamps into the prompt, which is not built here")
    raw = [draw_video(frames, seed) for seed in range(batch)]
    size = FrameConfig(size=(SIDE, SIDE))
    return PackedWorkload(model, adapter, source, weights, frames, raw, size)


def _config(source: str) -> Any:
    from transformers import AutoConfig

    name = check_source(source)
    try:
        return AutoConfig.from_pretrained(name)
    except Exception as e:  # hub, JSON, unknown architecture ...
        raise load_error(name, e) from e


def draw_video(frames: int, seed: int = 0, size: Sequence[int] = RAW_SIZE) -> Tensor:
    """Return uint8 frames ``[T, height, width, 3]``: two scenes, panning slowly, some noise."""
    g = torch.Generator().manual_seed(seed)
    height, width = size
    cut = frames // 2 + 1
    coarse = torch.rand(2, 3, height // 8, (width + frames) // 8 + 1, generator=g)
    scenes = F.interpolate(coarse, scale_factor=8.0, mode="bilinear") * 255
    video = torch.empty(frames, height, width, 3, dtype=torch.uint8)
    for t in range(frames):
        view = scenes[int(t >= cut), :, :height, t : t + width]
        noise = torch.randn(view.shape, generator=g) * 2
        video[t] = (view + noise).clamp_(0, 255).to(torch.uint8).permute(1, 2, 0)
    return video
