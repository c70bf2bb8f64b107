import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from earlytom.bench.tune import Branch, Space, TuneConfig, built_in_space, parse_grid
from earlytom.errors import ConfigError
from earlytom.registry import load_method, method_class


def test_grid():
    assert parse_grid("tau=0.3,0.5") == ("tau", (0.3, 0.5))
    assert parse_grid("merge_layers=[1,4], [2] ,none") == ("merge_layers", ((1, 4), (2,), None))
    assert parse_grid("selection=topk,diversity") == ("selection", ("topk", "diversity"))
    assert parse_grid("merge_rest=true,False") == ("merge_rest", (True, False))
    for bad in ("tau", "tau=", "=1", "tau=1,,2", "my tau=1"):
        with pytest.raises(ConfigError, match="expected name=value"):
            parse_grid(bad)
    with pytest.raises(ConfigError, match="occurs twice"):
        parse_grid("tau=0.5,0.5")


@pytest.mark.parametrize("limit", [None, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("n_layers", [4, 12, 27])
@pytest.mark.parametrize("method", ["earlytom", "afterimage"])
def test_built_in_spaces_are_usable(method, n_layers, limit):
    space = built_in_space(method, n_layers, limit)
    known = {f.name for f in dataclasses.fields(method_class(method))}

    def fits(settings):
        assert set(settings) <= known
        made = load_method(method, **settings)  # every combination is a valid config
        try:
            made.merge_points(n_layers), made.reuse_layer(n_layers)
        except ConfigError:
            return False
        return True

    drawn = space.draw(40, 0, fits)
    assert len(drawn) == 40
    if limit is not None:
        assert all(s.get("encoder_budget", 0) <= limit for s in drawn)
        first = [s["merge_layers"][0] + 1 for s in drawn if "merge_layers" in s]
        assert all(f <= max(1, limit * n_layers) for f in first)
    if method == "earlytom":
        assert {s["policy"] for s in drawn} == {"budget", "official", "paper"}


def test_no_space_for_other_methods():
    assert built_in_space("holitom", 12) is None


def test_draw_is_seeded_distinct_and_filtered():
    space = Space((Branch({"a": tuple(range(50)), "b": tuple(range(50))}),))
    even = space.draw(30, 1, lambda s: s["a"] % 2 == 0)
    assert even == space.draw(30, 1, lambda s: s["a"] % 2 == 0)
    assert even != space.draw(30, 2, lambda s: s["a"] % 2 == 0)
    assert len({(s["a"], s["b"]) for s in even}) == 30
    assert all(s["a"] % 2 == 0 for s in even)
    with pytest.raises(ConfigError, match="no combination"):
        space.draw(3, 0, lambda s: False)


@given(st.integers(1, 5), st.integers(1, 5), st.integers(25, 60))
def test_a_small_space_is_taken_whole(a, b, count):
    space = Space((Branch({"a": tuple(range(a)), "b": tuple(range(b))}),))
    assert len(space.draw(count, 0)) == a * b


def test_refining():
    space = Space((Branch({"kind": ("x",), "a": (1, 2)}), Branch({"kind": ("y",), "b": (3, 4)})))
    only = space.refined({"kind": ("y",)})
    assert only.branches == (Branch({"kind": ("y",), "b": (3, 4)}),)
    wider = space.refined({"a": (7,), "c": (5, 6)})
    assert wider.branches[0].values == {"kind": ("x",), "a": (7,), "c": (5, 6)}
    assert wider.branches[1].values == {"kind": ("y",), "b": (3, 4), "a": (7,), "c": (5, 6)}
    assert Space(()).refined({"a": (1, 2)}).branches == (Branch({"a": (1, 2)}),)


def test_config_names_what_is_wrong():
    for settings, message in (
        ({"grid": {"taw": (1,)}}, "no setting 'taw'"),
        ({"fixed": {"taw": 1}}, "no setting 'taw'"),
        ({"grid": {"retention_ratio": (0.1,)}}, "with --ratio"),
        ({"grid": {"tau": (0.1,)}, "fixed": {"tau": 0.2}}, "both fixed and searched"),
        ({"ratios": ()}, "one or more different ratios"),
        ({"ratios": (0.1, 0.1)}, "one or more different ratios"),
        ({"ratios": (2.0,)}, "retention_ratio must be"),
        ({"method": "magic"}, "unknown method"),
    ):
        with pytest.raises(ConfigError, match=message):
            TuneConfig(**settings)
