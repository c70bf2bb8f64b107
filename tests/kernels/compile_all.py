"""Compile every kernel as it is launched at real sizes, for GPUs that need not be there.

Run as a program (without ``TRITON_INTERPRET``): ``python -m tests.kernels.compile_all``. The
interpreter accepts what the compiler refuses (types, shared memory), so both are tested.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tests.kernels.launches import LAUNCHES

SHARED = {86: 99 << 10, 90: 227 << 10}  # bytes that a block may use, by compute capability
TARGETS = {torch.float32: (86,), torch.bfloat16: (90,)}
TYPES = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.bool: "*i1",
}


def record(calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]]) -> None:
    """Write launches down instead of running them."""

    def run(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        calls.append((kernel, args, options))

    triton.runtime.jit.JITFunction.run = run


def compile_launch(kernel: Any, args: tuple[Any, ...], options: dict[str, Any], arch: int) -> int:
    """Return the shared memory of a block in bytes.

    As in a launch, integers that are 1 become constants, and what is divisible by 16 is marked.
    """
    tuning = {k: options.pop(k) for k in ("num_warps", "num_stages") if k in options}
    if "UPCAST" in options:
        options["UPCAST"] = False  # for the interpreter only
    constants, signature, divisible = dict(options), {}, {}
    for place, (name, value) in enumerate(zip(kernel.arg_names, args, strict=False)):
        signature[name] = type_of(value)
        if isinstance(value, int) and value == 1:
            constants[name], signature[name] = 1, "constexpr"
        elif isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0):
            divisible[(place,)] = [["tt.divisibility", 16]]
    signature |= dict.fromkeys(options, "constexpr")
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=divisible)
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=tuning)
    return int(compiled.metadata.shared)


def type_of(value: Any) -> str:
    if isinstance(value, Tensor):
        return TYPES[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "i32" if abs(value) < 2**31 else "i64"


def main() -> None:
    calls: list[Any] = []
    record(calls)
    results = []
    for launch in LAUNCHES:
        for dtype, archs in TARGETS.items():
            launch(dtype)
            for kernel, args, options in calls:
                for arch in archs:
                    shared = compile_launch(kernel, args, dict(options), arch)
                    results.append([kernel.__name__, str(dtype), arch, shared])
                    assert shared <= SHARED[arch], results[-1]
            calls.clear()
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
