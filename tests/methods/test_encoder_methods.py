"""ToMe, PiToMe, FiCoCo and MustDrop: golden vectors and what all of them keep to."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from earlytom.errors import ConfigError
from earlytom.method import Method
from earlytom.methods import FiCoCo, MustDrop, PiToMe, ToMe
from tests import parity
from tests.methods.encoder_stage import (
    check_decisions_are_float32,
    check_encoder_method,
    encode,
)
from tests.methods.stage_two import DATA, FEW
from tests.ops.helpers import video

KINDS = {"tome": 2, "tome_vit": 1, "pitome": 3, "ficoco_v": 2, "mustdrop": 3}
VECTORS = sorted(p for k in KINDS for p in DATA.glob(f"{k}_[0-9]*.npz"))
EXACT = [ToMe, PiToMe, FiCoCo, MustDrop]
BOTH = [
    *(cls(retention_ratio=0.3) for cls in EXACT),
    ToMe(retention_ratio=0.4, inflection=-0.5, proportional=False),
    ToMe(policy="official", retention_ratio=0.4),
    PiToMe(policy="official", retention_ratio=0.3),
    FiCoCo(policy="official", retention_ratio=0.3),
    MustDrop(policy="official", retention_ratio=0.3),
]


def name_of(method: Method) -> str:
    return f"{method.name}-{method.policy}"  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", VECTORS, ids=lambda p: p.stem)
def test_vector(path: Path) -> None:
    assert parity.check_file(path)["problems"] == []


@pytest.mark.parametrize("name", KINDS)
def test_vectors_are_there_and_found_by_their_arrays(name: str, tmp_path: Path) -> None:
    source = sorted(DATA.glob(f"{name}_[0-9]*.npz"))
    assert len(source) == KINDS[name]
    renamed = tmp_path / "hidden.npz"
    renamed.write_bytes(source[0].read_bytes())
    assert parity.check_file(renamed)["kind"] == name


@pytest.mark.parametrize("method", BOTH, ids=name_of)
def test_common(method: Method) -> None:
    check_encoder_method(method, drops=isinstance(method, MustDrop))


@pytest.mark.parametrize("method", BOTH, ids=name_of)
def test_decisions_are_float32(method: Method) -> None:
    check_decisions_are_float32(method)


@settings(**FEW)
@given(
    st.sampled_from(EXACT),
    st.integers(1, 4),
    st.integers(2, 6),
    st.integers(2, 6),
    st.integers(5, 9),
    st.data(),
)
def test_any_count_is_exact(
    cls: type, frames: int, height: int, width: int, layers: int, data: st.DataObject
) -> None:
    n = height * width
    wanted = data.draw(st.integers(2, n))
    x = video(frames, n, 6, seed=data.draw(st.integers(0, 99)))
    run = encode(cls(), x, (height, width), layers, wanted)
    assert run.hidden.shape[1] == wanted
    assert run.state.owner.max() < wanted


@pytest.mark.parametrize("method", [ToMe(), PiToMe()], ids=name_of)
def test_merging_keeps_the_sum_over_patches(method: Method) -> None:
    x = video(3, 24, 8)
    state_sum = x.sum(1)
    run = encode(method, x, (4, 6), n_layers=1, wanted=13)
    total = (run.hidden * run.state.size[..., None]).sum(1)
    torch.testing.assert_close(total, state_sum + 0.1 * state_sum.roll(1, dims=1))


def test_owner_tells_who_is_in_a_token() -> None:
    x = video(3, 24, 8)
    run = encode(ToMe(), x, (4, 6), n_layers=4, wanted=7)
    counted = torch.stack([o.bincount(minlength=7) for o in run.state.owner])
    assert torch.equal(counted.float(), run.state.size)


@pytest.mark.parametrize("cls", [ToMe, PiToMe])
def test_too_few_layers_are_an_error(cls: type) -> None:
    with pytest.raises(
        ConfigError, match="3 points cannot reduce 24 tokens to 2; ask for a larger"
    ):
        encode(cls(), video(2, 24, 8), (4, 6), n_layers=3, wanted=2)


def test_where_they_act() -> None:
    assert ToMe().reduce_layers(26) == tuple(range(26))
    assert ToMe().patch_signals() == ("key",)
    assert ToMe().proportional_attention()
    assert not ToMe(policy="official").proportional_attention()
    assert not ToMe(proportional=False).proportional_attention()
    assert PiToMe().reduce_place == "attention"
    assert PiToMe().proportional_attention()
    assert not PiToMe(proportional=False).proportional_attention()
    assert not PiToMe(policy="official").proportional_attention()
    assert PiToMe(policy="official").reduce_place == "output"
    assert PiToMe(policy="official").patch_signals() == ()
    assert FiCoCo().reduce_layers(26) == tuple(range(12, 25))
    assert FiCoCo().reduce_layers(2) == (0,)
    assert FiCoCo().reduce_layers(1) == (0,)
    assert MustDrop().reduce_layers(26) == (0, 25)
    assert MustDrop().reduce_layers(1) == (0,)
    assert MustDrop(merge_layer=5).reduce_place == "output"
    for cls in EXACT:
        assert cls(retention_ratio=1.0).reduce_layers(26) == ()
        assert cls().resolved_positions() == "renumber"


def test_published_settings() -> None:
    assert FiCoCo().counts(13, (27, 27), 183) == tuple(729 - 42 * i for i in range(1, 14))
    left = ToMe(policy="official").counts(26, (27, 27), 121)
    removed = [a - b for a, b in zip((729, *left), left, strict=False)]
    assert removed[:3] == [32, 35, 34]
    assert removed[-3:] == [13, 12, 12]
    with pytest.raises(ConfigError, match="ported schedule cannot reduce 24 tokens to 1"):
        encode(ToMe(policy="official"), video(2, 24, 8), (4, 6), wanted=1)


def test_the_port_of_tome_protects_the_top_left_patch() -> None:
    x = video(3, 25, 8)
    run = encode(ToMe(policy="official"), x, (5, 5), wanted=5)
    assert (run.state.owner[:, 0] == 0).all()
    assert (run.state.size[:, 0] == 1).all()


def test_ficoco_removes_at_most_one_patch_of_a_window_first() -> None:
    # with as many removals as windows, the favoured ones of negative score go first
    m = FiCoCo(start=0.0)
    x = torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(1))
    run = encode(m, x, (4, 4), n_layers=2, wanted=12)
    assert run.left == [12]
    assert run.state.size.sum(1).tolist() == pytest.approx([16.0, 16.0])


def test_mustdrop_merges_flat_windows_and_keeps_what_attention_looks_at() -> None:
    x = torch.randn(1, 16, 8, generator=torch.Generator().manual_seed(1))
    flat = [0, 1, 4, 5]
    x[0, flat] = x[0, 0].clone()
    m = MustDrop(window_share=0.25)
    assert m.windows((4, 4), 4) == 1
    run = encode(m, x, (4, 4), n_layers=3, wanted=13)
    assert run.left == [13, 13]
    assert run.state.owner[0, flat].unique().numel() == 1
    assert sorted(run.state.size[0].tolist()) == [1.0] * 12 + [4.0]
    run = encode(m, x, (4, 4), n_layers=3, wanted=3)
    assert run.left == [13, 3]
    assert (run.state.owner >= -1).all()
    assert MustDrop(policy="official").windows((27, 27), 49) == 169
    assert MustDrop().windows((27, 27), 49) == 84
    assert MustDrop().windows((27, 27), 700) == 9


def test_signals_are_needed() -> None:
    class NoKeys(ToMe):
        def patch_signals(self) -> tuple[str, ...]:
            return ()

    with pytest.raises(ConfigError, match="needs attention keys"):
        encode(NoKeys(), video(2, 24, 8), (4, 6))


@pytest.mark.parametrize(
    ("cls", "settings_", "message"),
    [
        (ToMe, {"policy": "paper"}, "policy must be one of exact, official"),
        (ToMe, {"inflection": 1.5}, r"inflection must be a number in \[-1, 1\]"),
        (ToMe, {"proportional": 1}, "proportional must be true or false"),
        (PiToMe, {"proportional": None}, "proportional must be true or false"),
        (PiToMe, {"margin": 0.0}, r"margin must be a number in \(0, 1\]"),
        (PiToMe, {"alpha": 2}, "alpha must be"),
        (FiCoCo, {"beta": -0.1}, r"beta must be a number in \[0, 1\]"),
        (FiCoCo, {"start": 1.1}, "start must be"),
        (MustDrop, {"window": (1, 1)}, "more than one patch"),
        (MustDrop, {"window": 2}, "two integers"),
        (MustDrop, {"merge_layer": -1}, "merge_layer an integer >= 0"),
        (MustDrop, {"window_share": 2}, "window_share must be"),
    ],
)
def test_settings_are_checked(cls: type, settings_: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cls(**settings_)


def test_mustdrop_needs_its_layer() -> None:
    with pytest.raises(ConfigError, match="merge_layer 5 must be in front of the last of 6 layers"):
        MustDrop(merge_layer=5).reduce_layers(6)
