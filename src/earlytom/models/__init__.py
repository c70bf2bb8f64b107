"""One small adapter per model family: where its layers, grids and positions are."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import Any, TypeVar

from torch import nn

from earlytom.errors import ConfigError, UnsupportedModelError
from earlytom.models.base import Adapter
from earlytom.models.image_frames import use_frame_prompts
from earlytom.models.internvl import InternVL
from earlytom.models.llava_next_video import LlavaNextVideo
from earlytom.models.llava_onevision import LlavaOnevision
from earlytom.models.llava_video import LAYOUT, LlavaVideo, use_llava_video_layout
from earlytom.models.qwen2_5_vl import Qwen25VL
from earlytom.models.qwen2_vl import Qwen2VL
from earlytom.models.qwen3_vl import Qwen3VL
from earlytom.models.smolvlm import SmolVLM
from earlytom.models.video_llava import VideoLlava
from earlytom.plugins import Plugins, where

__all__ = [
    "Adapter",
    "find_adapter",
    "register_family",
    "supported_model_types",
    "unwrap",
    "use_frame_prompts",
    "use_llava_video_layout",
]

FAMILIES: tuple[type[Adapter], ...] = (
    LlavaOnevision,
    Qwen25VL,
    Qwen2VL,
    Qwen3VL,
    LlavaNextVideo,
    VideoLlava,
    InternVL,
    SmolVLM,
)
F = TypeVar("F", bound="type[Adapter]")
_OTHERS: list[type[Adapter]] = []  # of other packages


def register_family(cls: F) -> F:
    """Class decorator: models of ``cls.model_types`` are seen through this adapter from now on.

    A package can announce a family instead, by an entry point of the group ``earlytom.families``
    that names the class (or a module that registers it); its name is a model type.

    Raises:
        ConfigError: no ``model_types``, or one of them has another adapter.
    """
    if not isinstance(cls, type) or not issubclass(cls, Adapter):
        raise ConfigError(f"{cls!r} is not a subclass of earlytom.models.Adapter")
    if not cls.model_types:
        raise ConfigError(f"{cls.__name__} needs a class attribute `model_types`")
    for family in _families():
        taken = set(family.model_types) & set(cls.model_types)
        if taken and where(family) != where(cls):
            raise ConfigError(f"model type {min(taken)!r} is taken by {where(family)}")
    _OTHERS[:] = [f for f in _OTHERS if where(f) != where(cls)]
    _OTHERS.append(cls)
    return cls


def supported_model_types() -> list[str]:
    """Return the ``config.model_type`` values that have an adapter."""
    _PLUGINS.load()
    return sorted(t for family in _families() for t in family.model_types)


def unwrap(model: Any) -> nn.Module:
    """Return the module inside a pipeline (or the module itself)."""
    module = model if isinstance(model, nn.Module) else getattr(model, "model", None)
    if not isinstance(module, nn.Module):
        raise UnsupportedModelError(
            f"expected a transformers model or pipeline, got {type(model).__name__}"
        )
    return module


def find_adapter(model: Any) -> Adapter:
    """Find the video model inside ``model`` (PEFT-, compile- or pipeline-wrapped too).

    Raises:
        UnsupportedModelError: no module of a known family; the message lists the families.
    """
    root = unwrap(model)
    found = _find(root)
    if found is None:
        _PLUGINS.load()
        found = _find(root)
    if found is not None:
        return found
    kind = getattr(getattr(root, "config", None), "model_type", type(root).__name__)
    if kind in _PLUGINS.broken:
        raise UnsupportedModelError(_PLUGINS.broken[kind])
    raise UnsupportedModelError(
        f"{kind!r} is not supported; supported model types: {', '.join(supported_model_types())}"
    )


def _find(root: nn.Module) -> Adapter | None:
    for module in root.modules():
        kind = getattr(getattr(module, "config", None), "model_type", None)
        for family in _families():
            if kind not in family.model_types:
                continue
            if not callable(getattr(module, family.features_name, None)):
                continue
            if not isinstance(getattr(module, family.language_name, None), nn.Module):
                continue
            return LlavaVideo(module) if LAYOUT in module.__dict__ else family(module)
    return None


def _families() -> tuple[type[Adapter], ...]:
    return (*FAMILIES, *_OTHERS)


def _register(entry: EntryPoint) -> None:
    found = entry.load()
    if isinstance(found, type):
        register_family(found)
    if not any(entry.name in family.model_types for family in _families()):
        raise ConfigError(f"{entry.value} registers no family of that model type")


_PLUGINS = Plugins("earlytom.families", "model family", _register)
