"""VidCom2: golden vectors of both released codes, counts, and which frames get more."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from earlytom.errors import ConfigError
from earlytom.methods import VidCom2
from earlytom.ops.uniqueness import frame_budgets, least_typical, settle, typicality
from tests import parity
from tests.methods.stage_two import DATA, FEW, check_common, check_contract, check_found_by_arrays
from tests.ops.helpers import video

VECTORS = sorted(DATA.glob("vidcom2_*.npz"))
POLICIES = ["exact", "official", "vllm"]


@pytest.mark.parametrize("path", VECTORS, ids=lambda p: p.stem)
def test_vector(path: Path) -> None:
    assert parity.check_file(path)["problems"] == []


@pytest.mark.parametrize(("name", "files"), [("vidcom2", 3), ("vidcom2_vllm", 4)])
def test_vectors_are_there_and_found_by_their_arrays(name: str, files: int, tmp_path: Path) -> None:
    check_found_by_arrays(name, files, tmp_path)


@pytest.mark.parametrize("policy", POLICIES)
def test_common(policy: str) -> None:
    check_common(VidCom2(policy=policy, retention_ratio=0.4))


@settings(**FEW)
@given(
    st.integers(1, 12),
    st.integers(1, 9),
    st.integers(1, 99),
    st.sampled_from(POLICIES),
    st.integers(0, 99),
)
def test_counts(n: int, size: int, percent: int, policy: str, seed: int) -> None:
    x = video(n, size, 6, seed=seed)
    index = check_contract(VidCom2(policy=policy, retention_ratio=percent / 100), x)
    if policy == "vllm":
        q = (100 - percent) / 100
        assert index.numel() == max(n, int(n * size * (1 - q)))
    if policy == "official":
        assert (index // size).unique().numel() == n, "every frame keeps a token"
        in_video, _ = typicality(x)
        assert index.numel() == int(frame_budgets(in_video, percent / 100).sum())


def repaired(mask: Tensor, similar: Tensor, count: int) -> list[int]:
    """The repair of the released code, token by token."""
    flat, score = mask.flatten().tolist(), similar.flatten().tolist()
    while sum(flat) > count:
        flat[max((i for i, k in enumerate(flat) if k), key=lambda i: score[i])] = False
    while sum(flat) < count:
        flat[min((i for i, k in enumerate(flat) if not k), key=lambda i: score[i])] = True
    return [i for i, k in enumerate(flat) if k]


@settings(**FEW)
@given(st.integers(1, 5), st.integers(1, 6), st.data())
def test_settle_is_the_released_repair(n: int, size: int, data: st.DataObject) -> None:
    g = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    similar = torch.randperm(n * size, generator=g).view(n, size).float()
    mask = torch.rand(n, size, generator=g) < 0.5
    count = data.draw(st.integers(1, n * size))
    assert settle(mask, similar, count).tolist() == repaired(mask, similar, count)


def test_least_typical_counts_differ_per_frame() -> None:
    similar = torch.tensor([[3.0, 1, 2, 1], [0, 0, 0, 0], [4, 3, 2, 1]])
    mask = least_typical(similar, torch.tensor([2, 1, 4]))
    assert mask.int().tolist() == [[0, 1, 0, 1], [1, 0, 0, 0], [1, 1, 1, 1]]


def test_an_unusual_frame_gets_up_to_twice_its_share() -> None:
    x = video(1, 40, 8).repeat(8, 1, 1)
    x[5] = -x[5]
    in_video, _ = typicality(x)
    counts = frame_budgets(in_video, 0.25)
    assert counts.argmax() == 5
    assert 10 < int(counts[5]) <= 20
    assert counts.tolist() == [*[int(counts[0])] * 5, int(counts[5]), *[int(counts[0])] * 2]


def test_only_the_stillest_half_of_the_channels_counts() -> None:
    x = video(4, 9, 8)
    loud = x.flatten(0, 1).var(0).sort().indices[4:]
    other = x.clone()
    other[..., loud] = other[..., loud].flip(0) * 3
    assert torch.equal(typicality(x)[0], typicality(other)[0])
    assert torch.equal(typicality(x)[1], typicality(other)[1])


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="policy must be one of exact, official, vllm"):
        VidCom2(policy="paper")
    assert VidCom2().resolved_positions() == "renumber"
    assert VidCom2(policy="vllm").resolved_positions() == "keep"
    assert VidCom2(policy="vllm", positions="respace").resolved_positions() == "respace"
