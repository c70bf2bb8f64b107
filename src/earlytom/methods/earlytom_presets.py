"""Published settings of EarlyTom: thresholds and merge layers were tuned per task and ratio."""

from __future__ import annotations

from typing import Any

from earlytom.errors import ConfigError

Setting = tuple[float, tuple[int, int, int]]  # tau, merge layers of the 26-layer SigLIP
_RATIOS = (0.1, 0.15, 0.2, 0.25)

_ONEVISION: dict[str, tuple[Setting, Setting, Setting, Setting]] = {
    "mvbench": (
        (0.65, (8, 14, 20)),
        (0.8, (6, 14, 20)),
        (0.8, (6, 14, 20)),
        (0.8, (6, 14, 20)),
    ),
    "videomme": (
        (0.3, (10, 21, 23)),
        (0.4, (8, 21, 23)),
        (0.5, (8, 21, 23)),
        (0.7, (10, 21, 23)),
    ),
    "egoschema": (
        (0.3, (10, 21, 23)),
        (0.5, (10, 21, 23)),
        (0.6, (10, 21, 23)),
        (0.7, (10, 21, 23)),
    ),
    "longvideobench": (
        (0.3, (10, 21, 23)),
        (0.5, (10, 21, 23)),
        (0.6, (10, 21, 23)),
        (0.8, (4, 14, 24)),
    ),
}
_LLAVA_VIDEO: dict[tuple[str, float], Setting] = {
    ("videomme", 0.25): (0.6, (10, 21, 23)),
    ("longvideobench", 0.25): (0.8, (6, 21, 23)),
}
MODELS = ("llava-onevision-0.5b", "llava-onevision-7b", "llava-video-7b")
TASKS = tuple(sorted(_ONEVISION))


def published_settings(task: str, retention_ratio: float, model: str) -> dict[str, Any]:
    """Return the settings of the released scripts (``scripts/ov``, ``scripts/llava-vid``).

    Args:
        task: one of ``TASKS``; case, blanks, ``-`` and ``_`` do not matter.
        retention_ratio: 0.1, 0.15, 0.2 or 0.25.
        model: one of ``MODELS``.

    Raises:
        ConfigError: nothing was published for this; the message lists what was.
    """
    key = "".join(c for c in str(task).lower() if c.isalnum())
    if key not in _ONEVISION:
        raise ConfigError(f"no published settings for task {task!r}; there are: {', '.join(TASKS)}")
    if retention_ratio not in _RATIOS:
        listed = ", ".join(f"{r:g}" for r in _RATIOS)
        raise ConfigError(
            f"no published settings for retention_ratio {retention_ratio!r}; there are: {listed}"
        )
    if model not in MODELS:
        raise ConfigError(f"no published settings for model {model!r}; there are: {MODELS}")
    setting = _ONEVISION[key][_RATIOS.index(retention_ratio)]
    if model == "llava-video-7b":
        setting = _LLAVA_VIDEO.get((key, retention_ratio), setting)
    tau, layers = setting
    return {
        "retention_ratio": retention_ratio,
        "tau": tau,
        "merge_layers": layers,
        "ema": 0.9,
        "max_window": 6,
        "inner_merge_layer": 18,
        "inner_ratio": 0.5,
    }
