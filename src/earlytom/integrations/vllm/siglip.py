"""vLLM's SigLIP tower, layer by layer: merges between layers, attention watched, patches reused."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from earlytom.integrations.vllm.encoding import VideoRun
from earlytom.stages import EMBEDDINGS


def encode_frames(tower: Any, pixels: Tensor, run: VideoRun) -> Tensor:
    """Return the states ``[frames left, patches, dim]`` behind the last layer.

    Args:
        tower: vLLM's ``SiglipVisionTransformer``; it holds the layers that are used, no more.
        pixels: ``[frames, 3, height, width]``.
        run: asked behind every layer.
    """
    hidden = run.after_layer(EMBEDDINGS, tower.embeddings(pixels))
    for i, layer in enumerate(tower.encoder.layers):
        if i == run.reuse_layer:
            hidden = run.pack(hidden)
        if i == run.score_layer or run.fresh is not None:
            hidden = _by_parts(layer, hidden, run, i == run.score_layer)
        else:
            hidden, _ = layer(hidden)
        hidden = run.after_layer(i, hidden)
    if run.fresh is not None:
        hidden = run.fresh.unpack(hidden)
    # vLLM leaves the norm out unless features behind it are wanted
    done: Tensor = tower.last_hs_proc(hidden)
    return done


def _by_parts(layer: Any, hidden: Tensor, run: VideoRun, watched: bool) -> Tensor:
    """Run one encoder layer with its attention in sight."""
    attention = layer.self_attn
    joined, _ = attention.qkv_proj(layer.layer_norm1(hidden))
    parts = joined.chunk(3, dim=-1)
    heads = attention.num_heads_per_partition
    query, key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in parts)
    fresh = run.fresh
    if watched and fresh is None:
        run.watch(query, key, attention.scale)
    elif watched and fresh is not None:
        run.watch(fresh.rows(query), fresh.rows(key), attention.scale)
    if fresh is None:
        out = attention.attn(*parts)
    else:
        out, _ = fresh.attend(_attend(attention.scale), query, key, value, attention.scale)
        out = out.flatten(2)
    out, _ = attention.out_proj(out)
    hidden = hidden + out
    mixed: Tensor = layer.mlp(layer.layer_norm2(hidden))
    return hidden + mixed


def _attend(scale: float) -> Any:
    """Return plain attention in the form that packed patches ask for."""

    def attend(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, None]:
        out: Tensor = F.scaled_dot_product_attention(query, key, value, scale=scale)
        return out.transpose(1, 2), None

    return attend
