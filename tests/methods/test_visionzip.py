"""VisionZip: golden vectors, the split of a frame, and merging against a loop."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from earlytom.errors import ConfigError
from earlytom.methods import VisionZip
from earlytom.ops.contextual import zip_frames
from earlytom.stages import VideoFeatures, VideoState
from tests import parity
from tests.methods.stage_two import (
    DATA,
    FEW,
    check_common,
    check_contract,
    check_found_by_arrays,
    choose,
)
from tests.ops.helpers import video

VECTORS = sorted(DATA.glob("visionzip_*.npz"))


@pytest.mark.parametrize("path", VECTORS, ids=lambda p: p.stem)
def test_vector(path: Path) -> None:
    assert parity.check_file(path)["problems"] == []


@pytest.mark.parametrize(("name", "files"), [("visionzip", 4), ("visionzip_clip", 3)])
def test_vectors_are_there_and_found_by_their_arrays(name: str, files: int, tmp_path: Path) -> None:
    check_found_by_arrays(name, files, tmp_path)


@pytest.mark.parametrize("policy", ["exact", "official"])
def test_common(policy: str) -> None:
    check_common(VisionZip(policy=policy, retention_ratio=0.4))


@settings(**FEW)
@given(
    st.integers(1, 12),
    st.integers(1, 9),
    st.integers(1, 100),
    st.sampled_from([0.0, 0.5, 54 / 64, 1.0]),
    st.integers(0, 99),
)
def test_counts(n: int, size: int, percent: int, share: float, seed: int) -> None:
    x = video(n, size, 5, seed=seed)
    m = VisionZip(retention_ratio=percent / 100, dominant_ratio=share)
    counts = m.split(n, size)
    index = check_contract(m, x)
    assert (index // size).bincount(minlength=n).tolist() == [d + c for d, c in counts]
    assert max(d + c for d, c in counts) - min(d + c for d, c in counts) <= 1
    check_contract(VisionZip(policy="official", retention_ratio=percent / 100), x)


@pytest.mark.parametrize(
    ("percent", "counts"), [(25, (42, 8)), (20, (33, 7)), (15, (25, 5)), (10, (16, 4))]
)
def test_published_split(percent: int, counts: tuple[int, int]) -> None:
    m = VisionZip(policy="official", retention_ratio=percent / 100)
    assert m.split(32, 196) == [counts] * 32


def zip_one(
    x: Tensor, score: Tensor, keys: Tensor, d: int, c: int, average: bool
) -> dict[int, tuple[Tensor, int]]:
    """One frame, token by token: place -> value and number of members."""
    size = x.shape[0]
    dominant = sorted(range(size), key=lambda s: (-float(score[s]), s))[:d]
    rest = [s for s in range(size) if s not in dominant]
    targets = rest[:: max(1, len(rest) // c)][:c] if c else []
    joined: dict[int, list[int]] = {t: [] for t in targets}
    for s in rest:
        if targets and s not in targets:
            similar = [float(torch.cosine_similarity(keys[s], keys[t], dim=0)) for t in targets]
            joined[targets[similar.index(max(similar))]].append(s)
    out = {s: (x[s], 1) for s in dominant}
    for t, members in joined.items():
        if average or not members:
            value = x[[t, *members]].mean(0)
        else:
            value = x[t] + x[members].mean(0)
        out[t] = (value, 1 + len(members))
    return dict(sorted(out.items()))


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 4), st.integers(1, 10), st.booleans(), st.data())
def test_merging_equals_a_loop(n: int, size: int, average: bool, data: st.DataObject) -> None:
    g = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    x, keys = torch.randn(n, size, 5, generator=g), torch.randn(n, size, 3, generator=g)
    score = torch.rand(n, size, generator=g)
    dominant = [data.draw(st.integers(0, size)) for _ in range(n)]
    contextual = [data.draw(st.integers(0, size - d)) for d in dominant]
    out = zip_frames(x, score, keys, dominant, contextual, average)
    frames = zip(x, score, keys, dominant, contextual, strict=True)
    loops = [zip_one(*frame, average) for frame in frames]
    assert out.index.tolist() == [i * size + s for i, f in enumerate(loops) for s in f]
    assert out.weight.tolist() == [w for f in loops for _, w in f.values()]
    if out.index.numel():
        expected = torch.stack([v for f in loops for v, _ in f.values()])
        torch.testing.assert_close(out.features, expected)
    copies = x.flatten(0, 1)[out.index]
    assert torch.equal(out.features[out.dominant], copies[out.dominant])
    assert int(out.dominant.sum()) == sum(dominant)


def test_every_token_is_in_exactly_one_kept_token() -> None:
    x = video(6, 20, 8)
    chosen = choose(VisionZip(retention_ratio=0.3), x)
    assert chosen is not None
    assert chosen.features is not None
    assert chosen.weight is not None
    assert float(chosen.weight.sum()) == 6 * 20
    total = (chosen.features * chosen.weight[:, None]).sum(0)
    torch.testing.assert_close(total, x.sum((0, 1)), atol=1e-4, rtol=1e-5)


def test_what_it_asks_of_the_engine() -> None:
    m = VisionZip(retention_ratio=0.3)
    assert m.score_layer(26) == 25
    assert m.needs_keys()
    x = video(3)
    video_without = VideoFeatures(x, None, (1, 6), VideoState.start(3))
    with pytest.raises(ConfigError, match="needs received attention and keys"):
        m.select_tokens(video_without)


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="policy must be one of exact, official"):
        VisionZip(policy="clip")
    with pytest.raises(ConfigError, match=r"dominant_ratio must be a number in \[0, 1\]"):
        VisionZip(dominant_ratio=1.5)
    assert VisionZip().resolved_positions() == "renumber"
