"""What may stand in ``--model_args``, checked before any model is loaded."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from earlytom.checks import check_choice, check_count, check_flag
from earlytom.errors import ConfigError
from earlytom.method import Method
from earlytom.methods import EarlyTom, load_method, method_class
from earlytom.methods.earlytom_presets import MODELS
from earlytom.video import Sampling

LAYOUTS = ("hf", "llava_video")
PREFIX = "method."


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the model ``earlytom``; every other name is a setting of the method.

    Args:
        pretrained: checkpoint folder or Hub id; the small model that comes along if None.
        method: the compression, or None for the uncompressed model.
        frames: frames sampled uniformly from a video file (default: 32; 16 for the small model).
        fps: frames per second to sample instead.
        max_frames: upper limit for ``fps``.
        layout: ``hf``, or ``llava_video`` for LLaVA-Video weights with that model's own pooling
            and newline tokens (see :func:`earlytom.models.use_llava_video_layout`).
        images_as_video: take the images of a request as the frames of one video.
        skip_unreadable: answer with nothing, and go on, where a video cannot be read.
        device: e.g. ``cuda:1``; by default CUDA where available, one device per process.
        dtype: ``float32``, ``bfloat16``, ``float16`` or ``auto`` (as saved).
        attn_implementation: passed to transformers.
        batch_size: requests per call of ``generate``.

    Raises:
        ConfigError: a value out of range.
    """

    pretrained: str | None = None
    method: Method | None = None
    frames: int | None = None
    fps: float | None = None
    max_frames: int | None = None
    layout: str = "hf"
    images_as_video: bool = False
    skip_unreadable: bool = False
    device: str | None = None
    dtype: str | None = None
    attn_implementation: str | None = None
    batch_size: int = 1

    def __post_init__(self) -> None:
        check_choice("layout", self.layout, LAYOUTS)
        check_count("batch_size", self.batch_size)
        for name in ("images_as_video", "skip_unreadable"):
            check_flag(name, getattr(self, name))
        Sampling(self.frames, self.fps, self.max_frames)


def parse_options(**arguments: Any) -> Options:
    """Build :class:`Options` from what lmms-eval hands to a model.

    ``method`` is a name (default ``earlytom``), ``none``, or a JSON file of ``Method.save``.
    The settings of a named method stand beside it by their own names, those whose name is taken
    with ``method.`` in front (``method.frames=[16,8]``). ``preset=TASK`` or ``preset=MODEL/TASK``
    starts from the published settings (:meth:`earlytom.EarlyTom.preset`). Lists are written
    ``[10,21,23]``, None is written ``none``.

    Raises:
        ConfigError: unknown option or setting, or a value out of range.
        VideoError: ``frames``, ``fps`` and ``max_frames`` ask for nothing sensible.
    """
    values = {name: _value(v) for name, v in arguments.items()}
    values.pop("max_batch_size", None)  # lmms-eval always offers it; only batch_size counts here
    own = {f.name for f in dataclasses.fields(Options)}
    settings = {k.removeprefix(PREFIX): v for k, v in values.items() if k not in own}
    chosen = {k: v for k, v in values.items() if k in own}
    if "batch_size" in chosen:
        chosen["batch_size"] = _batch_size(chosen["batch_size"])
    name = values.get("method", "earlytom")
    preset = settings.pop("preset", None)
    chosen["method"] = _method("none" if name is None else str(name), preset, settings, own)
    return Options(**chosen)


def _method(name: str, preset: Any, settings: dict[str, Any], options: set[str]) -> Method | None:
    if name == "none" or name.endswith(".json"):
        if settings or preset is not None:
            given = "preset" if preset is not None else min(settings)
            raise ConfigError(f"{given} has no meaning with method={name}; leave it out")
        return None if name == "none" else Method.load(name)
    known = {f.name for f in dataclasses.fields(method_class(name))}
    unknown = sorted(set(settings) - known)
    if unknown:
        raise ConfigError(
            f"unknown option {unknown[0]!r}; options: {', '.join(sorted({*options, 'preset'}))}; "
            f"settings of {name}: {', '.join(sorted(known))}"
        )
    if preset is None:
        return load_method(name, **settings)
    if name != "earlytom":
        raise ConfigError(f"preset belongs to method=earlytom, not {name}")
    model, _, task = str(preset).rpartition("/")
    ratio = settings.pop("retention_ratio", EarlyTom.retention_ratio)
    return EarlyTom.preset(task, ratio, model or MODELS[1], **settings)


def _value(value: Any) -> Any:
    """Read lists and ``none``; lmms-eval has already read numbers and true or false."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text.lower() in ("none", "null"):
        return None
    if not text.startswith("["):
        return text
    try:
        return tuple(json.loads(text))
    except json.JSONDecodeError as e:
        raise ConfigError(f"not a list such as [10,21,23]: {text}") from e


def _batch_size(value: Any) -> Any:
    try:
        return int(value)
    except (TypeError, ValueError):
        raise ConfigError(f"batch_size must be an integer >= 1, got {value!r}") from None
