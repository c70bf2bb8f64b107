"""Public verbs: ``compress``, ``restore``, ``with method(model)`` and ``last_report``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from earlytom.errors import ConfigError
from earlytom.hf import engine
from earlytom.method import Method
from earlytom.report import Report

T = TypeVar("T")


def compress(model: T, method: Method) -> T:
    """Put ``method`` on ``model`` until :func:`restore`; returns the same object.

    Args:
        model: a supported transformers model, or something around it (PEFT model, pipeline,
            ``torch.compile``\\d model).
        method: e.g. ``earlytom.EarlyTom(retention_ratio=0.1)``; replaces one that is already on.

    Raises:
        UnsupportedModelError: not a video model of a supported family.
        ConfigError: the method does not fit the model (layers out of range, ...).
    """
    if not isinstance(method, Method):
        raise ConfigError(f"expected a method such as EarlyTom(...), got {type(method).__name__}")
    engine.attach(model, method)
    return model


def restore(model: T) -> T:
    """Take the method off ``model``: outputs are bit-equal to before ``compress``."""
    engine.detach(model)
    return model


@contextmanager
def compressed(model: T, method: Method) -> Iterator[T]:
    """Compress ``model`` inside the block; afterwards what was on before is on again."""
    previous = engine.controller_of(model)
    compress(model, method)
    try:
        yield model
    finally:
        restore(model)
        if previous is not None:
            compress(model, previous.method)


def active_method(model: Any) -> Method | None:
    """Return the method that is on ``model``, or None."""
    controller = engine.controller_of(model)
    return None if controller is None else controller.method


def last_report(model: Any) -> Report | None:
    """Return what the last compressed call of ``model`` did, or None if there was none.

    The report outlives the compression, so it can be read after ``with method(model): ...``.

    Raises:
        UnsupportedModelError: not a video model of a supported family.
    """
    return engine.last_report(model)
