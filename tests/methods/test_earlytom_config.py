"""Settings of EarlyTom: validation, JSON, presets, merge points."""

from typing import Any

import pytest

from earlytom.errors import BudgetError, ConfigError
from earlytom.method import Method, list_methods
from earlytom.methods import EarlyTom, load_method
from earlytom.stages import InnerPoint

NAN = float("nan")

BAD: list[tuple[dict[str, Any], str]] = [
    ({"retention_ratio": 0}, "retention_ratio"),
    ({"retention_ratio": -0.1}, "retention_ratio"),
    ({"retention_ratio": 1.5}, "retention_ratio"),
    ({"retention_ratio": NAN}, "retention_ratio"),
    ({"retention_ratio": "0.5"}, "retention_ratio"),
    ({"positions": "somewhere"}, "positions"),
    ({"policy": "best"}, "policy"),
    ({"selection": "random"}, "selection"),
    ({"frame_similarity": "max"}, "frame_similarity"),
    ({"fuse": "weighted"}, "fuse"),
    ({"fuse": "first", "policy": "official"}, "fuse"),
    ({"merge_layers": (4, 1)}, "ascending"),
    ({"merge_layers": (1, 1)}, "ascending"),
    ({"merge_layers": (-2, 1)}, "merge_layers"),
    ({"merge_layers": [1, 4]}, "merge_layers"),
    ({"merge_layers": (1.0,)}, "merge_layers"),
    ({"worst_share": 0.0}, "worst_share"),
    ({"inner_ratio": 1.2}, "inner_ratio"),
    ({"ema": -0.1}, "ema"),
    ({"tau": 60}, "tau"),
    ({"tau": NAN}, "tau"),
    ({"tau_merge": 2.0, "policy": "paper"}, "tau_merge"),
    ({"tau_merge": 0.5}, "tau_merge"),
    ({"tau_merge": 0.5, "policy": "official"}, "tau_merge"),
    ({"max_window": 0}, "max_window"),
    ({"max_window": 2.5}, "max_window"),
    ({"inner_merge_layer": 0}, "inner_merge_layer"),
    ({"inner_merge_layer": True}, "inner_merge_layer"),
    ({"merge_rest": 1}, "merge_rest"),
    ({"merge_rest": True, "policy": "official"}, "merge_rest"),
    ({"merge_rest": True, "selection": "none"}, "merge_rest"),
    ({"encoder_budget": 0.0}, "encoder_budget"),
    ({"encoder_budget": 0.5, "policy": "paper"}, "encoder_budget"),
    ({"encoder_budget": 0.5, "merge_layers": ()}, "merges nowhere"),
    ({"encoder_budget": 0.5, "frames": (5, 3)}, "not both"),
    ({"frames": (5, 7)}, "not increase"),
    ({"frames": (5,)}, "one entry per merge point"),
    ({"frames": (5, 0)}, "frames"),
    ({"frames": [5, 3]}, "frames"),
    ({"frames": (5, 3), "merge_layers": (1,)}, "one entry per merge point"),
    ({"frames": (5, 3), "policy": "official"}, "frames"),
]


@pytest.mark.parametrize(("settings", "message"), BAD, ids=lambda v: str(v))
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EarlyTom(**settings)


def test_registered_by_import() -> None:
    assert "earlytom" in list_methods()
    assert load_method("earlytom", policy="paper") == EarlyTom(policy="paper")
    with pytest.raises(ConfigError, match="no setting 'merge_layer'; it has: "):
        load_method("earlytom", merge_layer=(1,))


@pytest.mark.parametrize(
    "method",
    [
        EarlyTom(),
        EarlyTom(frames=(9, 5), merge_layers=(2, 6), merge_rest=True, fuse="average"),
        EarlyTom(policy="paper", tau_merge=-0.5, max_window=4, merge_layers=()),
        EarlyTom.preset("mvbench", 0.1),
    ],
    ids=["default", "frames", "paper", "preset"],
)
def test_json_round_trip(method: EarlyTom, tmp_path: Any) -> None:
    assert Method.from_json(method.to_json()) == method
    method.save(tmp_path)
    assert Method.load(tmp_path) == method


def test_saved_config_has_ordinary_permissions_and_leaves_nothing_else(tmp_path: Any) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    saved = EarlyTom().save(tmp_path / "model")
    assert saved.stat().st_mode == plain.stat().st_mode
    assert list(saved.parent.iterdir()) == [saved]


def test_positions() -> None:
    assert EarlyTom().resolved_positions() == "keep"
    assert EarlyTom(policy="paper").resolved_positions() == "keep"
    assert EarlyTom(policy="official").resolved_positions() == "renumber"
    assert EarlyTom(policy="official", positions="keep").resolved_positions() == "keep"


@pytest.mark.parametrize(
    ("policy", "n_layers", "points"),
    [
        ("budget", 12, (1, 4)),
        ("budget", 26, (3, 10)),
        ("budget", 2, (0,)),
        ("budget", 1, ()),
        ("official", 26, (10, 21, 23)),
        ("official", 27, (10, 22, 24)),
        ("paper", 12, (4, 9, 10)),
    ],
)
def test_automatic_merge_points(policy: str, n_layers: int, points: tuple[int, ...]) -> None:
    assert EarlyTom(policy=policy).merge_points(n_layers) == points


def test_the_patch_embeddings_are_a_merge_point() -> None:
    method = EarlyTom(merge_layers=(-1, 4), encoder_budget=0.3, selection="global")
    assert method.merge_points(12) == (-1, 4)
    first, last = method.frame_counts(16, 49, 12)
    assert (5 * first + 7 * last) / (12 * 16) <= 0.3
    assert method.score_layer(12) == 4
    assert EarlyTom(merge_layers=(-1,), selection="global").score_layer(12) == 11
    with pytest.raises(ConfigError, match="merge_layers must be a tuple of integers >= -1"):
        EarlyTom(merge_layers=(-2, 4))


def test_merge_points_are_checked_against_the_depth() -> None:
    with pytest.raises(ConfigError, match=r"12 usable layers \(allowed: -1 for .*, 0..11\)"):
        EarlyTom(policy="official", merge_layers=(3, 12)).merge_points(12)
    with pytest.raises(ConfigError, match=r"encoder_budget 0\.5 cannot be met"):
        EarlyTom(encoder_budget=0.5, merge_layers=(5, 7)).merge_points(12)
    with pytest.raises(ConfigError, match="1 automatic merge points"):
        EarlyTom(frames=(5, 3)).merge_points(2)
    assert EarlyTom(encoder_budget=1.0, merge_layers=(11,)).merge_points(12) == (11,)
    with pytest.raises(ConfigError, match=r"allowed: 1..3"):
        EarlyTom(inner_merge_layer=4).inner_points(4)
    assert EarlyTom(inner_merge_layer=3).inner_points(4) == (InnerPoint(3),)
    assert EarlyTom().inner_points(4) == ()


def test_attention_is_asked_for_only_if_selection_ranks_by_it() -> None:
    assert EarlyTom().score_layer(12) is None
    assert EarlyTom(selection="topk").score_layer(12) == 4
    assert EarlyTom(selection="global", merge_layers=()).score_layer(12) == 11
    assert EarlyTom(policy="official").score_layer(26) == 23
    assert EarlyTom(policy="official", selection="uniform").score_layer(26) is None


def test_frame_counts() -> None:
    assert EarlyTom().frame_counts(16, 36, 12) == (11, 7)
    assert EarlyTom().frame_counts(16, 36) == (11, 7)
    assert EarlyTom(encoder_budget=0.58).frame_counts(16, 36, 12) == (10, 7)
    assert EarlyTom(encoder_budget=1.0).frame_counts(16, 36, 12) == (16, 16)
    assert EarlyTom().frame_counts(1, 36, 12) == (1, 1)
    # the token budget needs ceil(0.5 * 16) frames; 0.501 * 576 = 289 tokens need 9
    assert EarlyTom(retention_ratio=0.5).frame_counts(16, 36, 12) == (9, 8)
    assert EarlyTom(retention_ratio=0.501).frame_counts(16, 36, 12) == (9, 9)
    assert EarlyTom(retention_ratio=1.0).frame_counts(16, 36, 12) == (16, 16)
    with pytest.raises(ConfigError, match="number of encoder layers"):
        EarlyTom(merge_layers=(1, 4)).frame_counts(16, 36)
    with pytest.raises(ConfigError, match="policy 'paper'"):
        EarlyTom(policy="paper").frame_counts(16, 36, 12)


def test_exact_frames_that_cannot_be_met() -> None:
    assert EarlyTom(frames=(10, 7)).frame_counts(16, 36) == (10, 7)
    with pytest.raises(BudgetError, match="asks for 10 frames, but the video has 8"):
        EarlyTom(frames=(10, 7)).frame_counts(8, 36)
    with pytest.raises(BudgetError, match="keep at least 8 frames"):
        EarlyTom(frames=(10, 7), retention_ratio=0.5).frame_counts(16, 36)
    with pytest.raises(BudgetError):
        EarlyTom(frames=(10, 7), retention_ratio=1.0).frame_counts(16, 36)


@pytest.mark.parametrize(
    ("task", "ratio", "model", "tau", "layers"),
    [
        ("MVBench", 0.1, "llava-onevision-7b", 0.65, (8, 14, 20)),
        ("mvbench", 0.25, "llava-onevision-0.5b", 0.8, (6, 14, 20)),
        ("VideoMME", 0.15, "llava-onevision-7b", 0.4, (8, 21, 23)),
        ("video_mme", 0.25, "llava-onevision-7b", 0.7, (10, 21, 23)),
        ("VideoMME", 0.25, "llava-video-7b", 0.6, (10, 21, 23)),
        ("EgoSchema", 0.2, "llava-video-7b", 0.6, (10, 21, 23)),
        ("LongVideoBench", 0.25, "llava-onevision-7b", 0.8, (4, 14, 24)),
        ("LongVideoBench", 0.25, "llava-video-7b", 0.8, (6, 21, 23)),
    ],
)
def test_presets(task: str, ratio: float, model: str, tau: float, layers: tuple[int, ...]) -> None:
    m = EarlyTom.preset(task, ratio, model)
    assert (m.policy, m.tau, m.merge_layers) == ("official", tau, layers)
    assert (m.ema, m.max_window, m.inner_merge_layer, m.inner_ratio) == (0.9, 6, 18, 0.5)
    assert m.retention_ratio == ratio


def test_presets_can_be_changed_and_say_what_exists() -> None:
    assert EarlyTom.preset("egoschema", 0.1, policy="paper", tau=0.9).tau == 0.9
    with pytest.raises(ConfigError, match="egoschema, longvideobench, mvbench, videomme"):
        EarlyTom.preset("nextqa", 0.1)
    with pytest.raises(ConfigError, match=r"0\.1, 0\.15, 0\.2, 0\.25"):
        EarlyTom.preset("mvbench", 0.3)
    with pytest.raises(ConfigError, match="llava-onevision-7b"):
        EarlyTom.preset("mvbench", 0.1, "gpt")
