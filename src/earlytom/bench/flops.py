"""Floating point operations of a call in closed form: 2 for every multiply-add of a matrix product.

Counted are linear and convolution layers and the two products of every attention, the latter over
all query-key pairs, also where a causal mask hides half of them (so do PyTorch's own counters).
Attention that a method recomputes to score tokens is counted; its other arithmetic (similarities,
sorting) is not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from earlytom.errors import UnsupportedModelError
from earlytom.method import Method
from earlytom.models.base import Adapter
from earlytom.models.packed import PackedTower
from earlytom.report import Report, VideoReport
from earlytom.stages import EMBEDDINGS, Grid


@dataclass(frozen=True)
class LayerWork:
    """What one layer runs on.

    Attributes:
        rows: sequences.
        attention: tokens of each in the attention.
        mlp: tokens of each in the MLP.
        pairs: query-key pairs of each, None for ``attention`` squared.
    """

    rows: int
    attention: int
    mlp: int
    pairs: int | None = None

    @property
    def products(self) -> int:
        """Query-key pairs of all sequences."""
        return self.rows * (self.attention**2 if self.pairs is None else self.pairs)


@dataclass(frozen=True)
class EncoderWork:
    """What the vision encoder runs on, for one video.

    Attributes:
        frames: frames given to it.
        patches: patches of a frame at its input, class tokens not counted.
        layers: work of every layer, class tokens included.
        projected: rows that the projector gets.
        scored: layer whose received attention is computed once more, or None.
        deep: rows that every projector of middle layers gets (deepstack).
    """

    frames: int
    patches: int
    layers: tuple[LayerWork, ...]
    projected: int
    scored: int | None = None
    deep: tuple[int, ...] = ()


def encoder_work(
    adapter: Adapter,
    frames: int,
    method: Method | None = None,
    report: VideoReport | None = None,
    grid: Grid | None = None,
) -> EncoderWork:
    """Return what the encoder runs on for a video of ``frames`` frames.

    Args:
        adapter: the model.
        frames: input frames.
        method: the method on it, None without one.
        report: what it did to this video.
        grid: of the tokens of a frame, where it differs from video to video.

    Raises:
        UnsupportedModelError: an encoder that this form does not describe, or no grid.
    """
    if isinstance(adapter, PackedTower):
        return _packed_work(adapter, frames, grid or adapter.grid, method, report)
    if adapter.patch_grid is None:
        raise UnsupportedModelError(
            f"no closed form for the operations of {type(adapter.inner).__name__}: its frames are "
            "no rows of patches"
        )
    n_layers, usable = len(adapter.layers), adapter.usable_layers
    classes = adapter.class_tokens
    full = patches = math.prod(adapter.patch_grid)
    if method is None or report is None:
        work = (LayerWork(frames, classes + full, classes + full),) * n_layers
        return EncoderWork(frames, full, work, frames * adapter.projector_rows(full, full))
    coarse = method.encoder_grid(adapter.grid)
    if coarse is not None:
        full = patches = math.prod(adapter.encoder_grid(coarse))
    merged = dict(zip(report.merge_layers, report.frames_per_merge_point, strict=True))
    reduced = dict(report.patch_reductions)
    rebuilt = set(method.rebuild_layers(usable)) if reduced else set()
    layers, present, passed = [], merged.get(EMBEDDINGS, frames), False
    for i in range(n_layers):
        left = reduced.get(i, patches)
        attention = left if method.reduce_place == "input" else patches
        mlp = patches if method.reduce_place == "output" else left
        before = i in reduced and method.reduce_place == "input"
        if i in rebuilt and (passed or before):
            attention = full
        if report.reuse is not None and i >= report.reuse[0]:
            _, fresh, queries = report.reuse
            fresh += classes * frames
            layers.append(LayerWork(1, fresh, fresh, queries * (classes + full)))
            continue
        layers.append(LayerWork(present, classes + attention, classes + mlp))
        patches, passed = left, passed or i in reduced
        if i + 1 < usable:
            present = merged.get(i, present)
    present = merged.get(usable - 1, present)  # in front of the projector
    if passed and method.restore_grid():
        patches = full
    projected = present * adapter.projector_rows(patches, full)
    return EncoderWork(frames, full, tuple(layers), projected, method.score_layer(usable))


def _packed_work(
    adapter: PackedTower,
    frames: int,
    grid: Grid,
    method: Method | None,
    report: VideoReport | None,
) -> EncoderWork:
    """Packed towers attend inside the segments of a frame and only ever lose whole frames."""
    merged = {}
    if report is not None:
        merged = dict(zip(report.merge_layers, report.frames_per_merge_point, strict=True))
    patches, tokens = adapter.frame_patches(grid), grid[0] * grid[1]
    layers, deep, present = [], [], merged.get(EMBEDDINGS, frames)
    for i in range(len(adapter.layers)):
        pairs = sum(n**2 for n in adapter.segments(grid, i))
        layers.append(LayerWork(present, patches, patches, pairs))
        if i in adapter.deep_layers:
            deep.append(present * tokens)
        present = merged.get(i, present)
    scored = None if method is None or report is None else method.score_layer(adapter.usable_layers)
    return EncoderWork(frames, patches, tuple(layers), present * tokens, scored, tuple(deep))


def prompt_work(
    adapter: Adapter, columns: int, method: Method | None = None, report: Report | None = None
) -> tuple[LayerWork, ...]:
    """Return what every decoder layer runs on for a prompt of ``columns`` columns.

    Args:
        adapter: the model.
        columns: columns of one sequence that enter the language model.
        method: the method on it, None without one.
        report: of the call; its ``inner`` says what is left behind every point of stage III.
    """
    depth = len(adapter.decoder_layers)
    attention, mlp = [columns] * depth, [columns] * depth
    if method is not None and report is not None and report.inner:
        points = method.inner_points(depth)
        for point, (layer, _, after) in zip(points, report.inner, strict=True):
            first = layer + point.after_attention
            attention[first:] = [after] * (depth - first)
            mlp[layer:] = [after] * (depth - layer)
    return tuple(LayerWork(1, a, m) for a, m in zip(attention, mlp, strict=True))


def encoder_flops(adapter: Adapter, work: EncoderWork) -> tuple[float, float]:
    """Return the operations (encoder, projector) of one video."""
    width = adapter.encoder_width
    total = 2 * _weights(adapter.embeddings()) * work.frames * work.patches
    for layer, done in zip(adapter.layers, work.layers, strict=True):
        parts = adapter.attention(layer), adapter.mlp(layer)
        total += _layer_flops(parts, done, width)
    if work.scored is not None:
        done = work.layers[work.scored]
        total += 2 * done.products * width
    if adapter.pooling_head is not None:
        total += _head_flops(adapter.pooling_head, work.layers[-1], width)
    projector = 2 * sum(_weights(p) for p in adapter.projectors) * work.projected
    for module, rows in zip(adapter.deep_projectors, work.deep, strict=True):
        projector += 2 * _weights(module) * rows
    return float(total), float(projector)


def llm_flops(model: Any, adapter: Adapter, work: Sequence[LayerWork], logits: int = 1) -> float:
    """Return the operations of the language model for one prompt.

    Args:
        model: the whole model, which has the output embeddings.
        adapter: of the model.
        work: what every decoder layer runs on.
        logits: columns for which logits are computed.
    """
    config: Any = adapter.language_model.config
    heads = int(config.num_attention_heads)
    width = heads * int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    total = 2 * model.get_output_embeddings().weight.numel() * logits
    for layer, done in zip(adapter.decoder_layers, work, strict=True):
        total += _layer_flops((adapter.attention(layer), layer.mlp), done, width)
    return float(total)


def _layer_flops(parts: tuple[Any, Any], done: LayerWork, width: int) -> int:
    attention, mlp = parts
    linear = _weights(attention) * done.attention + _weights(mlp) * done.mlp
    return 2 * done.rows * linear + 4 * done.products * width


def _head_flops(head: nn.Module, done: LayerWork, width: int) -> int:
    """Attention pooling: one query per frame, keys and values of all patches, then an MLP."""
    projections = 2 * (2 * done.attention + 2) * width**2
    mlp = 2 * sum(_weights(m) for name, m in head.named_children() if name != "attention")
    return done.rows * (projections + 4 * done.attention * width + mlp)


def _weights(module: nn.Module) -> int:
    """Multiply-adds per row of all linear and convolution layers in ``module``."""
    total = 0
    for part in module.modules():
        if isinstance(part, nn.Linear):
            total += part.in_features * part.out_features
        elif isinstance(part, (nn.Conv2d, nn.Conv3d)):
            total += part.weight.numel()
    return total
