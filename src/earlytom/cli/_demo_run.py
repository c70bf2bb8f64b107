"""The work behind ``earlytom demo``: generated mp4 files through the whole pipeline."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from rich.table import Table

from earlytom.cli._output import seconds, times
from earlytom.errors import EarlyTomError
from earlytom.method import Method
from earlytom.pipeline import Answer, VideoQA
from earlytom.tiny import write_video
from earlytom.video import load_video

SHOWN = 12
_PARTS = ("preprocess", "vision", "tokens", "prefill", "ttft", "total")


@dataclass(frozen=True)
class Row:
    """One question of one clip.

    Attributes:
        clip: number of the clip.
        type: kind of question.
        question: its text.
        expected: the right answer.
        decode: seconds for reading and decoding the sampled frames of the file.
        full: answer of the uncompressed model.
        compressed: answer with the method.
    """

    clip: int
    type: str
    question: str
    expected: str
    decode: float
    full: Answer
    compressed: Answer

    def right(self, which: str) -> bool:
        """Whether the answer ``full`` or ``compressed`` is right."""
        return bool(_same(getattr(self, which).text, self.expected))


def run(
    qa: VideoQA,
    method: Method | None,
    clips: int,
    questions: int,
    seed: int,
    frames: int,
    advance: Callable[[], None],
) -> list[Row]:
    """Write ``clips`` generated videos, ask up to ``questions`` of each with and without method.

    Raises:
        EarlyTomError: anything that the generator or :meth:`VideoQA.ask` raises.
    """
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="earlytom-demo-") as folder:
        for i in range(clips):
            path = Path(folder) / f"clip_{i:03d}.mp4"
            listing = write_video(path, seed + i, num_frames=frames)
            found = json.loads(listing.read_text(encoding="utf-8"))["questions"]
            chosen = spread(found, questions, i)
            start = perf_counter()
            video = load_video(path, frames)
            decode = perf_counter() - start
            if chosen and not rows:
                for m in (None, method):  # the first call of a process is slower
                    qa.ask(video, chosen[0]["question"], m, max_new_tokens=1)
            for k, q in enumerate(chosen):
                pair: dict[bool, Answer] = {}
                for first in (k % 2 == 0, k % 2 == 1):  # alternate the order for fair times
                    pair[first] = qa.ask(
                        video, q["question"], None if first else method, max_new_tokens=8
                    )
                texts = q["type"], q["question"], q["answer"]
                rows.append(Row(i, *texts, decode, pair[True], pair[False]))
                advance()
    if not rows:
        raise EarlyTomError("the generated videos came without questions")
    return rows


def spread(questions: list[dict[str, Any]], n: int, shift: int) -> list[dict[str, Any]]:
    """Choose ``n`` questions of as many types as possible, starting with another type per clip."""
    by_type: dict[str, list[dict[str, Any]]] = {}
    for q in questions:
        by_type.setdefault(q["type"], []).append(q)
    kinds = sorted(by_type)
    if not kinds:
        return []
    kinds = kinds[shift * n % len(kinds) :] + kinds[: shift * n % len(kinds)]
    chosen: list[dict[str, Any]] = []
    for depth in range(max(len(v) for v in by_type.values())):
        chosen += [by_type[k][depth] for k in kinds if depth < len(by_type[k])]
    return chosen[:n]


def summary(rows: list[Row], method: Method | None, seed: int) -> dict[str, Any]:
    """Return the totals and every question as JSON-ready data."""
    data: dict[str, Any] = {
        "clips": len({r.clip for r in rows}),
        "seed": seed,
        "questions": len(rows),
        "accuracy_full": _mean(r.right("full") for r in rows),
        "accuracy_compressed": _mean(r.right("compressed") for r in rows),
        "same_answer": _mean(_same(r.full.text, r.compressed.text) for r in rows),
        "frames": rows[0].compressed.frames_in,
        "tokens_full": rows[0].compressed.tokens_in,
        "tokens_compressed": statistics.median(r.compressed.tokens_out for r in rows),
        "method": None if method is None else method.to_dict(),
        "by_type": {},
        "decode": statistics.median(r.decode for r in rows),
        "timings": {w: _medians(rows, w) for w in ("full", "compressed")},
        "answers": [
            {
                "clip": r.clip,
                "type": r.type,
                "question": r.question,
                "expected": r.expected,
                "full": r.full.text,
                "compressed": r.compressed.text,
            }
            for r in rows
        ],
    }
    data["frames_after_encoder"] = statistics.median(r.compressed.frames_out for r in rows)
    data["patches"] = rows[0].compressed.patches_in
    data["patches_encoded"] = statistics.median(r.compressed.patches_out for r in rows)
    timings = data["timings"]
    data["ttft_speedup"] = timings["full"]["ttft"] / timings["compressed"]["ttft"]
    for kind in sorted({r.type for r in rows}):
        some = [r for r in rows if r.type == kind]
        data["by_type"][kind] = {
            "questions": len(some),
            "accuracy_full": _mean(r.right("full") for r in some),
            "accuracy_compressed": _mean(r.right("compressed") for r in some),
        }
    return data


def summary_table(rows: list[Row], result: dict[str, Any]) -> Iterator[Any]:
    """Yield what to print: some answers, the totals, and one line of verdict."""
    some = Table(box=None, pad_edge=False, title_justify="left")
    some.add_column("question", overflow="fold")
    for name in ("expected", "full", "compressed"):
        some.add_column(name, no_wrap=True, max_width=14, overflow="ellipsis")
    for r in _shown(rows):
        marks = [_mark(getattr(r, w).text, r.right(w)) for w in ("full", "compressed")]
        some.add_row(r.question, r.expected, *marks)
    yield some
    more = f"{len(rows)} questions about {result['clips']} videos in all"
    yield f"[dim]... {more}; answers in brackets are wrong[/dim]"
    yield ""
    full, less = result["timings"]["full"], result["timings"]["compressed"]
    total = Table(box=None, pad_edge=False)
    for name in ("", "full", "compressed", "change"):
        total.add_column(name, justify="left" if not name else "right")
    total.add_row(
        "right answers",
        f"{result['accuracy_full']:.1%}",
        f"{result['accuracy_compressed']:.1%}",
        f"{100 * (result['accuracy_compressed'] - result['accuracy_full']):+.1f} points",
    )
    frames, after = result["frames"], result["frames_after_encoder"]
    total.add_row("frames", f"{frames}", f"{after:g}", f"{after / frames:.1%}")
    patches, encoded = result["patches"], result["patches_encoded"]
    total.add_row("patches encoded", f"{patches}", f"{encoded:g}", f"{encoded / patches:.1%}")
    tokens, kept = result["tokens_full"], result["tokens_compressed"]
    total.add_row("visual tokens", f"{tokens}", f"{kept:g}", f"{kept / tokens:.1%}")
    labels = {
        "vision": "vision encoding",
        "tokens": "token processing",
        "prefill": "LLM prefill",
        "ttft": "time to first token",
    }
    for key, label in labels.items():
        total.add_row(label, seconds(full[key]), seconds(less[key]), times(full[key], less[key]))
    total.add_row("decode video", seconds(result["decode"]), seconds(result["decode"]))
    yield total
    speed = result["ttft_speedup"]
    change = f"{speed:.2f}x sooner" if speed >= 1 else f"{1 / speed:.2f}x later"
    yield (
        f"\nWith {kept / tokens:.0%} of the visual tokens the first token comes "
        f"[bold]{change}[/bold]; {result['accuracy_compressed']:.1%} right instead of "
        f"{result['accuracy_full']:.1%} ({len(rows)} questions, median times)."
    )


def _shown(rows: list[Row]) -> list[Row]:
    """Return up to ``SHOWN`` rows in order, up to a third of them with a wrong answer."""
    right = [r.right("full") and r.right("compressed") for r in rows]
    wrong = [i for i, ok in enumerate(right) if not ok][: SHOWN // 3]
    rest = [i for i in range(len(rows)) if i not in wrong]
    chosen = [*wrong, *rest[:: max(1, len(rest) // SHOWN)]][:SHOWN]
    return [rows[i] for i in sorted(chosen)]


def _mark(text: str, right: bool) -> str:
    plain = text.replace("[", r"\[")
    return f"[green]{plain}[/green]" if right else f"[red]({plain})[/red]"


def _same(a: str, b: str) -> bool:
    return a.strip().strip(".").lower() == b.strip().strip(".").lower()


def _mean(values: Iterator[bool]) -> float:
    return statistics.fmean(float(v) for v in values)


def _medians(rows: list[Row], which: str) -> dict[str, float]:
    answers: list[Answer] = [getattr(r, which) for r in rows]
    return {p: statistics.median(getattr(a.timings, p) for a in answers) for p in _PARTS}
