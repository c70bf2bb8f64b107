"""Public verbs: ``compress``, ``compile``, ``restore``, ``last_report``, ``with method(model)``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from earlytom.errors import ConfigError
from earlytom.hf import engine
from earlytom.hf.compiled import CompileSettings
from earlytom.hf.options import Options
from earlytom.method import Method
from earlytom.models import find_adapter
from earlytom.report import Report

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class _Everything(Method):
    """Keeps all tokens: the uncompressed model, encoded in another way."""

    name: ClassVar[str] = "uncompressed"


def _checked(method: Any) -> Method:
    if not isinstance(method, Method):
        raise ConfigError(f"expected a method such as EarlyTom(...), got {type(method).__name__}")
    return method


def compress(
    model: T,
    method: Method | None,
    *,
    frames_per_chunk: int | None = None,
    images: bool = False,
) -> T:
    """Put ``method`` on ``model`` until :func:`restore`; returns the same object.

    Args:
        model: a supported transformers model, or something around it (PEFT model, pipeline,
            ``torch.compile``\\d model).
        method: e.g. ``earlytom.EarlyTom(retention_ratio=0.1)``; replaces one that is already on.
            None with ``frames_per_chunk``: nothing is removed.
        frames_per_chunk: the vision encoder takes so many frames of the videos of a call at a
            time, so that its memory follows the states of the frames left only (see
            ``docs/long-video.md``). None: all frames at once. Decisions see the whole video either
            way.
        images: run the token stage on images of the prompt as well: of every image exactly
            ``max(1, ceil(retention_ratio * n))`` of ``n`` tokens are kept (see ``docs/images.md``).

    Raises:
        UnsupportedModelError: not a video model of a supported family, or ``images`` with one whose
            images are out of reach.
        ConfigError: the method does not fit the model (layers out of range, ...), it keeps no exact
            number of tokens (``images``), or a bad ``frames_per_chunk`` or ``images``.
    """
    if method is None and frames_per_chunk is not None:
        method = _Everything(retention_ratio=1.0)
    engine.attach(model, _checked(method), options=Options(frames_per_chunk, images))
    return model


def compile(
    model: T,
    method: Method | None = None,
    frames: int | Sequence[int] = 16,
    *,
    backend: str | Callable[..., Any] = "inductor",
    mode: str | None = None,
) -> T:
    """Put ``method`` on ``model`` as :func:`compress` does, with a compiled vision encoder.

    Between pixels and projector a video of ``frames`` frames then runs as one compiled graph,
    frame merging included; the host waits once, for the plans. Other numbers of frames, images
    and unusual calls (training mode, all hidden states, hooks of your own inside the encoder) run
    as with :func:`compress`; a line at level DEBUG says why. Compilation happens at the first call
    with so many frames and videos. :func:`restore` takes everything off, and so does the next
    :func:`compress` or :func:`compile`; ``with other(model): ...`` keeps the graphs for later.

    Decisions are made with the same arithmetic as in :func:`compress`; with backend ``eager`` the
    results are equal bit for bit, other backends round differently. ``hidden_states`` of
    ``get_video_features`` holds only the layer that the projector reads, ``last_hidden_state`` is
    None.

    Args:
        model: as for :func:`compress`, with a SigLIP tower on one device.
        method: None: nothing is removed. ``EarlyTom`` with policy ``budget`` and any selection
            but ``decoupled``, a method that acts behind the encoder only, or a ``Compose`` of such.
        frames: number of frames of a video to compile for, or several. Every number of videos in a
            call gets a graph of its own.
        backend: of ``torch.compile``.
        mode: of ``torch.compile``; ``reduce-overhead`` replays the encoder as a CUDA graph.

    Returns:
        The same object.

    Raises:
        UnsupportedModelError: not a video model of a supported family, or not an encoder whose
            layers can be called one by one.
        ConfigError: the method does not fit the model or cannot run with fixed shapes, or a bad
            ``frames``, ``backend`` or ``mode``.
        BudgetError: the method cannot meet its budget with so many frames.
    """
    method = _checked(_Everything(retention_ratio=1.0) if method is None else method)
    counts = tuple(frames) if isinstance(frames, Sequence) else (frames,)
    settings = CompileSettings(counts, backend, mode)
    engine.attach(model, method, settings)
    return model


def fitted(method: Method, model: Any) -> Method:
    """Return ``method``, or what is left of it where the encoder cannot reuse single patches.

    For defaults that have to suit every family; :func:`compress` refuses such a method.

    Raises:
        UnsupportedModelError: not a video model of a supported family.
    """
    rest = method.without_reuse()
    return method if rest is None or find_adapter(model).patch_grid is not None else rest


def restore(model: T) -> T:
    """Take the method off ``model``: outputs are bit-equal to before ``compress``."""
    engine.detach(model)
    return model


@contextmanager
def compressed(
    model: T,
    method: Method | None,
    *,
    frames_per_chunk: int | None = None,
    images: bool = False,
) -> Iterator[T]:
    """Compress ``model`` inside the block; afterwards what was on before is on again.

    Arguments are those of :func:`compress`.
    """
    previous = engine.controller_of(model)
    compress(model, method, frames_per_chunk=frames_per_chunk, images=images)
    try:
        yield model
    finally:
        restore(model)
        if previous is not None:
            engine.put_on(model, previous)  # compiled graphs included


def active_method(model: Any) -> Method | None:
    """Return the method that is on ``model``, or None (also if it only runs in another way)."""
    controller = engine.controller_of(model)
    if controller is None or isinstance(controller.method, _Everything):
        return None
    return controller.method


def last_report(model: Any) -> Report | None:
    """Return what the last compressed call of ``model`` did, or None if there was none.

    The report outlives the compression, so it can be read after ``with method(model): ...``.

    Raises:
        UnsupportedModelError: not a video model of a supported family.
    """
    return engine.last_report(model)
