"""Cost of long videos on the CPU: time and memory of the shipped model against frames.

    python benchmarks/long_video.py              # results/long-video.json, docs/assets/long-video.*
    python benchmarks/long_video.py --hour       # one file of an hour, 30 frames per second

Every case runs in a process of its own, on one thread. Times are CPU seconds of that process, so
that other work on the machine matters little. All methods keep the same number of tokens, however
many frames there are: that is what a prompt has room for.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

TOKENS = 1024
FRAMES = (48, 96, 192, 384, 768)
SOME = (48, 192, 384)
CHUNK = 32
# method, frames per chunk (0: all at once), whether the language model answers
CASES = (
    ("none", CHUNK, False),
    ("none", 0, False),
    ("earlytom", CHUNK, True),
    ("earlytom", 0, True),
    ("afterimage", CHUNK, True),
)
QUESTION = "how many shots are there?"
ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Run all cases, or one of them."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--out", type=Path, default=ROOT / "results")
    options.add_argument("--assets", type=Path, default=ROOT / "docs" / "assets")
    options.add_argument("--hour", action="store_true", help="one file of an hour")
    options.add_argument("--draw", action="store_true", help="only draw what was measured")
    options.add_argument("--case", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.case:
        sys.stdout.write(json.dumps(_measure(**json.loads(given.case))) + "\n")
        return 0
    name = "long-video-hour.json" if given.hour else "long-video.json"
    target = given.out / name
    if not given.draw:
        from earlytom.files import write_text

        data = _hour() if given.hour else _sweep()
        write_text(target, json.dumps(data, indent=1) + "\n")
    if not given.hour:
        draw(json.loads(target.read_text()), given.assets)
    return 0


# ------------------------------------------------------------------ measuring
def _sweep() -> dict[str, Any]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.mp4"
        write_moving(clip, seconds=FRAMES[-1], fps=1)
        for method, chunk, answers in CASES:
            for frames in FRAMES if chunk else SOME:
                rows.append(_apart(str(clip), method, frames, chunk, answers))
                sys.stdout.write(f"{json.dumps(rows[-1])}\n")
                sys.stdout.flush()
    return {"schema": 1, "kind": "long-video", "tokens": TOKENS, **_where(), "rows": rows}


def _hour() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "hour.mp4"
        begin = perf_counter()
        write_moving(clip)
        sys.stdout.write(f"written in {perf_counter() - begin:.0f} s\n")
        row = _apart(str(clip), "earlytom", 768, CHUNK, True)
        row["file_mib"] = clip.stat().st_size / 2**20
    sys.stdout.write(f"{json.dumps(row)}\n")
    return {"schema": 1, "kind": "long-video-hour", "tokens": TOKENS, **_where(), "rows": [row]}


def _where() -> dict[str, Any]:
    from earlytom.bench.environment import environment

    return {"environment": environment(1, "float32", "sdpa")}


def _apart(clip: str, method: str, frames: int, chunk: int, answers: bool) -> dict[str, Any]:
    case = {"clip": clip, "method": method, "frames": frames, "chunk": chunk, "answers": answers}
    done = subprocess.run(
        [sys.executable, __file__, "--case", json.dumps(case)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _measure(clip: str, method: str, frames: int, chunk: int, answers: bool) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    from earlytom import load_method
    from earlytom.bench.memory import forget_peak, peak_rss
    from earlytom.models import find_adapter
    from earlytom.pipeline import VideoQA

    qa = VideoQA.load(dtype="float32", device="cpu")
    size = find_adapter(qa.model).tokens_per_frame

    def of(count: int) -> Any:
        if method == "none":
            return None
        return load_method(method, retention_ratio=min(1.0, round(TOKENS / (count * size), 6)))

    qa.ask(clip, QUESTION, of(16), frames=16, max_new_tokens=1)  # what a first call leaves behind
    clock = _Clock(qa)
    forget_peak()
    before = peak_rss()
    begin, wall = process_time(), perf_counter()
    stop = None if answers else clock.stop_behind_the_encoder
    with clock(stop):
        try:
            answer = qa.ask(
                clip, QUESTION, of(frames), frames=frames, frames_per_chunk=chunk, max_new_tokens=1
            )
        except _Enough:
            answer = None
    marks = [begin, *clock.marks, process_time()]
    names = ("input", "vision", "tokens", "prefill", "rest")
    seconds = [b - a for a, b in pairwise(marks)]
    return {
        "method": method,
        "frames": frames,
        "chunk": chunk,
        "tokens": answer.tokens_out if answer else frames * size,
        "frames_out": answer.frames_out if answer else frames,
        "cpu_seconds": dict(zip(names, seconds, strict=False)),
        "wall_seconds": perf_counter() - wall,
        "decode_seconds": answer.timings.decode if answer else None,
        "before_mib": before,
        "peak_mib": peak_rss(),
    }


class _Enough(Exception):
    """Raised in front of the language model."""


class _Clock:
    """CPU seconds at which the encoder begins and ends, and the language model begins and ends."""

    def __init__(self, qa: Any) -> None:
        self.qa, self.marks = qa, []

    def stop_behind_the_encoder(self) -> None:
        raise _Enough

    def __call__(self, stop: Callable[[], None] | None) -> Any:
        from contextlib import ExitStack

        adapter, stack = self.qa.adapter, ExitStack()

        def mark(*_: Any) -> None:
            if len(self.marks) < 4:
                self.marks.append(process_time())

        def enter(*_: Any) -> None:
            mark()
            if stop is not None:
                stop()

        handles = [
            adapter.tower.register_forward_pre_hook(mark),
            adapter.tower.register_forward_hook(mark),
            adapter.language_model.register_forward_pre_hook(enter),
            adapter.language_model.register_forward_hook(mark),
        ]
        for handle in handles:
            stack.callback(handle.remove)
        return stack


def write_moving(path: Path, seconds: int = 3600, fps: int = 30) -> None:
    """Write a video of moving shapes, 160 x 120 pixels, with a cut every 20 seconds."""
    import av
    import numpy as np

    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        stream.options = {"preset": "ultrafast", "crf": "28"}
        image = np.empty((120, 160, 3), np.uint8)
        for i in range(seconds * fps):
            if i % (20 * fps) == 0:
                ground, shape = rng.integers(0, 255, (2, 3), dtype=np.uint8)
            image[:] = ground
            x = i % 130
            image[45:75, x : x + 30] = shape
            for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")):
                out.mux(packet)
        for packet in stream.encode():
            out.mux(packet)


# ------------------------------------------------------------------ drawing
def draw(data: dict[str, Any], folder: Path) -> None:
    """Draw time and memory against frames."""
    from matplotlib.figure import Figure

    from earlytom.bench.report.plots import drawing, save_figure
    from earlytom.bench.report.style import GREY, MARKERS, PALETTE

    rows = data["rows"]
    colours = dict(zip(("earlytom", "afterimage", "none"), (*PALETTE[:2], "#000000"), strict=True))
    named = {"none": "full model", "earlytom": "earlytom", "afterimage": "afterimage"}

    def series(method: str, chunk: int) -> list[dict[str, Any]]:
        return [r for r in rows if (r["method"], r["chunk"]) == (method, chunk)]

    with drawing():
        figure = Figure(figsize=(9.6, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        for i, method in enumerate(("none", "earlytom", "afterimage")):
            found = series(method, CHUNK)
            x = [r["frames"] for r in found]
            encoder = [r["cpu_seconds"]["vision"] for r in found]
            style = {"color": colours[method], "marker": MARKERS[i]}
            left.plot(x, encoder, label=f"{named[method]}: vision encoder", **style)
            if method != "none":
                whole = [sum(r["cpu_seconds"].values()) for r in found]
                left.plot(x, whole, "--", label=f"{named[method]}: file to first token", **style)
        for i, (method, chunk) in enumerate(
            (
                ("none", 0),
                ("earlytom", 0),
                ("none", CHUNK),
                ("earlytom", CHUNK),
                ("afterimage", CHUNK),
            )
        ):
            found = series(method, chunk)
            label = f"{named[method]}, {f'{chunk} frames' if chunk else 'all frames'} at a time"
            right.plot(
                [r["frames"] for r in found],
                [r["peak_mib"] - r["before_mib"] for r in found],
                "-" if chunk else ":",
                color=colours[method],
                marker=MARKERS[i],
                label=label,
            )
        left.set_title("CPU seconds, one thread")
        right.set_title("Peak memory on top of the model, MiB")
        for axes in (left, right):
            axes.set_xlabel("frames")
            axes.set_xticks(FRAMES)
            axes.set_ylim(bottom=0)
            axes.grid(color=GREY, linewidth=0.4)
            axes.legend(fontsize=8, frameon=False)
        save_figure(figure, folder, "long-video")


if __name__ == "__main__":
    sys.exit(main())
