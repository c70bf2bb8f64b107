"""Which method a server runs, and what of it a request may change."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from earlytom.checks import check_ratio
from earlytom.errors import ConfigError
from earlytom.hf.positions import positions_of
from earlytom.method import Method
from earlytom.models.base import Adapter
from earlytom.ops.tensors import exact
from earlytom.stages import Grid

CONFIG_KEY = "earlytom"  # in --hf-overrides
RATIO = "retention_ratio"  # in mm_processor_kwargs of a request
OFF = "none"
DEFAULT = "earlytom"
_TABLE = 4  # vLLM's rotary table for several axes is so many times as long as the context
_MAX_DIGITS = 18  # numerator and denominator travel as 64-bit integers


def served_method(config: Any) -> Method | None:
    """Return the method that ``hf_overrides`` ask for, None if compression is off.

    Args:
        config: the Hugging Face config; its ``earlytom`` is the JSON form of a method
            (:meth:`Method.to_dict`), ``{"method": "none"}``, or absent: EarlyTom as it comes.

    Raises:
        ConfigError: not a method, an unknown setting, or a value out of range.
    """
    data = getattr(config, CONFIG_KEY, None)
    return method_of({} if data is None else data)


def method_of(data: Any) -> Method | None:
    """Return the method of what :func:`served_method` looks at.

    Raises:
        ConfigError: as there.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(
            f'"{CONFIG_KEY}" in hf_overrides must be an object such as '
            f'{{"method": "{DEFAULT}", "retention_ratio": 0.25}}, got {data!r}'
        )
    data = {"method": DEFAULT, **data}
    if data["method"] == OFF:
        if len(data) > 1:
            raise ConfigError(
                f'method "{OFF}" has no settings, got {sorted(set(data) - {"method"})}'
            )
        return None
    method = Method.from_dict(data)
    check_digits(method.retention_ratio)
    return method


def check_digits(ratio: float) -> None:
    """Raise ConfigError if a ratio has too many digits to travel as two 64-bit integers."""
    if exact(ratio).denominator >= 10**_MAX_DIGITS:
        raise ConfigError(f"{RATIO} must have fewer than {_MAX_DIGITS} decimals, got {ratio!r}")


def split_ratio(arguments: Mapping[str, Any]) -> tuple[float | None, dict[str, Any]]:
    """Return the ratio that a request asks for, and its other processor arguments.

    Raises:
        ConfigError: not a number in (0, 1].
    """
    rest = dict(arguments)
    ratio = rest.pop(RATIO, None)
    if ratio is not None:
        check_ratio(RATIO, ratio)
        check_digits(ratio)
    return ratio, rest


def table_length(text: Any) -> int:
    """Return how many positions vLLM's rotary table for several axes holds.

    Args:
        text: config of the language model.
    """
    rope = getattr(text, "rope_parameters", None) or {}
    context = rope.get("original_max_position_embeddings") or text.max_position_embeddings
    return _TABLE * int(context)


@lru_cache(maxsize=256)
def with_ratio(method: Method, ratio: float) -> Method:
    """Return ``method`` with another ratio.

    Raises:
        ConfigError: the method cannot have it.
    """
    if ratio == method.retention_ratio:
        return method
    return dataclasses.replace(method, retention_ratio=ratio)


def renumbered(family: type[Adapter], method: Method | None) -> bool:
    """Whether the positions of a prompt with compressed videos simply count its tokens."""
    return method is not None and positions_of(family, method) == "renumber"


def check_servable(
    method: Method, encoder_layers: int, decoder_layers: int, grid: Grid | None
) -> None:
    """Raise ConfigError, saying why, unless vLLM can run ``method``.

    Args:
        method: the method.
        encoder_layers: layers of the vision encoder that are used.
        decoder_layers: layers of the language model.
        grid: (height, width) of the tokens of a frame if frames are rows of the encoder's batch;
            None for packed towers, whose videos differ.
    """
    if method.retention_ratio == 1:  # a request may ask for less, and then more of it runs
        method = with_ratio(method, 0.5)
    why = _why_not(method, encoder_layers, decoder_layers, grid)
    if why is not None:
        raise ConfigError(f"{method.name} cannot be served by vLLM: {why}")


def _why_not(
    method: Method, encoder_layers: int, decoder_layers: int, grid: Grid | None
) -> str | None:
    if method.reduce_layers(encoder_layers) or method.rebuild_layers(encoder_layers):
        return "it reduces the patches of frames inside the encoder"
    if method.encoder_grid(grid or (8, 8)) is not None:
        return "it encodes frames at a lower resolution"
    if method.inner_points(decoder_layers):
        return "it acts inside the language model"
    if method.decode_layer(decoder_layers) is not None:
        return "it hides tokens while decoding"
    if method.weighs_tokens:
        hint = " (set weight_power to 0)" if hasattr(method, "weight_power") else ""
        return f"it weighs tokens in attention, which paged attention does not{hint}"
    if not method.exact_budget:
        return (
            "it does not keep exactly its token budget, by which placeholders are counted before a "
            "video is encoded; compose its encoder stage with a token stage that does"
        )
    method.merge_points(encoder_layers)
    method.score_layer(encoder_layers)
    reuse = method.reuse_layer(encoder_layers)
    if reuse is None:
        return None
    if grid is None:
        return (
            "it reuses patches, which is not possible in a packed encoder (set encoder_budget to 1)"
        )
    if not 0 <= reuse < encoder_layers:
        return f"layer {reuse} is not one of the {encoder_layers} encoder layers"
    if method.merge_points(encoder_layers):
        return "it reuses patches and merges frames; only one is possible"
    return None
