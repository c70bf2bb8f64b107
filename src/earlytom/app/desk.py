"""One model that several people ask: checks of what they want, and one call at a time."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

from earlytom.app.clips import Sample, make_samples, read_upload
from earlytom.catalog import Entry, catalog
from earlytom.errors import ConfigError, EarlyTomError, VideoError
from earlytom.hf.api import fitted
from earlytom.inspect import Inspection, inspect_video
from earlytom.pipeline import VideoQA
from earlytom.registry import load_method
from earlytom.video import Video
from earlytom.video.sampling import Sampling

MOST_TEXT = 1000  # characters of a question


class Desk:
    """A model behind a lock.

    A method on a model belongs to one call (``docs/architecture.md``, Limits), so calls take turns.
    Everything about a call is in its arguments and its result; nothing is kept between calls.

    Args:
        qa: the model.
        frames: frames of a video; None: what the model takes by default.
        max_new_tokens: length limit of the answers.

    Attributes:
        samples: generated clips.
        methods: what can be chosen: all registered methods that work with their defaults.

    Raises:
        VideoError: ``frames`` out of range.
    """

    def __init__(self, qa: VideoQA, frames: int | None = None, max_new_tokens: int = 64) -> None:
        self.qa = qa
        self.frames = qa.frames if frames is None else frames
        Sampling(self.frames)
        self.max_new_tokens = max_new_tokens
        self.samples: tuple[Sample, ...] = make_samples(self.frames)
        self.methods: tuple[Entry, ...] = tuple(e for e in catalog() if _complete(e.name))
        self._turn = threading.Lock()

    def sample(self, number: int) -> Sample:
        """Return a generated clip.

        Raises:
            VideoError: there is no clip of this number.
        """
        if not 0 <= number < len(self.samples):
            raise VideoError(f"there is no clip {number + 1}; choose 1 to {len(self.samples)}")
        return self.samples[number]

    def upload(self, path: Path) -> Video:
        """Decode an uploaded video.

        Raises:
            VideoError: it is gone or cannot be used; see
                :func:`earlytom.app.clips.read_upload`.
        """
        try:
            os.utime(path)  # kept for some time since its last use
        except OSError as e:
            raise VideoError("the uploaded video is not here any more; upload it again") from e
        return read_upload(path, self.frames)

    def ask(
        self,
        video: Video,
        question: str | None,
        method: str,
        retention_ratio: float | None,
        advance: Callable[[str], None] = lambda label: None,
    ) -> Inspection:
        """Ask with all tokens and with a method, when it is this call's turn.

        Args:
            video: decoded frames.
            question: plain text; None is refused like an empty one.
            method: registered name.
            retention_ratio: share of visual tokens to keep; None is refused.
            advance: called with a label before each of the two starts.

        Raises:
            ConfigError: no question or a very long one; unknown method; ratio not in (0, 1]; the
                method does not fit the model or the video.
            VideoError: the video cannot be used.
            EarlyTomError: see :meth:`earlytom.pipeline.VideoQA.ask`.
        """
        asked = check_question(question)
        chosen = fitted(load_method(method, retention_ratio=retention_ratio), self.qa.model)
        with self._turn:
            return inspect_video(
                self.qa,
                video,
                asked,
                {f"{method}, {100 * chosen.retention_ratio:g} %": chosen},
                max_new_tokens=self.max_new_tokens,
                advance=advance,
            )


def check_question(question: object) -> str:
    """Return the question without space around it.

    Raises:
        ConfigError: it is empty or too long.
    """
    asked = question.strip() if isinstance(question, str) else ""
    if not asked:
        raise ConfigError("type a question, or choose one")
    if len(asked) > MOST_TEXT:
        raise ConfigError(
            f"the question has {len(asked)} characters; at most {MOST_TEXT} are allowed"
        )
    return asked


def _complete(name: str) -> bool:
    """Whether a method needs no settings (``compose`` does)."""
    try:
        load_method(name)
    except EarlyTomError:
        return False
    return True
