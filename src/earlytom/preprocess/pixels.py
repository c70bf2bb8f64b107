"""Vectorised frame preprocessing, numerically equal to Hugging Face's video processors.

Measured bit-identical to ``LlavaOnevisionVideoProcessor`` (transformers 5.23, torchvision 0.28) on
CPU: the resize must run on uint8 (a float resize that is rounded afterwards differs by 1/255 in a
fifth of the pixels) and the normalisation must fold the rescaling into mean and deviation.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from earlytom.errors import VideoError
from earlytom.preprocess.frames import RESAMPLE, FrameConfig
from earlytom.video.types import check_frames

# torch splits work of 2**15 values and more among threads. The work on one frame is too small for
# that: beside a decoder that uses all cores, waiting for helpers takes longer than doing it alone.
_BLOCK = 2**15 - 1


@dataclass(frozen=True, eq=False)
class Pixels:
    """A video whose frames are resized and normalised already; see :meth:`Preprocessor.pixels`.

    Attributes:
        values: ``[1, T, 3, h, w]``.
    """

    values: Tensor


def preprocess_video(
    frames: Tensor,
    config: FrameConfig | None = None,
    *,
    dtype: torch.dtype | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Turn decoded frames into ``pixel_values_videos`` of one video.

    Args:
        frames: ``[T, H, W, 3]`` uint8.
        config: the checkpoint's settings; LLaVA-OneVision's if None.
        dtype: floating dtype of the result, float32 if None. All steps run on float32 and are
            rounded once at the end.
        chunk: frames per step, >= 1; None chooses. The result does not depend on it.

    Returns:
        ``[1, T, 3, h, w]`` of ``dtype`` (uint8 if neither rescaled nor normalised).

    Raises:
        VideoError: ``frames`` has another shape or dtype.
    """
    check_frames(frames)
    config = config or FrameConfig()
    if chunk is None:
        chunk = 1 if frames.device.type == "cpu" else len(frames)
    writer = PixelWriter(config, len(frames), dtype)
    for part in frames.split(chunk):
        writer.write(part)
    return writer.pixels()


class PixelWriter:
    """Fills ``pixel_values_videos`` of one video with decoded frames, as they come.

    Args:
        config: the checkpoint's settings; LLaVA-OneVision's if None.
        limit: frames that will come at most; room is made for so many.
        dtype: floating dtype of the result, float32 if None.
    """

    def __init__(
        self, config: FrameConfig | None, limit: int, dtype: torch.dtype | None = None
    ) -> None:
        self._config = config or FrameConfig()
        self._limit, self._dtype = limit, dtype or torch.float32
        self._count = 0
        self._out: Tensor | None = None
        self._shift = self._scale = torch.empty(0)

    def write(self, frames: Tensor) -> None:
        """Resize and normalise the next frames, ``[t, H, W, 3]`` uint8.

        Raises:
            VideoError: another shape or dtype, or more frames than ``limit``.
        """
        check_frames(frames)
        config, begin, end = self._config, self._count, self._count + len(frames)
        if end > self._limit:
            raise VideoError(f"got {end} frames where at most {self._limit} were announced")
        x = frames.permute(0, 3, 1, 2)
        size = config.output_size(x.shape[2], x.shape[3])
        if config.do_resize and size != (x.shape[2], x.shape[3]):
            x = _resize(x, size, RESAMPLE[config.resample])
        if self._out is None:
            self._out = self._allocate(x)
        out = self._out[0, begin:end]
        if out.device.type == "cpu":
            rows = max(1, _BLOCK // (3 * out.shape[-1]))
            for frame, source in zip(out, x, strict=True):
                for block, part in zip(frame.split(rows, 1), source.split(rows, 1), strict=True):
                    self._fill(block, part)
        else:
            self._fill(out, x)
        self._count = end

    def pixels(self) -> Tensor:
        """Return what was written, ``[1, t, 3, h, w]`` contiguous.

        Raises:
            VideoError: nothing was written.
        """
        if self._out is None:
            raise VideoError("a video needs at least one frame")
        return self._out[:, : self._count]

    def _fill(self, out: Tensor, x: Tensor) -> None:
        """Normalise uint8 ``x`` ``[..., 3, h, w]`` into ``out``, in the official order of steps."""
        if self._config.do_normalize:
            y = out
            if out.dtype != torch.float32:
                y = torch.empty(x.shape, dtype=torch.float32, device=x.device)
            y.copy_(x)
            y.sub_(self._shift).div_(self._scale)
        elif self._config.do_rescale:
            y = x * self._config.rescale_factor
        else:
            y = x
        if y is not out:
            out.copy_(y)

    def _allocate(self, x: Tensor) -> Tensor:
        config, dtype = self._config, self._dtype
        if config.do_normalize:
            factor = 1.0 / config.rescale_factor if config.do_rescale else 1.0
            self._shift = (torch.tensor(config.mean, device=x.device) * factor)[:, None, None]
            self._scale = (torch.tensor(config.std, device=x.device) * factor)[:, None, None]
        elif not config.do_rescale:
            dtype = torch.uint8
        return torch.empty((1, self._limit, *x.shape[1:]), dtype=dtype, device=x.device)


def _resize(x: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Resize ``[T, 3, H, W]`` uint8 as torchvision does: on uint8 where that kernel exists.

    Decoded frames lie channels-last in memory. The AVX kernel reads them as they are, twice as fast
    and with the same integer sums; the others differ there when the result is one pixel wide.
    """
    if mode == "nearest-exact":
        return F.interpolate(x.contiguous(), size=size, mode=mode)
    if x.device.type == "cpu" and (mode == "bicubic" or _fast_bilinear()):
        layout = torch.channels_last if _avx() else torch.contiguous_format
        y = x.contiguous(memory_format=layout)
        return F.interpolate(y, size=size, mode=mode, align_corners=False, antialias=True)
    y = x.contiguous().to(torch.float32)
    y = F.interpolate(y, size=size, mode=mode, align_corners=False, antialias=True)
    return y.clamp_(0, 255).round_().to(torch.uint8)


def _avx() -> bool:
    return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def _fast_bilinear() -> bool:
    return _avx() or platform.machine() in ("aarch64", "arm64")
