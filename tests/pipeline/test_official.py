"""The inputs built here equal those of the official processors, where these can be loaded.

They need torchvision, so `make test-vllm` runs this file too.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from earlytom.preprocess import Preprocessor
from earlytom.video import load_video

pytest.importorskip("torchvision")


def frames(t: int, h: int = 60, w: int = 90, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (t, h, w, 3), dtype=torch.uint8, generator=g)


def test_llava_onevision(folder: Path) -> None:
    official = Preprocessor.from_pretrained(folder, official=True)
    own = Preprocessor.from_pretrained(folder, official=False)
    a, b, c = (frames(4, seed=seed) for seed in range(3))
    for videos, questions in (
        (a, "what colour is the circle"),
        ([a, b], "which moves first"),
        ([a, b], ["what is the shape", "which moves"]),
        ([[a, b], [c]], ["what", "which moves first last red"]),
    ):
        x, y = official(videos, questions), own(videos, questions)
        assert set(x) == set(y)
        assert all(torch.equal(x[k], y[k]) for k in x)


def test_qwen(qwen: Path, clip: Path) -> None:
    official = Preprocessor.from_pretrained(qwen, official=True)
    own = Preprocessor.from_pretrained(qwen, official=False)
    file = load_video(clip, 7)
    for videos, questions in ((frames(4), "what?"), ([[file], [file, file]], ["what?", "who?"])):
        x, y = official(videos, questions), own(videos, questions)
        assert set(x) == set(y)
        assert [own.tokenizer.decode(r) for r in x["input_ids"]] == [
            own.tokenizer.decode(r) for r in y["input_ids"]
        ]
        seconds = x.pop("second_per_grid_ts", None)
        if seconds is not None:
            assert torch.allclose(seconds, y["second_per_grid_ts"], rtol=1e-5)
        assert all(torch.equal(x[k], y[k]) for k in x)
