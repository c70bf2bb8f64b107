"""The inputs of Qwen-VL models: patches, grids, and what they need to know about time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from earlytom.preprocess.patches import PatchConfig, patchify_video
from earlytom.preprocess.times import frame_times, sampled_fps
from earlytom.preprocess.tokens import tokenise
from earlytom.video.types import Video

MODEL_TYPES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
START, END = "<|vision_start|>", "<|vision_end|>"


def packed_inputs(
    tokenizer: Any,
    prompts: list[str],
    clips: Sequence[Video | Tensor],
    config: PatchConfig,
    model_type: str,
    video_token: str,
    options: dict[str, Any],
    dtype: torch.dtype | None,
) -> dict[str, Tensor]:
    """Build the inputs of prompts with one placeholder per video.

    Qwen2.5-VL reads the seconds of a step in time from ``second_per_grid_ts``.  For Qwen3-VL every
    step is written as ``<1.5 seconds>`` and a block of its own in place of the placeholder; the
    block that the template puts around it stays, as in transformers from 5.10 on.

    Args:
        tokenizer: the checkpoint's tokenizer.
        prompts: texts, one placeholder per video.
        clips: videos of all prompts in order; lengths and sizes may differ.
        config: the checkpoint's settings.
        model_type: one of ``MODEL_TYPES``.
        video_token: text of the placeholder.
        options: of the tokenizer's call, see :func:`tokenise`.
        dtype: of ``pixel_values_videos``, float32 if None.

    Returns:
        ``input_ids``, ``attention_mask`` and ``mm_token_type_ids`` (2: video) ``[B, L]``,
        ``pixel_values_videos`` ``[patches, values]``, ``video_grid_thw`` ``[videos, 3]`` and, for
        Qwen2.5-VL, ``second_per_grid_ts`` ``[videos]``.

    Raises:
        VideoError: frames that cannot be cut into patches.
    """
    parts = [
        patchify_video(c.frames if isinstance(c, Video) else c, config, dtype=dtype) for c in clips
    ]
    step, area = config.temporal_patch_size, config.merge_size**2
    if model_type == "qwen3_vl":
        counts = [p.grid[1] * p.grid[2] // area for p in parts for _ in range(p.grid[0])]
        stamps = iter([_stamps(frame_times(c), step, video_token) for c in clips])
        cut = [p.split(video_token) for p in prompts]
        prompts = ["".join([c[0], *(next(stamps) + part for part in c[1:])]) for c in cut]
    else:
        counts = [p.grid[0] * p.grid[1] * p.grid[2] // area for p in parts]
    out = tokenise(tokenizer, prompts, video_token, counts, options)
    place = tokenizer.convert_tokens_to_ids(video_token)
    out["mm_token_type_ids"] = torch.where(out["input_ids"] == place, 2, 0)
    if parts:
        out["pixel_values_videos"] = torch.cat([p.values for p in parts])
        out["video_grid_thw"] = torch.tensor([p.grid for p in parts])
        if model_type == "qwen2_5_vl":
            out["second_per_grid_ts"] = torch.tensor([step / sampled_fps(c) for c in clips])
    return out


def _stamps(times: list[float], step: int, video_token: str) -> str:
    """One block per step in time, each behind the mean of its first and last frame's time."""
    times = times + times[-1:] * (-len(times) % step)
    means = [(a + b) / 2 for a, b in zip(times[::step], times[step - 1 :: step], strict=True)]
    return "".join(f"<{t:.1f} seconds>{START}{video_token}{END}" for t in means)
