"""Invented run files in the runner's format, with known answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

TYPES = ("color", "shape", "count", "rel", "motion", "order", "after", "moment", "needle", "shots",
         "digit", "change")  # fmt: skip
ENVIRONMENT = {"python": "3.11.7", "torch": "2.13.0", "transformers": "5.23.0", "earlytom": "0.1.0",
               "commit": "abc1234", "cpu": "Invented CPU", "threads": 2, "dtype": "float32",
               "attention": "sdpa", "date": "2026-11-21T12:00:00"}  # fmt: skip
FULL_FLOPS, FULL_SECONDS = 8e9, (0.2, 0.05)


def questions(clips=40, per_clip=6, kinds=TYPES):
    """Clip and type columns; every clip has ``per_clip`` questions."""
    n = clips * per_clip
    return [i // per_clip for i in range(n)], [kinds[i % len(kinds)] for i in range(n)]


def run(label, ratio, correct, *, model="tiny-seed0", split="standard", columns=None, written=None,
        status="done", note=None, cost=1.0, method=None, environment=None, seed=1,
        seen=None):  # fmt: skip
    """One run file as a dict. ``correct`` and ``written`` are lists of 0 and 1.

    ``seen`` is the achieved share of tokens in the language model, 0.9 of the ratio by default.
    """
    clip, kind = columns or questions()
    full = label == "full"
    record = {
        "schema": 1, "status": status, "note": note,
        "model": {"name": model, "path": ".", "parameters": 8.3e6,
                  "weights": "trained (generated videos)", "sha256": "ab12" * 16},
        "split": split, "frames": 16, "seed": seed,
        "label": label, "method": None if full else method or label.split("-")[0],
        "config": None if full else {"method": label, "retention_ratio": ratio, "knob": 3},
        "retention_ratio": ratio, "positions": "keep",
    }  # fmt: skip
    environment = {**ENVIRONMENT, **(environment or {})}
    if status != "done":
        return {**record, "questions": None, "environment": environment}
    correct = [int(v) for v in correct]
    columns = {"clip": list(clip), "type": list(kind), "correct": correct}
    if written is not None:
        columns["open"] = [int(v) for v in written]
        record["open_accuracy"] = sum(written) / len(written)
    encode, answer = (s * cost for s in FULL_SECONDS)
    return {
        **record,
        "questions": columns,
        "accuracy": sum(correct) / len(correct),
        "achieved": {"retention": ratio,
                     "llm_retention": 0.9 * ratio if seen is None else seen, "frames_out": 7.0,
                     "encoder_compute": 0.4 + 0.6 * cost},
        "flops": {"encoder": 0.5 * FULL_FLOPS, "projector": 1e8, "llm": 1e9,
                  "total": FULL_FLOPS * cost},
        "time": {"encode_s": {"median": encode, "q1": encode, "q3": encode},
                 "answer_s": {"median": answer, "q1": answer, "q3": answer}, "wall_s": 60.0},
        "memory": {"peak_rss_mib": 700.0},
        "environment": environment,
    }  # fmt: skip


def store(folder: Path, *records) -> list[Path]:
    """Write runs where the runner would."""
    paths = []
    for r in records:
        path = folder / "runs" / r["model"]["name"] / r["split"]
        path /= f"{r['label']}@{r['retention_ratio']:.2f}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(r))
        paths.append(path)
    return paths


def first_right(share, n=240):
    """``n`` answers of which the stated share is right, spread evenly over the clips."""
    wanted = round(share * n)
    return [int((i + 1) * wanted // n > i * wanted // n) for i in range(n)]


METHODS = {
    "earlytom": (0.96, 0.93, 0.9), "earlytom-official": (0.93, 0.8, 0.54),
    "earlytom-paper": (0.94, 0.86, 0.63), "holitom": (0.95, 0.91, 0.8),
    "visionzip": (0.93, 0.88, 0.7), "vidcom2": (0.92, 0.87, 0.72), "evs": (0.9, 0.82, 0.66),
    "dycoke": (0.91, 0.84, 0.6), "prunevid": (0.94, 0.89, 0.76), "prumerge": (0.88, 0.8, 0.5),
    "random": (0.86, 0.74, 0.55), "uniform-frames": (0.85, 0.7, 0.45), "fastv": (0.94, 0.85, 0.5),
}  # fmt: skip
RATIOS = (0.5, 0.25, 0.1)


def benchmark(folder: Path, models=("tiny-seed0", "tiny-seed1"), splits=("standard", "long")):
    """A whole benchmark: thirteen methods, three ratios, some runs missing or unreachable."""
    rng = np.random.default_rng(5)
    hard = {k: rng.random(240) for k in splits}
    type_shift = np.tile(rng.normal(0, 0.08, len(TYPES)), 20)
    for s, split in enumerate(splits):
        for m, model in enumerate(models):

            def answers(share, split=split, m=m, s=s):
                chance = share - 0.02 * m - 0.05 * s + type_shift * (1 - share) * 3
                return (hard[split] + rng.normal(0, 0.1, 240) < chance).astype(int)

            where = {"model": model, "split": split}
            store(folder, run("full", 1.0, answers(1.02), written=answers(1.0), **where))
            for label, shares in METHODS.items():
                for ratio, share in zip(RATIOS, shares, strict=True):
                    more = {}
                    if label == "prumerge" and ratio == 0.1:
                        more = {
                            "status": "unreachable",
                            "note": "keeps at least 12 % of the tokens",
                        }
                    if label == "fastv":
                        more = {"note": "retention is that of the language model's layers"}
                    if label == "random" and ratio == 0.5 and m == 1:
                        continue
                    if label == "evs" and ratio == 0.25:
                        continue
                    inner = {"holitom": 0.1, "earlytom": -0.25, "earlytom-official": -0.1}
                    cost = 0.62 + 0.38 * ratio + inner.get(label, 0.0) + 0.01 * len(label)
                    store(folder, run(label, ratio, answers(share), written=answers(share - 0.05),
                                      cost=cost, **where, **more))  # fmt: skip
    return folder
