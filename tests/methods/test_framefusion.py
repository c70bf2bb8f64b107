import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from earlytom.errors import BudgetError, ConfigError
from earlytom.method import Method
from earlytom.methods import FrameFusion
from tests.inner_runs import prompt, run_inside
from tests.methods.merging import check_vectors


def test_vectors() -> None:
    check_vectors("framefusion_0*.npz", 2)


@settings(max_examples=60, deadline=None)
@given(
    ratio=st.sampled_from([0.1, 0.2, 0.25, 0.3, 0.5, 0.8, 0.97]),
    still=st.floats(0, 1),
    frames=st.integers(1, 12),
    n_layers=st.sampled_from([4, 12, 28, 40]),
    newline=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_average_over_layers_is_the_ratio(
    ratio: float, still: float, frames: int, n_layers: int, newline: bool, seed: int
) -> None:
    hidden, patch = prompt(frames, 25, still=still, seed=seed, newline=newline)
    run = run_inside(FrameFusion(retention_ratio=ratio), hidden, patch, n_layers)
    assert run.seen == sorted(run.seen, reverse=True)
    floor = 1 / frames / n_layers  # layer 0 sees at least one frame
    if ratio > 1.1 * floor + 1 / frames / 25:
        assert run.average(frames * 25) <= ratio
    # steps that merge stop above the budget only by what rounding leaves
    assert run.average(frames * 25) > ratio - 1 / (frames * 25)
    assert run.seen[-1] >= 1
    assert int((run.patch == -2).sum()) == newline, "newline tokens stay"


def test_still_videos_are_merged_before_the_first_layer() -> None:
    hidden, patch = prompt(10, 16, still=1.0)
    run = run_inside(FrameFusion(retention_ratio=0.3), hidden, patch)
    assert run.seen == [48] * 28
    first = run_inside(FrameFusion(retention_ratio=0.1), hidden, patch)
    assert first.seen == [16] * 28
    torch.testing.assert_close(first.hidden[3:19], hidden[3:163].view(10, 16, -1).mean(0))
    assert first.column.tolist() == [*range(19), *range(163, 168)]


def test_moving_videos_are_pruned_by_the_last_query() -> None:
    hidden, patch = prompt(6, 16, still=0.0)
    run = run_inside(FrameFusion(retention_ratio=0.5, tau=0.999), hidden, patch)
    assert run.seen[0] == 96
    assert run.seen[1] < 96
    assert torch.equal(run.hidden, hidden[run.column]), "nothing repeats, nothing is averaged"
    visual = torch.arange(len(patch))[patch >= 0]
    score = (
        torch.stack([hidden, hidden.roll(1, -1)])
        @ torch.stack([hidden[-1], hidden[-1].roll(1)])[..., None]
    )
    attention = (score[..., 0] / 8**0.5).softmax(1).mean(0)
    best = visual[attention[visual].argsort(descending=True)[: run.seen[-1]]]
    assert set(run.column[run.patch >= 0].tolist()) == set(best.tolist())


def test_videos_of_one_prompt_are_not_merged_into_each_other() -> None:
    hidden, patch = prompt(1, 16)
    both, patches = torch.cat([hidden, hidden]), torch.cat([patch, patch])
    run = run_inside(FrameFusion(retention_ratio=0.9), both, patches)
    assert torch.equal(run.hidden, both[run.column])


def test_an_early_finish_spares_the_later_layers() -> None:
    """Three layers' worth of budget are not spent on the first three layers."""
    hidden, patch = prompt(20, 25, still=0.2)
    run = run_inside(FrameFusion(retention_ratio=0.1), hidden, patch)
    assert run.seen[-1] >= 0.02 * 500
    moving = run_inside(
        FrameFusion(retention_ratio=0.25, tau=1.0), *prompt(20, 25, still=0.0), n_layers=4
    )
    assert moving.seen == [125] * 4


def test_official_stops_where_the_budget_is_used_up() -> None:
    hidden, patch = prompt(20, 25, still=0.0)
    method = FrameFusion(policy="official", retention_ratio=0.03, tau=0.99)
    with pytest.raises(BudgetError, match="used up"):
        run_inside(method, hidden, patch)


def test_everything_is_kept_at_ratio_one() -> None:
    assert FrameFusion(retention_ratio=1.0).inner_points(28) == ()


def test_bfloat16_states() -> None:
    hidden, patch = prompt(8, 16)
    run = run_inside(FrameFusion(retention_ratio=0.3), hidden.bfloat16(), patch)
    assert run.hidden.dtype == torch.bfloat16
    assert run.average(128) <= 0.3


@pytest.mark.parametrize(
    "wrong", [{"policy": "paper"}, {"tau": 2.0}, {"least_merged": -0.1}, {"retention_ratio": 0.0}]
)
def test_bad_settings(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        FrameFusion(**wrong)


def test_json() -> None:
    method = FrameFusion(policy="official", tau=0.7)
    assert Method.from_json(method.to_json()) == method
