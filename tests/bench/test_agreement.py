"""Whether checkpoints rank methods alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from earlytom.bench.report import load_runs, summarise
from earlytom.bench.report.agreement import agreement, spearman
from earlytom.bench.report.markdown import render_markdown
from earlytom.bench.report.summary import Summary
from tests.bench.synthetic import first_right, run, store

RIGHT = {"evs": (0.9, 0.8, 0.7), "holitom": (0.8, 0.7, 0.8), "random": (0.5, 0.4, 0.5)}


def summary_of(folder: Path, seeds: int, missing: str = "") -> Summary:
    """``RIGHT`` on so many checkpoints; the last one did not run ``missing``."""
    for seed in range(seeds):
        model = f"tiny-seed{seed}"
        store(folder, run("full", 1.0, first_right(1.0), model=model))
        for label, shares in RIGHT.items():
            if label != missing or seed < seeds - 1:
                store(folder, run(label, 0.25, first_right(shares[seed]), model=model))
    return summarise(load_runs(folder)[0])


def test_spearman() -> None:
    assert spearman([1, 2, 3, 4], [10, 20, 25, 99]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert spearman([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]) == pytest.approx(1 - 6 * 4 / (5 * 24))
    # ties share ranks 1.5 and 1.5: Pearson of (1.5, 1.5, 3) and (1, 2, 3) by hand
    assert spearman([7, 7, 9], [1, 2, 3]) == pytest.approx(1.5 / (1.5 * 2) ** 0.5)
    assert spearman([1, 2], [3, 3]) is None
    assert spearman([1], [2]) is None
    assert spearman([], []) is None


def test_the_worst_and_the_best_pair_of_checkpoints(tmp_path: Path) -> None:
    summary = summary_of(tmp_path, 3)
    # evs > holitom > random twice, the third time evs and holitom change places
    assert agreement(summary, 0.25) == pytest.approx((0.5, 1.0, 3))
    assert agreement(summary, 0.1) is None
    assert (
        "Spearman's rank correlation of the methods on two checkpoints (fewest methods that both "
        "ran): 25 %: 0.50 to 1.00 (3)." in render_markdown(summary)
    )


def test_methods_that_a_checkpoint_lacks_do_not_count(tmp_path: Path) -> None:
    assert agreement(summary_of(tmp_path, 3, "random"), 0.25) == pytest.approx((-1.0, 1.0, 2))


def test_two_of_three_checkpoints_suffice(tmp_path: Path) -> None:
    summary_of(tmp_path, 3)
    for model in ("tiny-seed0", "tiny-seed1"):
        store(tmp_path, run("evs", 0.1, first_right(0.6), model=model))
        store(tmp_path, run("random", 0.1, first_right(0.3), model=model))
    assert agreement(summarise(load_runs(tmp_path)[0]), 0.1) == pytest.approx((1.0, 1.0, 2))


def test_one_checkpoint_has_nobody_to_agree_with(tmp_path: Path) -> None:
    summary = summary_of(tmp_path, 1)
    assert agreement(summary, 0.25) is None
    assert "Spearman" not in render_markdown(summary)


def test_ratios_of_one_checkpoint_are_left_out(tmp_path: Path) -> None:
    summary_of(tmp_path, 2)
    store(tmp_path, run("evs", 0.1, first_right(0.6)))
    lines = render_markdown(summarise(load_runs(tmp_path)[0])).splitlines()
    start = lines.index("## Several checkpoints")
    table = [line for line in lines[start : start + 12] if line.startswith("|")]
    assert table[0] == "| method | 25 % |"
    assert table[2] == "| evs | 85.0 (80.0 to 90.0) |"
    assert "| method | 25 % | 10 % |" in lines
    assert "ran): 25 %: 1.00 (3)." in "\n".join(lines)


def test_tables_of_other_splits_have_the_ratios_that_ran_there(tmp_path: Path) -> None:
    summary_of(tmp_path, 1)
    store(tmp_path, run("full", 1.0, first_right(1.0), split="static", seed=2))
    store(tmp_path, run("evs", 0.1, first_right(0.5), split="static", seed=2))
    lines = render_markdown(summarise(load_runs(tmp_path)[0])).splitlines()
    table = lines[lines.index("## Split static") :]
    rows = [line for line in table if line.startswith("|")][:4]
    assert rows[0] == "| method | 10 % |"
    assert rows[3].startswith("| evs | 50.0 (50.0) /")
