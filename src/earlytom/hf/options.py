"""How a method is run on a model, apart from its own settings."""

from __future__ import annotations

from dataclasses import dataclass

from earlytom.checks import check_count, check_flag


@dataclass(frozen=True)
class Options:
    """Options of :func:`earlytom.compress`.

    Args:
        frames_per_chunk: frames that the vision encoder takes at a time; None: all of a call.
        images: select tokens of images as well.

    Raises:
        ConfigError: not a number of frames, or not a truth value.
    """

    frames_per_chunk: int | None = None
    images: bool = False

    def __post_init__(self) -> None:
        if self.frames_per_chunk is not None:
            check_count("frames_per_chunk", self.frames_per_chunk)
        check_flag("images", self.images)
