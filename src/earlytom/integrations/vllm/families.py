"""Model families that can be served, told by a checkpoint's config; needs no vLLM."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from earlytom.errors import ConfigError, UnsupportedModelError
from earlytom.integrations.vllm import LLAVA_ONEVISION, QWEN2_5_VL
from earlytom.integrations.vllm.settings import check_servable, served_method
from earlytom.method import Method


def check_llava_onevision(config: Any) -> Method | None:
    """Return the method that a LLaVA-OneVision server runs, None if compression is off.

    Args:
        config: of the checkpoint, with what ``hf_overrides`` ask for.

    Raises:
        ConfigError: the method or the checkpoint cannot be served.
    """
    method = served_method(config)
    if method is not None:
        layers = config.text_config.num_hidden_layers
        check_servable(method, usable_layers(config), layers, token_grid(config))
    return method


def check_qwen2_5_vl(config: Any) -> Method | None:
    """Return the method that a Qwen2.5-VL server runs, None if compression is off.

    Args:
        config: of the checkpoint, with what ``hf_overrides`` ask for.

    Raises:
        ConfigError: the method cannot be served.
    """
    method = served_method(config)
    if method is not None:
        layers = config.get_text_config().num_hidden_layers
        check_servable(method, config.vision_config.depth, layers, None)
    return method


_FAMILIES: dict[str, tuple[str, Callable[[Any], Method | None]]] = {
    "llava_onevision": (LLAVA_ONEVISION, check_llava_onevision),
    "qwen2_5_vl": (QWEN2_5_VL, check_qwen2_5_vl),
}


def architecture_for(config: Any) -> str:
    """Return the architecture to ask a server for, after checking model and method.

    Args:
        config: as for :func:`check_llava_onevision`.

    Raises:
        UnsupportedModelError: not a family that can be served.
        ConfigError: the method or the checkpoint cannot be served.
    """
    kind = config.model_type
    if kind not in _FAMILIES:
        known = ", ".join(sorted(_FAMILIES))
        raise UnsupportedModelError(f"model type {kind!r} cannot be served (allowed: {known})")
    architecture, check = _FAMILIES[kind]
    check(config)
    return architecture


def usable_layers(config: Any) -> int:
    """Encoder layers of a LLaVA-OneVision config that reach the projector.

    Raises:
        ConfigError: no SigLIP tower, several feature layers, or tokens are dropped behind it.
    """
    vision, layer = config.vision_config, config.vision_feature_layer
    strategy = config.vision_feature_select_strategy
    for name, found, wanted in (
        ("vision tower", vision.model_type, "siglip_vision_model"),
        ("vision_feature_select_strategy", strategy, "full"),
        ("vision_feature_layer", type(layer).__name__, "int"),
    ):
        if found != wanted:
            raise ConfigError(f"earlytom needs {name} {wanted}, found {found}")
    return layer if layer >= 0 else vision.num_hidden_layers + 1 + layer


def token_grid(config: Any) -> tuple[int, int]:
    """Return (height, width) of the tokens of a frame behind LLaVA-OneVision's pooling."""
    vision = config.vision_config
    side = math.ceil(vision.image_size // vision.patch_size / 2)
    return side, side
