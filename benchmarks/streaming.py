"""How well a stream answers, beside the same method on the whole clip; see docs/streaming.md.

    python benchmarks/streaming.py --split standard --questions 300 --ratios 0.25,0.1

A clip is pushed frame by frame, then its questions are asked. The offline rows are streams whose
window is the clip, which is the offline method (tests/stream). Writes a Markdown table to stdout
(CPU milliseconds: a frame pushed, its 95th percentile, the first question, a further one) and
everything as JSON to --out.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch

from earlytom import EarlyTom, Stream
from earlytom.bench.environment import environment
from earlytom.bench.suite import SPLITS, SuiteClip, build_split
from earlytom.files import write_text
from earlytom.method import Method
from earlytom.pipeline import VideoQA
from earlytom.tiny.vocabulary import encode

Row = tuple[str, Method | None, dict[str, Any]]


def rows(ratio: float, frames: int) -> Iterator[Row]:
    """Label, method and options of every stream at one retention ratio."""
    budget = EarlyTom(retention_ratio=ratio)
    official = EarlyTom(policy="official", retention_ratio=ratio)
    paper = EarlyTom(policy="paper", max_window=6, retention_ratio=ratio)
    diverse = EarlyTom(policy="paper", max_window=6, retention_ratio=ratio, selection="diversity")
    kept = math.ceil(ratio * frames * 49)
    yield "budget, offline", budget, {"window": frames}
    for window in (16, 8, 4):
        if window < frames:
            yield f"budget, windows of {window}", budget, {"window": window}
    named = (("official", official), ("paper", paper), ("paper, diversity", diverse))
    for name, method in named:
        yield f"{name}, offline", method, {"window": frames}
        yield f"{name}, segments", method, {}
    yield "paper, diversity, segments, renumbered", replace(diverse, positions="renumber"), {}
    if frames > 16:
        for evict in ("thin", "drop"):
            label = f"paper, diversity, segments, memory of a third, {evict}"
            yield label, diverse, {"max_tokens": kept // 3, "evict": evict}


@dataclass
class Seen:
    """What one stream did with all clips; seconds are CPU time of this process."""

    right: list[int] = field(default_factory=list)
    tokens: int = 0
    push: list[float] = field(default_factory=list)  # of every frame
    first: list[float] = field(default_factory=list)  # of the first question of every clip
    ask: list[float] = field(default_factory=list)  # of every other question

    def watch(self, qa: VideoQA, clip: SuiteClip, method: Method | None, options: Any) -> None:
        """Push a clip frame by frame, then ask."""
        stream = Stream(qa, method, **{"max_tokens": 10**6, **options})
        for frame in torch.from_numpy(clip.render()):
            start = process_time()
            stream.push(frame)
            self.push.append(process_time() - start)
        for i, question in enumerate(clip.questions):
            start = process_time()
            scores = stream.next_logits(question.question)
            (self.ask if i else self.first).append(process_time() - start)
            best = scores[[encode(c)[0] for c in question.candidates]].argmax()
            self.right.append(int(question.candidates[int(best)] == question.answer))
        self.tokens += sum(map(len, [*stream.parts, *stream.open_parts()]))

    def row(self, label: str, ratio: float, patches: int) -> dict[str, Any]:
        """Return everything as JSON-ready data."""
        times = {n: getattr(self, n) for n in ("push", "first", "ask")}
        return {
            "label": label,
            "retention_ratio": ratio,
            "accuracy": sum(self.right) / len(self.right),
            "right": self.right,
            "achieved": self.tokens / patches,
            **{f"{n}_ms": 1000 * sum(t) / max(1, len(t)) for n, t in times.items()},
            "push_p95_ms": 1000 * float(np.percentile(self.push, 95)),
        }


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--split", default="standard", choices=sorted(SPLITS))
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--ratios", default="0.25,0.1")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="rows whose label begins with one of these (;)")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    qa = VideoQA.load()
    frames = SPLITS[given.split].frames
    clips = build_split(given.split, given.seed, given.questions)
    todo: list[tuple[float, Row]] = [(1.0, ("full", None, {"window": frames}))]
    todo += [(r, row) for r in map(float, given.ratios.split(",")) for row in rows(r, frames)]
    wanted = tuple(given.only.split(";"))
    todo = [t for t in todo if t[1][0].startswith(wanted)]
    found = []
    for ratio, (label, method, options) in todo:
        seen = Seen()
        for clip in clips:
            seen.watch(qa, clip, method, options)
        row = seen.row(label, ratio, len(clips) * frames * 49)
        found.append(row)
        numbers = [f"{row[n]:.0f}" for n in ("push_ms", "push_p95_ms", "first_ms", "ask_ms")]
        cells = [f"{ratio:g}", label, f"{row['accuracy']:.1%}", f"{row['achieved']:.3f}", *numbers]
        sys.stdout.write(f"| {' | '.join(cells)} |\n")
        sys.stdout.flush()
    if given.out is not None:
        data = {"split": given.split, "seed": given.seed, "clips": len(clips), "rows": found}
        data["environment"] = environment(1, "float32", "sdpa")
        write_text(given.out, json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
