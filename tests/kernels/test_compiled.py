"""Every kernel compiles for GPUs at real sizes; no GPU is needed for that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_all_kernels_compile_and_fit(tmp_path: Path) -> None:
    triton = pytest.importorskip("triton")
    if "nvidia" not in triton.backends.backends:
        pytest.skip("this Triton has no compiler for NVIDIA GPUs")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.kernels.compile_all"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    compiled = {name for name, *_ in json.loads(done.stdout)}
    sources = (ROOT / "src/earlytom/kernels").glob("*.py")
    written = {
        line.split("(")[0].removeprefix("def ")
        for file in sources
        for line in file.read_text().splitlines()
        if line.startswith("def _")
    }
    assert compiled == {name for name in written if name not in ("_forced", "_set", "_works")}
