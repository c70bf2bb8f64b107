"""EarlyTom's decision step at full size: ours against a plain form with attention maps.

The plain form follows the published procedure frame by frame: it reads every similarity back to the
host, merges hidden states and whole attention maps of all heads, and picks tokens window by
window. It is written here from the description of the method, in float32, and checked against ours.

    PYTHONPATH=src python benchmarks/decision.py [--frames 32] [--repeats 5] [--out results]
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, interpolate

from earlytom import EarlyTom
from earlytom.bench.environment import environment
from earlytom.bench.memory import forget_peak, peak_rss
from earlytom.bench.records import quartiles
from earlytom.files import write_text
from earlytom.ops.received import received_attention
from earlytom.stages import VideoFeatures, VideoState

PATCHES, DIM, HEADS, POINTS = 27 * 27, 1152, 16, 3
TAU, EMA, WINDOW, RATIO = 0.6, 0.9, 6, 0.1


def alike(a: Tensor, b: Tensor) -> float:
    """Mean cosine of two frames, on the host."""
    return cosine_similarity(a, b, dim=-1).mean().item()


def segments(x: Tensor) -> list[tuple[int, int]]:
    """Greedy segmentation against the first frame of a segment."""
    found, start, smooth = [], 0, 1.0
    for i in range(1, len(x)):
        smooth = EMA * alike(x[start], x[i]) + (1 - EMA) * smooth
        if smooth < TAU or i - start + 1 >= WINDOW:
            found.append((start, i - 1))
            start, smooth = i, 1.0
    return [*found, (start, len(x) - 1)]


def merge(x: Tensor, maps: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """One merge point: frames, and attention maps of all heads with them."""
    rows: list[tuple[int, int, float]] = []
    for a, b in segments(x):
        rows.append((a, a, 1.0))
        middle, bar = list(range(a + 1, b)), alike(x[a], x[b])
        j = 0
        if len(middle) == 1:
            rows.append((middle[0], middle[0], 1.0))
        while j < len(middle) - 1:
            s = alike(x[middle[j]], x[middle[j + 1]])
            after = alike(x[middle[j + 1]], x[middle[j + 2]]) if j + 2 < len(middle) else 0.0
            if s > bar and (j + 2 >= len(middle) or s > after):
                rows.append((middle[j], middle[j + 1], s / (s + after) if after else 1.0))
                j += 2
            else:
                rows.append((middle[j], middle[j], 1.0))
                j += 1
        if b > a:
            rows.append((b, b, 1.0))

    def mixed(y: Tensor) -> Tensor:
        return torch.stack([w * y[i] + (1 - w) * y[j] for i, j, w in rows])

    return mixed(x), None if maps is None else mixed(maps)


def plain(x: Tensor, maps: Tensor | None, score: Tensor) -> Tensor:
    """All merge points, then tokens; ``maps`` ``[T, H, S, S]``, or None to follow without them."""
    n_input = len(x)
    for point in range(POINTS):
        signal = maps
        if maps is None and point == POINTS - 1:
            signal = score[: len(x)]
        elif maps is not None:
            signal = maps[: len(x)]  # every layer has maps of its own
        x, merged = merge(x, signal)
    groups = segments(x)
    score = merged.mean((1, 2)) if maps is not None else merged
    grid = interpolate(score.view(len(x), 1, 27, 27), size=(14, 14), mode="bilinear").flatten(1)
    size, rate = grid.shape[1], min(1.0, RATIO / (len(x) / n_input))
    kept = []
    for a, b in groups:
        for i in range(a, b + 1):
            if b - a >= 2 and a < i < b:
                n = max(1, round(size * rate))
                base, rest, at = size // n, size % n, 0
                for w in range(n):
                    step = base + (w < rest)
                    kept.append(i * size + at + int(grid[i, at : at + step].argmax()))
                    at += step
            else:
                top = grid[i].topk(math.ceil(size * rate)).indices.sort().values
                kept += (i * size + top).tolist()
    return torch.tensor(kept)


def ours(x: Tensor, score: Tensor) -> Tensor:
    """The same decisions by this package, which writes over ``x`` as it does inside the encoder."""
    method = EarlyTom(policy="official", tau=TAU, ema=EMA, retention_ratio=RATIO)
    points = method.merge_points(26)
    state = VideoState.start(len(x), 26)
    for k, layer in enumerate(points):
        if k == len(points) - 1:
            state.received = score[: len(x)]
        plan = method.merge_frames(x, state, k, 196)
        x = plan.apply(x, overwrite=True)
        state.apply(plan, layer)
        method.finish_frames(x, state, k)
    grid = interpolate(
        state.received.view(len(x), 1, 27, 27), size=(14, 14), mode="bilinear"
    ).flatten(1)
    pooled = x[:, :196]  # selection looks at its shape and whether it is finite
    return method.select_tokens(VideoFeatures(pooled, grid, (14, 14), state)).index


def video(frames: int) -> Tensor:
    """Hidden states of three drifting scenes."""
    g = torch.Generator().manual_seed(0)
    scenes = torch.randn(3, PATCHES, DIM, generator=g)
    noise = torch.randn(frames, PATCHES, DIM, generator=g)
    return scenes[torch.arange(frames) * 3 // frames] + 0.4 * noise


def main() -> None:
    """Time all sides in turn."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--frames", type=int, default=32)
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--out", type=Path)
    given = options.parse_args()
    x = video(given.frames)
    g = torch.Generator().manual_seed(1)
    maps = torch.rand(given.frames, HEADS, PATCHES, PATCHES, generator=g)
    maps /= maps.sum(-1, keepdim=True)
    score = maps.mean((1, 2))
    own = x.clone()  # states of the encoder are nobody else's
    q, k = torch.randn(2, given.frames, HEADS, PATCHES, DIM // HEADS, generator=g).unbind(0)
    sides = {
        "plain, with attention maps": lambda: plain(x, maps, score),
        "plain, without maps": lambda: plain(x, None, score),
        "ours": lambda: ours(own, score),
        "ours, received attention of one layer": lambda: received_attention(q, k, 72**-0.5),
    }
    same = torch.equal(plain(x, None, score), ours(own, score))
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    peaks: dict[str, float] = {}
    for _ in range(given.repeats):
        for name, run in sides.items():
            own.copy_(x)
            forget_peak()
            start = perf_counter()
            run()
            seconds[name].append(perf_counter() - start)
            peaks[name] = peak_rss()
    best = statistics.median(seconds["ours"])
    data = {
        "schema": 1,
        "kind": "decision",
        "frames": given.frames,
        "same_tokens": same,
        "environment": environment(torch.get_num_threads(), "float32", "none"),
        "seconds": {name: quartiles(values) for name, values in seconds.items()},
        "speedup": {n: statistics.median(v) / best for n, v in seconds.items()},
        "rss_mib": peaks,
    }
    for name, values in seconds.items():
        median = statistics.median(values)
        sys.stdout.write(f"{name:<40}{median * 1000:9.1f} ms{median / best:8.1f}x\n")
    sys.stdout.write(f"same tokens: {same}\n")
    if given.out is not None:
        path = given.out / "decision.json"
        write_text(path, json.dumps(data, indent=1) + "\n")
        sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
