"""The feature bank: shots drawn and encoded once, so that the language stage is cheap."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

    def __call__(self, index: int) -> tuple[Shot, NDArray[np.uint8], NDArray[np.int8]]:
        """Shot number ``index``: metadata, pixels ``[16, 112, 112, 3]``, items ``[16, 49]``."""
        shot = make_shot(np.random.default_rng((self.seed, 3 + self.split, index)))
        pixels, labels = render(shot)
        assert isinstance(labels, CellLabels)
        return shot, pixels, labels.item.astype(np.int8)


@dataclass
class Scenery:
    """What the clip composer needs of a bank: the shots and what each cell shows."""

    pool: ShotPool
    items: NDArray[np.int8]  # [N, 16, 49], see CellLabels.item


def load_scenery(path: Path) -> Scenery:
    """Read the scenery file of a bank (written by :func:`build_bank` on this machine)."""
    with path.open("rb") as file:
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
