"""Everything that needs a CUDA device, within nine minutes: speed of the published architectures.

Needs only torch, transformers and triton, and no installation of this package:

    PYTHONPATH=src python benchmarks/gpu.py --out results

Parts that no time is left for are skipped, and said to be.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import torch

from earlytom.bench.environment import environment
from earlytom.bench.records import quartiles
from earlytom.bench.speed import tables
from earlytom.bench.speed.cases import Schedule
from earlytom.bench.speed.run import SpeedPlan, run_speed, save
from earlytom.bench.table import markdown_table
from earlytom.errors import EarlyTomError
from earlytom.files import write_text

LIMIT = 8.5 * 60  # seconds in all
_PAPER = SpeedPlan(
    arch="llava-onevision-7b",
    methods=("earlytom", "afterimage", "holitom", "visionzip"),
    ratios=(0.25, 0.2, 0.15, 0.1),
    frames=32,
    repeats=7,
    schedule=Schedule((24, 18, 14)),
    device="cuda",
    dtype="bfloat16",
    attn="sdpa",
    new_tokens=8,
)
PLANS = (
    # the paper's protocol, then the longer video, then the small language model
    (_PAPER, 200),
    (
        replace(
            _PAPER,
            arch="llava-video-7b",
            frames=64,
            ratios=(0.15,),
            schedule=Schedule((48, 36, 28)),
            repeats=5,
        ),
        110,
    ),
    (
        replace(
            _PAPER,
            arch="llava-onevision-0.5b",
            methods=("earlytom", "afterimage"),
            ratios=(0.25, 0.1),
        ),
        50,
    ),
    # cost of many frames: compressed only matters here, so the full model runs once per repeat
    *(
        (
            replace(
                _PAPER,
                arch="llava-onevision-0.5b",
                methods=("afterimage",),
                ratios=(0.1,),
                frames=frames,
                schedule=None,
                repeats=2,
                new_tokens=1,
            ),
            30,
        )
        for frames in (96, 192, 384, 768)
    ),
)


def main() -> int:
    """Run every plan for which there is time left."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--out", type=Path, default=Path("results"))
    given = options.parse_args()
    if not torch.cuda.is_available():
        sys.stderr.write("error: no CUDA device here\n")
        return 1
    begin, skipped = perf_counter(), []
    _kernels(given.out)
    for plan, needed in PLANS:
        name = f"{plan.arch}, {plan.frames} frames"
        if perf_counter() - begin + needed > LIMIT:
            skipped.append(name)
            continue
        try:
            data = run_speed(plan)
        except (EarlyTomError, torch.OutOfMemoryError) as e:
            skipped.append(f"{name}: {str(e).splitlines()[0]}")
            continue
        finally:
            gc.collect()
            torch.cuda.empty_cache()
        table = "\n".join(markdown_table(*tables.summary(data)))
        sys.stdout.write(f"{tables.headline(data)}\n{table}\n")
        sys.stdout.write(f"{save(data, given.out)}\n\n")
        sys.stdout.flush()
    for name in skipped:
        sys.stdout.write(f"skipped: {name}\n")
    return 0


def _kernels(out: Path) -> None:
    """Time every decision at 32 x 729 x 1152 with and without fused kernels."""
    from earlytom import kernels
    from earlytom.ops.diversity import farthest_points
    from earlytom.ops.received import received_attention
    from earlytom.ops.similarity import band_similarity
    from earlytom.ops.tensors import unit_rows

    device, kind = torch.device("cuda"), torch.bfloat16
    x = torch.randn(32, 729, 1152, device=device, dtype=kind)
    q, k = torch.randn(2, 32, 16, 729, 72, device=device, dtype=kind).unbind(0)
    unit = unit_rows(torch.randn(32 * 196, 898, device=device))
    start = torch.arange(0, 6272, 31, device=device)
    parts = {
        "received_attention": lambda: received_attention(q, k, 72**-0.5),
        "band_similarity": lambda: band_similarity(x, 4),
        "farthest_points": lambda: farthest_points(unit, 627, start),
    }
    found = {}
    for name, run in parts.items():
        times: dict[str, list[float]] = {"kernel": [], "torch": []}
        for i in range(12):
            for side in times:
                torch.cuda.synchronize()
                begin = perf_counter()
                if side == "torch":
                    with kernels.disabled():
                        run()
                else:
                    run()
                torch.cuda.synchronize()
                if i >= 2:  # the first calls compile
                    times[side].append(perf_counter() - begin)
        found[name] = {side: quartiles(values) for side, values in times.items()}
        shown = ", ".join(f"{s} {found[name][s]['median'] * 1000:.2f} ms" for s in times)
        sys.stdout.write(f"{name}: {shown}\n")
    data = {
        "schema": 1,
        "kind": "kernels",
        "environment": environment(torch.get_num_threads(), "bfloat16", "none", device),
        "kernels_used": kernels.use(x),
        "seconds": found,
    }
    write_text(out / "kernels.json", json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
