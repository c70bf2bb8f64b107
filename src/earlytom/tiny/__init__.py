"""A small video language model that ships with the package, its world and its training.

``weights_path()`` is a ``from_pretrained`` folder with a LLaVA-OneVision model of 8.3 million
parameters, trained from scratch on procedurally generated videos.  It answers twelve types of
questions about such videos, so every part of the package can be tried without a download.

Importing this package is cheap; torch and transformers are loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from earlytom.tiny.clips import Clip, make_clip, write_video
    from earlytom.tiny.config import Phase, TrainConfig
    from earlytom.tiny.evaluation import EvalResult, evaluate
    from earlytom.tiny.lmms_task import write_lmms_task
    from earlytom.tiny.questions import Question
    from earlytom.tiny.training import TrainingInterrupted, train

_HOMES = {
    "Clip": "clips",
    "EvalResult": "evaluation",
    "Phase": "config",
    "Question": "questions",
    "TrainConfig": "config",
    "TrainingInterrupted": "training",
    "evaluate": "evaluation",
    "make_clip": "clips",
    "train": "training",
    "write_lmms_task": "lmms_task",
    "write_video": "clips",
}

__all__ = [
    "Clip",
    "EvalResult",
    "Phase",
    "Question",
    "TrainConfig",
    "TrainingInterrupted",
    "evaluate",
    "make_clip",
    "train",
    "weights_path",
    "write_lmms_task",
    "write_video",
]


def weights_path() -> Path:
    """The folder with the shipped model, for ``from_pretrained``."""
    return Path(__file__).parent / "weights"


def __getattr__(name: str) -> Any:
    """Import public names on first use."""
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
