"""Generated clips to choose from, and videos that somebody uploaded."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from earlytom.errors import VideoError
from earlytom.tiny import Question, make_clip
from earlytom.video import Video, stream_video

SEEDS = (7, 0, 1, 3, 6, 10, 14, 15)  # one to four shots, all types of questions
LENGTHS = (4, 8, 16, 32)  # frames that a generated clip can have
RATE = 4.0  # frames per second of a generated clip; each frame is a scene of its own
MOST_BYTES = 2**30  # of the frames taken from an upload


@dataclass(frozen=True)
class Sample:
    """A generated clip.

    Attributes:
        title: its name on the page.
        video: its frames.
        questions: about it, with their answers.
    """

    title: str
    video: Video
    questions: tuple[Question, ...]

    def right_answer(self, question: str) -> str | None:
        """Return the answer to one of ``questions``, or None for another question."""
        asked = " ".join(question.lower().split())
        return next((q.answer for q in self.questions if q.question == asked), None)


def make_samples(frames: int) -> tuple[Sample, ...]:
    """Generate the clips, each as long as possible but not longer than ``frames`` (at least 4)."""
    length = max((n for n in LENGTHS if n <= frames), default=LENGTHS[0])
    samples = []
    for i, seed in enumerate(SEEDS):
        clip = make_clip(seed, length)
        shots = "1 shot" if clip.shots == 1 else f"{clip.shots} shots"
        video = Video.from_frames(clip.frames, RATE)
        samples.append(Sample(f"Clip {i + 1}: {shots}", video, tuple(clip.questions)))
    return tuple(samples)


def mosaic(video: Video) -> NDArray[np.uint8]:
    """Return four frames, one of each quarter, as one picture ``[2 H, 2 W, 3]``."""
    n = len(video)
    a, b, c, d = (video.frames[(2 * i + 1) * n // 8].numpy() for i in range(4))
    return np.concatenate([np.concatenate([a, b], 1), np.concatenate([c, d], 1)])


def read_upload(path: Path, frames: int, most_bytes: int = MOST_BYTES) -> Video:
    """Decode sampled frames of an uploaded file; nothing but that file is opened.

    Args:
        path: of the file.
        frames: frames to sample, fewer if it has fewer.
        most_bytes: limit of all frames together, uncompressed.

    Returns:
        A video whose ``source`` is the name of the file.

    Raises:
        VideoError: as :func:`earlytom.video.load_video`, or the frames are too large; the message
            names the file, not the folder on the server.
    """
    images, times = [], []
    try:
        for frame in stream_video(path, frames):
            if frame.limit * frame.image.numel() > most_bytes:
                height, width = frame.image.shape[:2]
                raise VideoError(
                    f"the frames of {path.name} are too large: {width} x {height}, of which "
                    f"{frame.limit} need more than {most_bytes / 2**20:.0f} MiB"
                )
            images.append(frame.image)
            times.append(frame.timestamp)
    except VideoError as e:
        raise VideoError(str(e).replace(str(path.absolute()), path.name)) from e
    return Video(
        torch.stack(images),
        torch.tensor(times, dtype=torch.float64),
        fps=0.0,
        duration=0.0,
        indices=torch.arange(len(images)),
        exact_indices=False,
        source=path.name,
    )


def sweep(folder: Path, age: float, keep: Collection[Path] = ()) -> None:
    """Delete what is below ``folder`` and older than ``age`` seconds, but for ``keep``."""
    oldest = time.time() - age
    for path in sorted(folder.rglob("*"), reverse=True):  # what is in a folder comes before it
        try:
            if path in keep or path.lstat().st_mtime >= oldest:
                continue
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink()
        except OSError:  # not empty, or somebody was faster
            continue
