"""Every golden vector of the released EarlyTom, and that the checker can fail."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import parity

DATA = Path(__file__).parent.parent / "data"
VECTORS = sorted(DATA.glob("earlytom_*.npz"))
PER_KIND = {"s1": 14, "chain": 7, "s2": 9, "full": 6, "enc": 3, "s3": 5}


@pytest.mark.parametrize("path", VECTORS, ids=lambda p: p.stem)
def test_vector(path: Path) -> None:
    result = parity.check_file(path)
    assert result["problems"] == []
    assert path.name.startswith(result["kind"])


def test_all_vectors_are_there() -> None:
    found = {k: len(list(DATA.glob(f"earlytom_{k}_*.npz"))) for k in PER_KIND}
    assert found == PER_KIND


@pytest.mark.parametrize("kind", PER_KIND)
def test_kind_is_found_by_the_arrays(kind: str, tmp_path: Path) -> None:
    renamed = tmp_path / "hidden.npz"
    renamed.write_bytes((DATA / f"earlytom_{kind}_00.npz").read_bytes())
    result = parity.check_file(renamed)
    assert result["kind"] == f"earlytom_{kind}"
    assert result["problems"] == []


def changed(tmp_path: Path, name: str, **changes: np.ndarray | None) -> Path:
    with np.load(DATA / name) as data:
        arrays = {k: data[k] for k in data.files}
    arrays |= {k: v for k, v in changes.items() if v is not None}
    for k in [k for k, v in changes.items() if v is None]:
        del arrays[k]
    path = tmp_path / name
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    ("name", "changes", "problem"),
    [
        ("earlytom_s1_00.npz", {"tau": np.array(0.95)}, "out_merge_groups: shape"),
        ("earlytom_s1_00.npz", {"mode": np.array("naive_mixing")}, "out_frames"),
        ("earlytom_s1_00.npz", {"out_frames": None}, "out_frames: missing in the file"),
        ("earlytom_s1_00.npz", {"out_new": np.zeros(2)}, "out_new: not produced"),
        ("earlytom_s1_00.npz", {"ema": None}, "unknown kind"),
        ("earlytom_s2_00.npz", {"retain_ratio": np.array(0.21)}, "out_n_tokens: 1 of 1"),
        ("earlytom_s2_00.npz", {"retain_ratio": np.array(7.0)}, "ConfigError"),
        ("earlytom_s3_00.npz", {"merge_ratio": np.array(0.4)}, "out_kept_index: shape"),
    ],
)
def test_mismatches_are_reported(
    tmp_path: Path, name: str, changes: dict[str, np.ndarray | None], problem: str
) -> None:
    result = parity.check_file(changed(tmp_path, name, **changes))
    assert any(problem in p for p in result["problems"]), result["problems"]


def test_a_wrong_value_fails_at_its_tolerance(tmp_path: Path) -> None:
    with np.load(DATA / "earlytom_s2_00.npz") as data:
        tokens = data["out_tokens"].copy()
    tokens[5, 2] += 1e-6  # copied tokens must be bit-equal
    result = parity.check_file(changed(tmp_path, "earlytom_s2_00.npz", out_tokens=tokens))
    assert result["problems"] == ["out_tokens: 1 of 2552 values beyond tolerance"]
    tokens[5, 2] = np.nan
    result = parity.check_file(changed(tmp_path, "earlytom_s2_00.npz", out_tokens=tokens))
    assert len(result["problems"]) == 1


def test_command_line(tmp_path: Path) -> None:
    broken = tmp_path / "earlytom_s1_00.npz"
    broken.write_bytes(b"PK\x03\x04 not a zip")
    missing = tmp_path / "none.npz"
    good = VECTORS[-1]
    command = [sys.executable, parity.__file__]
    run = subprocess.run(
        [*command, "--json", str(good), str(broken), str(missing)], capture_output=True, text=True
    )
    report = json.loads(run.stdout)
    assert run.returncode == 1
    assert (report["files"], report["failed"]) == (3, 2)
    assert [bool(r["problems"]) for r in report["results"]] == [False, True, True]
    run = subprocess.run([*command, str(good)], capture_output=True, text=True)
    assert run.returncode == 0
    assert run.stdout.startswith(f"ok   {good}")
