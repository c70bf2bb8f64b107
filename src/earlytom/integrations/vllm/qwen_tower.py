"""vLLM's Qwen2.5-VL tower, block by block: merges between blocks, attention watched."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from earlytom.hf.segments import Segments
from earlytom.integrations.vllm.encoding import VideoRun
from earlytom.models.packed import PackedTower
from earlytom.stages import EMBEDDINGS


def encode_frames(tower: Any, adapter: PackedTower, pixels: Tensor, run: VideoRun) -> Tensor:
    """Return the tokens ``[frames left, tokens, dim]`` behind the merger, in raster order.

    Inside the tower the tokens of a frame lie window by window. Frames follow one another, and
    neither windows nor rotary positions depend on the frame, so a merge leaves what the tower would
    prepare for a video of as many frames.

    Args:
        tower: vLLM's ``Qwen2_5_VisionTransformer``.
        adapter: knows windows and the order of tokens.
        pixels: ``[patches, values]`` of one video.
        run: asked behind every block.
    """
    unit, item = tower.spatial_merge_unit, run.item
    hidden = tower.patch_embed(tower.input_norm(pixels.to(tower.device), tower.dtype))
    given = _prepare(tower, run)
    rows = hidden.shape[0]
    hidden = hidden.reshape(rows // unit, unit, -1)[given["window_index"]].reshape(rows, -1)
    patches = item.size * unit

    def merged(layer: int, x: Tensor) -> Tensor:
        if layer not in run.points:
            return x
        return run.after_layer(layer, x.reshape(run.state.n_frames, patches, -1)).flatten(0, 1)

    hidden = merged(EMBEDDINGS, hidden)
    for i, block in enumerate(tower.blocks):
        if hidden.shape[0] != rows:
            rows, given = hidden.shape[0], _prepare(tower, run)
        kind = "full" if i in tower.fullatt_block_indexes else "window"
        inputs = {
            "cu_seqlens": given["cu_seqlens" if kind == "full" else "cu_window_seqlens"],
            "rotary_pos_emb_cos": given["rotary_pos_emb_cos"],
            "rotary_pos_emb_sin": given["rotary_pos_emb_sin"],
            "max_seqlen": given[f"max_seqlen_{kind}"],
            "sequence_lengths": given.get(f"sequence_lengths_{kind}"),
        }
        if i == run.score_layer:
            _watch(block, hidden, inputs, i, adapter, run)
        hidden = merged(i, block(hidden.unsqueeze(1), **inputs).squeeze(1))
    if hidden.shape[0] != rows:
        given = _prepare(tower, run)
    if hidden.dtype == torch.float16:  # the last block of some checkpoints overflows
        limit = torch.finfo(hidden.dtype).max - 1000
        hidden = hidden.clamp(-limit, limit)
    tokens: Tensor = tower.merger(hidden.unsqueeze(1))[given["reverse_indices"]]
    return tokens.unflatten(0, (run.state.n_frames, item.size))


def _prepare(tower: Any, run: VideoRun) -> dict[str, Any]:
    """Segments, rotary embeddings and orders for the frames that are left."""
    height, width = (side * tower.spatial_merge_size for side in run.item.grid)
    found: dict[str, Any] = tower.prepare_encoder_metadata([[run.state.n_frames, height, width]])
    return found


def _watch(
    block: Any,
    hidden: Tensor,
    inputs: dict[str, Any],
    layer: int,
    adapter: PackedTower,
    run: VideoRun,
) -> None:
    """Measure the attention of a block from its input, segment by segment."""
    attention = block.attn
    heads, width = (
        attention.num_attention_heads_per_partition,
        attention.hidden_size_per_attention_head,
    )
    joined, _ = attention.qkv(block.norm1(hidden.unsqueeze(1)))
    query, key, _ = joined.view(1, hidden.shape[0], 3, heads, width).unbind(2)
    cos, sin = inputs["rotary_pos_emb_cos"], inputs["rotary_pos_emb_sin"]
    rotated = attention.apply_rotary_emb(torch.cat([query, key]).contiguous(), cos, sin)
    query, key = rotated.transpose(1, 2).chunk(2)
    segments = Segments(hidden.shape[0])
    for start, end in pairwise(_ends(adapter, layer, run)):
        segments.add(query[:, :, start:end], key[:, :, start:end])
    frames = adapter.segment_frames(layer, [run.state])
    received = segments.received(width**-0.5, frames)
    shape = (run.state.n_frames, -1)
    run.measured(received.unflatten(0, shape), segments.keys().unflatten(0, shape))


def _ends(adapter: PackedTower, layer: int, run: VideoRun) -> Sequence[int]:
    """Row at which every segment begins, and the last one's end."""
    ends = [0]
    for length in adapter.segments(run.item.grid, layer) * run.state.n_frames:
        ends.append(ends[-1] + length)
    return ends
