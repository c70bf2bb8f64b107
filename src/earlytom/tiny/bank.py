"""Where the language stage gets its shots and their visual tokens from.

A bank has the shots encoded once, frame by frame, which makes the language stage cheap
(:class:`Banked`).  Where tokens depend on neighbouring frames, shots are drawn anew for every clip
and encoded as the clip shows them (:class:`Live`).
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from earlytom.files import atomic_write
from earlytom.tiny.architecture import TEXT_WIDTH, FrameEncoder, normalise
from earlytom.tiny.composer import ShotPool
from earlytom.tiny.render import CellLabels, render
from earlytom.tiny.stream import stream
from earlytom.tiny.world import CELLS, SHOT_FRAMES, Shot, make_shot


@dataclass(frozen=True)
class DrawShot:
    """Picklable source of bank shots with pixels; ``split`` separates training from validation."""

    seed: int
    split: int

    def shot(self, index: int) -> Shot:
        """Metadata of shot number ``index``."""
        return make_shot(np.random.default_rng((self.seed, 3 + self.split, index)))

    def __call__(self, index: int) -> tuple[Shot, NDArray[np.uint8], NDArray[np.int8]]:
        """Shot number ``index``: metadata, pixels ``[16, 112, 112, 3]``, items ``[16, 49]``."""
        shot = self.shot(index)
        pixels, labels = render(shot)
        assert isinstance(labels, CellLabels)
        return shot, pixels, labels.item.astype(np.int8)


@dataclass(frozen=True)
class ShotSet:
    """The first ``size`` shots of :class:`DrawShot`, without pixels."""

    seed: int
    split: int
    size: int


@dataclass
class Scenery:
    """What the clip composer needs: the shots, and what each cell shows if that is known."""

    pool: ShotPool
    items: NDArray[np.int8] | None  # [N, 16, 49], see CellLabels.item


@lru_cache(maxsize=2)
def load_scenery(source: Path | ShotSet) -> Scenery:
    """Draw a set of shots, or read the file that :func:`build_bank` wrote on this machine."""
    if isinstance(source, ShotSet):
        draw = DrawShot(source.seed, source.split)
        return Scenery(ShotPool([draw.shot(i) for i in range(source.size)]), None)
    with source.open("rb") as file:
        shots, items = pickle.load(file)
    return Scenery(ShotPool(shots), items)


@torch.no_grad()
def build_bank(
    encoder: FrameEncoder,
    folder: Path,
    *,
    seed: int,
    split: int,
    size: int,
    device: torch.device,
    workers: int,
    report: Callable[[int], None] = lambda _: None,
) -> None:
    """Encode ``size`` shots; write ``features.pt`` ``[N, 16, 49, D]`` and ``scenery.pkl``."""
    features = torch.empty(size, SHOT_FRAMES, CELLS, TEXT_WIDTH, dtype=torch.bfloat16)
    shots: list[Shot] = []
    items = np.empty((size, SHOT_FRAMES, CELLS), np.int8)
    group: list[NDArray[np.uint8]] = []
    for index, (shot, pixels, item) in enumerate(stream(DrawShot(seed, split), 0, size, workers)):
        shots.append(shot)
        items[index] = item
        group.append(pixels)
        if len(group) == 4 or index + 1 == size:
            batch = normalise(np.concatenate(group), torch.bfloat16).to(device)
            tokens = encoder(batch).view(len(group), SHOT_FRAMES, CELLS, TEXT_WIDTH)
            features[index + 1 - len(group) : index + 1] = tokens.cpu()
            group = []
            report(index + 1)
    atomic_write(folder / "scenery.pkl", lambda p: p.write_bytes(pickle.dumps((shots, items))))
    atomic_write(folder / "features.pt", lambda p: torch.save(features, p))


def load_features(folder: Path) -> Tensor:
    """The encoded tokens of a bank, ``[N, 16, 49, D]`` bfloat16."""
    features: Any = torch.load(folder / "features.pt", weights_only=True)
    return torch.as_tensor(features)


class Pictures(Protocol):
    """What is needed of a batch to get its visual tokens."""

    shot: NDArray[np.int64]
    frame: NDArray[np.int64]
    pixels: NDArray[np.uint8] | None


class Footage(Protocol):
    """Shots and their visual tokens; ``scenery`` is what :func:`load_scenery` takes."""

    scenery: Path | ShotSet

    def tokens(self, batch: Pictures) -> Tensor:
        """Tokens ``[B, steps * 49, D]`` of the clips of a batch."""
        ...


class Banked:
    """A finished bank."""

    def __init__(self, folder: Path) -> None:
        self.scenery: Path | ShotSet = folder / "scenery.pkl"
        self._features = load_features(folder)

    def tokens(self, batch: Pictures) -> Tensor:
        """Look the frames up."""
        found = self._features[torch.from_numpy(batch.shot), torch.from_numpy(batch.frame)]
        return found.flatten(1, 2)


class Live:
    """Shots whose clips are encoded as they come; batches bring their pixels."""

    def __init__(self, encoder: FrameEncoder, shots: ShotSet, device: torch.device) -> None:
        self.scenery: Path | ShotSet = shots
        self._encoder, self._device = encoder, device

    @torch.no_grad()
    def tokens(self, batch: Pictures) -> Tensor:
        """Encode the clips."""
        assert batch.pixels is not None
        frames = normalise(batch.pixels, torch.bfloat16).to(self._device).flatten(0, 1)
        return self._encoder(frames).view(len(batch.pixels), -1, TEXT_WIDTH)
