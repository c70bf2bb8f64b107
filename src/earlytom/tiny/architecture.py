"""What training, evaluation and publishing need to know about a model family.

World, questions, packing, curriculum and stages are the same for all families; everything that
differs is behind :class:`Architecture`, with one file per family.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib import import_module
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from earlytom.checks import check_choice
from earlytom.errors import UnsupportedModelError
from earlytom.tiny.config import ARCHITECTURES, DEFAULT_ARCH
from earlytom.tiny.vocabulary import USER_ID, VIDEO_ID
from earlytom.tiny.world import CELLS

PATCH = 8
TEXT_WIDTH = 256
PIXEL_MEAN = 0.5
PIXEL_STD = 0.25


class FrameEncoder(nn.Module):
    """Vision tower up to the language model, as one fast call that shares the model's parameters.

    ``forward(pixels [steps * step_frames, 3, H, W])`` gives tokens ``[steps, 49, D]``.  ``stride``
    skips layers (see stage 1).
    """

    stride: int = 1


class Architecture(ABC):
    """A model family; instances have no state.

    Attributes:
        name: its model type.
        step_frames: frames that share their visual tokens.
        frames_apart: whether the tokens of a step do not depend on which other frames a clip has,
            nor on the frame beside it, so that frames can be encoded once and cut into any clip.
        places_seen: whether the tower can know where in the picture a token is.
        places_given: whether the language model is told so by positions of several axes.
        before: ids in front of the video.
        behind: ids behind the video.
        extra_tokens: special tokens behind the common vocabulary, by attribute name.
        settings: what differs from the defaults of ``TrainConfig``.
        pitch: the family's part of the model card.
    """

    name: ClassVar[str]
    step_frames: ClassVar[int] = 1
    frames_apart: ClassVar[bool] = True
    places_seen: ClassVar[bool] = True
    places_given: ClassVar[bool] = False
    before: ClassVar[tuple[int, ...]] = (USER_ID,)
    behind: ClassVar[tuple[int, ...]] = ()
    extra_tokens: ClassVar[dict[str, str]] = {}
    settings: ClassVar[dict[str, Any]] = {}
    pitch: ClassVar[str]

    # ------------------------------------------------------------------ the model
    @abstractmethod
    def build_model(self, seed: int = 0) -> Any:
        """A freshly initialised model in float32."""

    @abstractmethod
    def encoder(self, model: Any, compiled: bool = True) -> FrameEncoder:
        """The vision side of ``model`` as one call."""

    @abstractmethod
    def freeze_vision(self, model: Any) -> None:
        """Stop training everything in front of the language model."""

    @abstractmethod
    def unused_parameters(self, model: Any) -> nn.Module | None:
        """A module of the tower that visual tokens do not pass, or None."""

    @abstractmethod
    def layer_outputs(self, model: Any) -> list[tuple[nn.Linear, nn.Linear]]:
        """Last linear layer of attention and MLP of every tower layer."""

    @abstractmethod
    def last_linear(self, model: Any) -> nn.Linear:
        """The linear layer whose outputs are the visual tokens."""

    # ------------------------------------------------------------------ the language model
    def video_end(self, model: Any) -> Tensor | None:
        """Embedding ``[D]`` that the model appends to a video itself, or None."""
        return None

    def positions(self, steps: int, text: int, interval: float | None = None) -> Tensor:
        """Positions of a prompt, as the model numbers it.

        Args:
            steps: of the video.
            text: tokens behind :meth:`prefix_ids`.
            interval: time positions per step, where the family has them; None: the usual.

        Returns:
            ``[L]`` or ``[axes, L]``.
        """
        return torch.arange(self.prefix_length(steps) + text)

    @property
    def intervals(self) -> Sequence[tuple[float | None, float]]:
        """``(time positions per step, share)`` that training draws from."""
        return [(None, 1.0)]

    def rotary(self, language_model: Any, hidden: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Rotary embedding ``cos``, ``sin`` ``[1, 1, L, head dim]`` at ``places``."""
        cos, sin = language_model.rotary_emb(hidden, places[None])
        return cos[:, None], sin[:, None]

    # ------------------------------------------------------------------ prompts
    def prefix_length(self, steps: int) -> int:
        """Columns of a prompt up to the end of its video."""
        return len(self.prefix_ids(steps * self.step_frames))

    def prefix_ids(self, frames: int) -> list[int]:
        """Ids of a prompt up to the end of its video of ``frames`` frames."""
        count = frames // self.step_frames * CELLS
        return [*self.before, *[VIDEO_ID] * count, *self.behind]

    @abstractmethod
    def inputs(self, pixels: Tensor, ids: Tensor) -> dict[str, Any]:
        """Arguments of ``model.forward`` for prompts with one video each.

        Args:
            pixels: ``[B, T, 3, H, W]`` from :func:`normalise`.
            ids: ``[B, L]``.
        """

    def more(self, frames: int, ids: Tensor) -> dict[str, Any]:
        """Arguments for text ``[B, L]`` that follows a cached :meth:`prefix_ids`."""
        return {"input_ids": ids}

    # ------------------------------------------------------------------ files
    @abstractmethod
    def processor_files(self) -> dict[str, dict[str, Any]]:
        """Contents of the processor's JSON files, by file name.

        Written by hand because the processor classes need torchvision, which this package does not.
        """


def architecture(name: str = DEFAULT_ARCH) -> Architecture:
    """The family of that name.

    Raises:
        ConfigError: there is none.
    """
    check_choice("arch", name, ARCHITECTURES)
    found: Architecture = import_module(f"earlytom.tiny.{name}").ARCHITECTURE
    return found


def architecture_of(model: Any) -> Architecture:
    """The family of a loaded model.

    Raises:
        UnsupportedModelError: no tiny model is of that family.
    """
    name = str(getattr(model.config, "model_type", None))
    if name not in ARCHITECTURES:
        raise UnsupportedModelError(f"there is no tiny model of type {name!r}")
    return architecture(name)


def build_model(seed: int = 0, arch: str = DEFAULT_ARCH) -> Any:
    """A freshly initialised model of a family, in float32."""
    return architecture(arch).build_model(seed)


def normalise(pixels: NDArray[np.uint8] | Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """``[..., H, W, 3]`` uint8 frames to ``[..., 3, H, W]``: ``(x / 255 - mean) / std``."""
    frames = torch.as_tensor(pixels).movedim(-1, -3).float()
    return ((frames / 255 - PIXEL_MEAN) / PIXEL_STD).to(dtype)


def pixel_settings() -> dict[str, Any]:
    """What the processor files of all families say about pixels."""
    return {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [PIXEL_MEAN] * 3,
        "image_std": [PIXEL_STD] * 3,
        "resample": 3,
        "rescale_factor": 1 / 255,
    }
