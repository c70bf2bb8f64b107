"""When a kernel runs, and that nothing needs Triton otherwise."""

from __future__ import annotations

import logging
import subprocess
import sys
from typing import Any

import pytest
import torch

from earlytom import kernels
from earlytom.ops.rows import gather_masked
from tests.kernels.helpers import kernel_runs, randn

X = torch.randn(2, 3, 4)
INDEX = torch.tensor([[2, 0], [1, 1]])


def test_cpu_tensors_run_in_torch() -> None:
    assert not kernels.use(X)
    with kernels._forced():
        assert kernels.use(X)
        with kernels.disabled():
            assert not kernels.use(X)
        assert kernels.use(X)
    assert not kernels.use(X)


@pytest.mark.parametrize(
    "tensors", [(X.double(),), (X.long(),), (X, X.double()), (X[:0],), (X, X.to("meta"))]
)
def test_what_kernels_do_not_take(tensors: tuple[torch.Tensor, ...]) -> None:
    with kernels._forced():
        assert not kernels.use(*tensors)


def test_gradients_flow_through_torch() -> None:
    x = X.clone().requires_grad_()
    with kernels._forced():
        out = gather_masked(x, INDEX, INDEX > 0)
        assert not kernels.use(X, x)
        with torch.no_grad():
            assert kernels.use(x)
    out.sum().backward()
    assert x.grad is not None


def test_compiled_functions_trace_the_torch_form() -> None:
    answers = []

    def step(x: torch.Tensor) -> torch.Tensor:
        answers.append(kernels.use(x))
        return gather_masked(x, INDEX, INDEX > 0)

    with kernels._forced():
        out = torch.compile(step, backend="eager", fullgraph=True)(X)
    assert answers == [False]
    assert torch.equal(out, gather_masked(X, INDEX, INDEX > 0))


def test_without_triton(monkeypatch: Any, caplog: Any) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setitem(sys.modules, "triton.language", None)
    kernels.available.cache_clear()
    try:
        with caplog.at_level(logging.DEBUG, "earlytom.kernels"), kernels._forced():
            assert not kernels.use(X)
            assert not kernels.use(X)
    finally:
        kernels.available.cache_clear()
    assert [r.levelname for r in caplog.records] == ["DEBUG"]


def test_a_gpu_that_cannot_run_them_is_named_once(monkeypatch: Any, caplog: Any) -> None:
    from earlytom.kernels import rows

    def broken(*args: Any) -> None:
        raise RuntimeError("no C compiler")

    device = torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda d: (9, 0))
    monkeypatch.setattr(rows, "gather_rows", broken)
    kernels._works.cache_clear()
    try:
        assert not kernels._works(device)
        assert not kernels._works(device)
        kernels._works.cache_clear()
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda d: (7, 5))
        assert not kernels._works(device)
    finally:
        kernels._works.cache_clear()
    assert len(caplog.records) == 1
    assert "no C compiler" in caplog.text


def test_importing_the_package_imports_no_kernel() -> None:
    """Kernel files need Triton (which transformers may import on its own)."""
    code = (
        "import earlytom.methods, earlytom.hf.api, sys; "
        "assert not [m for m in sys.modules if m.startswith('earlytom.kernels.')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_meter_of_these_tests_notices_torch() -> None:
    x = randn(1, 2, 3, dtype=torch.float64, device=torch.device("cpu"))
    with pytest.raises(AssertionError, match="no kernel"), kernel_runs():
        gather_masked(x, INDEX[:1] * 0, INDEX[:1] > 0)
