"""The torchcodec backend, used where torchcodec can be imported."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import torch

from earlytom.errors import VideoError
from earlytom.video.container import opened
from earlytom.video.sampling import Sampling
from earlytom.video.source import Source
from earlytom.video.types import Video

# torchcodec gives seconds; any fine tick will do to apply the same sampling rules.
_TICK = Fraction(1, 1_000_000)


def read(source: Source, sampling: Sampling) -> Video:
    """Decode what ``sampling`` asks for with torchcodec in its exact seek mode.

    Raises:
        VideoError: torchcodec is missing, or see :func:`earlytom.video.load_video`.
    """
    try:
        from torchcodec.decoders import VideoDecoder
    except Exception as e:  # ImportError, or OSError/RuntimeError of its shared libraries
        raise VideoError(f"torchcodec cannot be loaded: {str(e).splitlines()[0]}") from e
    if source.remote:
        raise VideoError("the torchcodec backend reads local files only; use backend='pyav'")
    with opened(source):
        pass  # the same refusals (playlists, audio only, not a video) as the default backend
    try:
        decoder = VideoDecoder(source.target, dimension_order="NHWC", seek_mode="exact")
        meta = decoder.metadata
        total = int(meta.num_frames or 0)
        if total < 1:
            raise VideoError(f"no video frame in {source.label}")
        rate = float(meta.average_fps or 0.0)
        begin = float(meta.begin_stream_seconds or 0.0)
        end = float(meta.end_stream_seconds or 0.0)
        if sampling.fps is None:
            index = sampling.pick(np.arange(total), Fraction(1))
            batch = decoder.get_frames_at(index.tolist())
        else:
            last = max(begin, end - (1 / rate if rate else 0.0))
            steps = sampling.ticks(round((last - begin) / _TICK), _TICK) + 1  # against rounding
            batch = decoder.get_frames_played_at((begin + steps * float(_TICK)).tolist())
    except VideoError:
        raise
    except Exception as e:  # torchcodec raises RuntimeError, ValueError and IndexError
        reason = (str(e) or type(e).__name__).splitlines()[0]
        raise VideoError(f"cannot decode {source.label}: {reason}") from e
    pts = batch.pts_seconds.to(torch.float64)
    keep = torch.cat([torch.ones(1, dtype=torch.bool), pts[1:] > pts[:-1]])
    pts = pts[keep] - begin
    exact = sampling.fps is None
    return Video(
        frames=batch.data[keep].contiguous(),
        timestamps=pts,
        fps=rate,
        duration=end - begin,
        indices=torch.from_numpy(index) if exact else (pts * rate).round().long(),
        total_frames=total,
        exact_indices=exact,
        source=source.label,
    )
