import math

import pytest
import torch

from earlytom.errors import ConfigError
from earlytom.method import Method
from earlytom.methods import SparseVLM
from tests.inner_runs import prompt, run_inside
from tests.inner_states import inner_state, span
from tests.methods.merging import check_vectors

VERSIONS = ["v1.5", "v2.0"]


def test_vectors() -> None:
    check_vectors("sparsevlm_v15_*.npz", 2)
    check_vectors("sparsevlm_v2_*.npz", 1)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("ratio", [0.15, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("newline", [False, True])
def test_the_average_over_layers_is_the_ratio(version: str, ratio: float, newline: bool) -> None:
    hidden, patch = prompt(16, 36, newline=newline)
    method = SparseVLM(retention_ratio=ratio, version=version)
    run = run_inside(method, hidden, patch)
    assert ratio <= run.average(576) < ratio + 1 / 576
    assert int((run.patch == -2).sum()) == newline, "newline tokens stay"
    assert run.seen[:3] == [576] * 3
    steps = run.seen[3], run.seen[6], run.seen[14]
    assert run.seen == [576] * 3 + [steps[0]] * 3 + [steps[1]] * 8 + [steps[2]] * 14
    assert steps == tuple(sorted(steps, reverse=True))
    again = run_inside(method, hidden, patch)
    assert torch.equal(run.hidden, again.hidden)


def test_published_counts() -> None:
    """The proportions of the published table for 192 of 576 tokens on 32 layers."""
    average = (3 * 576 + 4 * 300 + 9 * 200 + 16 * 110) / 32 / 576
    run = run_inside(SparseVLM(retention_ratio=round(average, 4)), *prompt(16, 36), n_layers=32)
    found = torch.tensor([run.seen[i] for i in (3, 7, 16)])
    assert (found - torch.tensor([300, 200, 110])).abs().max() <= 1


def test_what_the_raters_look_at_stays() -> None:
    hidden, patch = prompt(8, 9, dim=16)
    visual = patch >= 0
    hidden[visual] *= 0.1
    seen = visual.nonzero().flatten()[[5, 40, 71]]
    hidden[seen] = hidden[-2] * 2  # a word and three tokens alike
    for version in VERSIONS:
        method = SparseVLM(retention_ratio=0.3, version=version, heads=1)
        assert set(seen.tolist()) <= set(run_inside(method, hidden, patch).column.tolist())


def test_recycled_tokens_stand_where_their_centre_did() -> None:
    hidden, patch = prompt(16, 36)
    run = run_inside(SparseVLM(retention_ratio=0.3, layers=(2,)), hidden, patch)
    changed = ~(run.hidden == hidden[run.column]).all(1)
    assert 0 < int(changed.sum()) < int((run.patch >= 0).sum()) / 2
    assert (run.patch[changed] >= 0).all()
    plain = run_inside(SparseVLM(retention_ratio=0.3, layers=(2,), version="v2.0"), hidden, patch)
    assert torch.equal(plain.hidden, hidden[plain.column])


def test_official_counts_and_positions() -> None:
    hidden, patch = prompt(16, 36)
    method = SparseVLM(policy="official", kept=(300, 200, 110))
    run = run_inside(method, hidden, patch, n_layers=32)
    assert [run.seen[i] for i in (2, 3, 7, 16)] == [576, 300 + 9, 200 + 4, 110 + 3]
    assert method.inner_positions == "renumber"
    assert SparseVLM(policy="official", version="v2.0").inner_positions == "keep"
    assert SparseVLM().inner_positions == "keep"


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("policy", ["exact", "official"])
def test_small_videos_and_short_prompts(policy: str, version: str) -> None:
    for frames, size in ((1, 1), (1, 2), (2, 3)):
        hidden, patch = prompt(frames, size)
        for end in (len(patch), len(patch) - 5, len(patch) - 4):  # also without text behind
            method = SparseVLM(retention_ratio=0.4, policy=policy, version=version)
            run = run_inside(method, hidden[:end], patch[:end], n_layers=8)
            assert run.seen[-1] >= 1
            assert run.hidden.isfinite().all()


def test_everything_is_kept_at_ratio_one() -> None:
    assert SparseVLM(retention_ratio=1.0).inner_points(28) == ()


def test_layers_and_ratios_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match=r"at least 0\.107 .*layer 3 prunes first"):
        SparseVLM(retention_ratio=0.1).inner_points(28)
    early = SparseVLM(retention_ratio=0.1, layers=(0, 6))
    assert [p.layer for p in early.inner_points(28)] == [1, 7]
    for layers, depth in (((3,), 4), (None, 1)):
        with pytest.raises(ConfigError, match="cannot prune after"):
            SparseVLM(layers=layers).inner_points(depth)


def test_the_share_behind_the_last_step() -> None:
    hidden, patch = prompt(16, 36)
    run = run_inside(SparseVLM(retention_ratio=0.05, budget="behind"), hidden, patch)
    steps = [math.ceil(n * 0.05 * 576 / 110) for n in (300, 200, 110)]
    assert [run.seen[i] for i in (2, 3, 6, 14)] == [576, *steps]
    half = run_inside(SparseVLM(retention_ratio=0.5, budget="behind"), hidden, patch)
    assert [half.seen[i] for i in (3, 6, 14)] == [576, math.ceil(100 / 110 * 576), 288]


def test_official_lets_newline_tokens_compete() -> None:
    hidden, patch = prompt(4, 9, newline=True)
    hidden[patch == -2] = 0
    method = SparseVLM(policy="official", layers=(2,), kept=(36,))
    run = run_inside(method, hidden, patch)
    assert len(run.patch[run.patch != -1]) == 36 + 1  # the pruned one is recycled alone


def test_v2_needs_rotary_positions() -> None:
    hidden = torch.randn(20, 8)
    method = SparseVLM(version="v2.0", retention_ratio=0.4)
    state = inner_state(hidden, span(20, 3, 12), torch.rand(2, 1, 20))
    method.inner_start(state)
    with pytest.raises(ConfigError, match="rotary"):
        method.merge_inner(state)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"policy": "paper"}, "policy"),
        ({"version": "v1"}, "version"),
        ({"heads": 0}, "heads"),
        ({"budget": "tokens"}, "budget"),
        ({"layers": (3, 2)}, "layers"),
        ({"layers": (1, 2, 3, 4)}, "1 to 3"),
        ({"kept": (3, 2, 1)}, "no meaning"),
        ({"policy": "official", "kept": (3, 2)}, "one count per step"),
        ({"policy": "official", "kept": (3, 2, 0)}, "kept"),
    ],
)
def test_bad_settings(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SparseVLM(**wrong)


def test_json() -> None:
    method = SparseVLM(policy="official", layers=(1, 2), kept=(30, 20))
    assert Method.from_json(method.to_json()) == method
