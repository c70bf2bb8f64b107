"""Clips with questions, and clips as video files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from earlytom.errors import ConfigError, VideoError
from earlytom.files import atomic_write
from earlytom.tiny.checkpoint import save_json
from earlytom.tiny.composer import ShotPool, compose
from earlytom.tiny.facts import Segment
from earlytom.tiny.questions import Question, QuestionWriter
from earlytom.tiny.render import render
from earlytom.tiny.world import SHOT_FRAMES, Shot, make_shot

_STREAM = 7919  # separates clip seeds from the seeds of training data
_POOL = 32
_LEAST = 4  # shots of each object count in a pool


@dataclass
class Clip:
    """A rendered clip: ``frames [T, 112, 112, 3]`` uint8 and every question about it."""

    seed: int
    frames: NDArray[np.uint8]
    questions: list[Question] = field(default_factory=list)
    shots: int = 1


def draw_pool(
    rng: np.random.Generator,
    num_frames: int,
    usable: Callable[[np.random.Generator, Shot], bool] = lambda rng, shot: True,
) -> ShotPool:
    """Shots for a clip, some with every number of objects; ``usable`` may change or refuse them."""
    drawn: list[Shot] = []
    have: Counter[int] = Counter()
    while len(drawn) < _POOL or min(have[n] for n in range(1, 5)) < _LEAST:
        shot = make_shot(rng, max(SHOT_FRAMES, num_frames))
        if usable(rng, shot):
            drawn.append(shot)
            have[len(shot.things)] += 1
    return ShotPool(drawn)


def plan_clip(
    seed: int, num_frames: int = 16, shots: int | None = None
) -> tuple[list[Segment], list[Question]]:
    """Segments and questions of a clip, without rendering it."""
    if seed < 0:
        raise ConfigError(f"seed must not be negative, got {seed}")
    rng = np.random.default_rng((_STREAM, seed))
    segments = compose(rng, draw_pool(rng, num_frames), num_frames, shots)
    return segments, QuestionWriter(rng, segments).write()


def render_segments(segments: list[Segment], noise: float = 6.0) -> NDArray[np.uint8]:
    """Pixels ``[T, 112, 112, 3]`` of a planned clip."""
    return np.concatenate(
        [render(s.shot, s.frames, noise=noise, labels=False)[0] for s in segments]
    )


def make_clip(
    seed: int, num_frames: int = 16, *, shots: int | None = None, noise: float = 6.0
) -> Clip:
    """A clip that depends on its arguments only.

    Args:
        seed: Any non-negative number.
        num_frames: 4, 8, 16 or 32.
        shots: Number of shots; drawn uniformly if not given.
        noise: Standard deviation of the sensor noise in grey levels (0 to 64).

    Raises:
        ConfigError: an argument is out of range.
    """
    if not 0 <= noise <= 64:
        raise ConfigError(f"noise must be in 0..64, got {noise}")
    segments, questions = plan_clip(seed, num_frames, shots)
    return Clip(seed, render_segments(segments, noise), questions, len(segments))


def write_video(
    path: str | Path,
    seed: int,
    *,
    num_frames: int = 16,
    shots: int | None = None,
    noise: float = 6.0,
    fps: int = 24,
    hold: int = 6,
) -> Path:
    """Write a clip as an H.264 MP4 and its questions as a JSON file beside it.

    Every clip frame is held for ``hold`` video frames, so ``num_frames`` uniformly spaced samples
    of the file show each of them once, the one-frame letter flash included.  The coding is
    near-lossless.  Returns the path of the JSON file.

    Raises:
        ConfigError: an argument is out of range.
        VideoError: the file cannot be written.
    """
    target = Path(path)
    if target.suffix.lower() != ".mp4":
        raise ConfigError(f"the video file must end in .mp4, got {target.name!r}")
    if not (1 <= fps <= 120 and 1 <= hold <= 120):
        raise ConfigError(f"fps and hold must be in 1..120, got {fps} and {hold}")
    clip = make_clip(seed, num_frames, shots=shots, noise=noise)
    try:
        atomic_write(target, lambda temporary: _encode(temporary, clip.frames, fps, hold))
        listing = target.with_suffix(".json")
        save_json(listing, describe(clip, target.name, fps, hold))
    except OSError as error:
        raise VideoError(f"cannot write {target}: {error}") from error
    return listing


def describe(clip: Clip, name: str, fps: int, hold: int) -> dict[str, Any]:
    """The JSON record of a written clip."""
    return {
        "video": name,
        "seed": clip.seed,
        "num_frames": len(clip.frames),
        "shots": clip.shots,
        "fps": fps,
        "hold": hold,
        "questions": [
            {
                "type": q.type,
                "question": q.question,
                "answer": q.answer,
                "candidates": list(q.candidates),
            }
            for q in clip.questions
        ],
    }


def _encode(path: Path, frames: NDArray[np.uint8], fps: int, hold: int) -> None:
    """Encode ``frames [T, H, W, 3]`` to H.264, each held for ``hold`` video frames."""
    import av

    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "6", "preset": "medium"}
        for pixels in np.repeat(frames, hold, 0):
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
