"""Published times to first token (EarlyTom, CVPR 2026, table 1 and project page; one A100).

Milliseconds with eager attention in the encoder, whole model, 32 frames x 196 tokens (LLaVA-Video:
64 frames). They are other hardware and other software than what is measured here, and stand beside
it for orientation only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from earlytom.bench.speed.tables import Table, stage_columns

PUBLISHED: dict[str, dict[str, dict[float, float]]] = {
    "llava-onevision-7b": {
        "full": {1.0: 889.9},
        "fastv": {1.0: 820.0},
        "pyramiddrop": {1.0: 813.4},
        "dycoke": {0.25: 905.6},
        "visionzip": {0.25: 516.6, 0.2: 495.0, 0.15: 475.9, 0.1: 458.5},
        "prunevid": {0.25: 703.6, 0.2: 662.1, 0.15: 574.1, 0.1: 592.2},
        "fastvid": {0.25: 581.6, 0.2: 546.6, 0.15: 530.8, 0.1: 502.1},
        "holitom": {0.25: 661.3, 0.2: 622.3, 0.15: 572.7, 0.1: 556.6},
        "earlytom": {0.25: 426.3, 0.2: 415.3, 0.15: 390.6, 0.1: 336.2},
    },
    "llava-onevision-0.5b": {
        "full": {1.0: 413.7},
        "visionzip": {0.25: 368.6, 0.2: 368.5, 0.15: 367.1, 0.1: 366.1},
        "fastvid": {0.25: 409.9, 0.2: 412.6, 0.15: 411.3, 0.1: 408.5},
        "holitom": {0.25: 519.4, 0.2: 499.4, 0.15: 473.9, 0.1: 457.1},
        "earlytom": {0.25: 331.5, 0.2: 313.1, 0.15: 311.1, 0.1: 280.1},
    },
    "llava-video-7b": {
        "full": {1.0: 6429.3},
        "fastv": {1.0: 3494.3},
        "pyramiddrop": {1.0: 3494.8},
        "visionzip": {0.15: 3241.4},
        "holitom": {0.15: 1669.5},
        "earlytom": {0.15: 947.4},
    },
}


def beside(data: Mapping[str, Any]) -> Table:
    """Return header and rows of what was measured, with what was published beside it."""
    table = PUBLISHED.get(str(data["model"]["name"]), {})
    full = table.get("full", {}).get(1.0)
    first, shown = stage_columns(data)
    lines = []
    for case in data["cases"]:
        label = "earlytom" if case["label"].startswith("earlytom-") else case["label"]
        there = table.get(label, {}).get(case["retention_ratio"])
        times = "-" if there is None else f"{there:.0f}"
        speed = "-" if there is None or full is None else f"{full / there:.2f}x"
        lines.append((*shown(case), times, speed))
    return (*first, "paper ms", "speed"), lines
