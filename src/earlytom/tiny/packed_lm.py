"""Fast training pass of the language model over clips with many questions each.

The video prefix is shared: question blocks attend to it and to themselves only, and their
positions restart after it, so each block sees exactly what it would see alone in
``model.forward``.  Computes the same as the model itself (a test compares them).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from earlytom.tiny.architecture import Architecture
from earlytom.tiny.world import CELLS

_CHUNKS = 4
_MASKED = -3e4


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of ``x [B, H, S, D]``."""
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), -1)
    return x * cos + turned * sin


def _softmax(scores: Tensor) -> Tensor:
    return scores.float().softmax(-1).to(scores.dtype)


def _triangle(rows: int, columns: int, like: Tensor) -> Tensor:
    """Additive causal mask for the last ``rows`` of ``columns`` positions."""
    mask = torch.full((rows, columns), _MASKED, dtype=like.dtype, device=like.device)
    return mask.triu(columns - rows + 1)


def packed_layer(
    layer: Any, hidden: Tensor, cos: Tensor, sin: Tensor, prefix: int, slots: int
) -> Tensor:
    """One layer of Qwen2 or Qwen2.5-VL over ``[B, prefix + slots * L, D]`` with block attention.

    Prefix queries attend causally, in chunks that skip most of the masked half; question queries
    attend to the whole prefix and causally to their own block of ``L`` tokens.
    """
    attention = layer.self_attn
    batch, length, _ = hidden.shape
    block = (length - prefix) // slots
    x = layer.input_layernorm(hidden)
    view = (batch, length, -1, attention.head_dim)
    query = rotate(attention.q_proj(x).view(view).transpose(1, 2), cos, sin) * attention.scaling
    key = rotate(attention.k_proj(x).view(view).transpose(1, 2), cos, sin)
    value = attention.v_proj(x).view(view).transpose(1, 2)
    groups = attention.num_key_value_groups
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    parts = []
    step = -(-prefix // _CHUNKS)
    for start in range(0, prefix, step):
        end = min(prefix, start + step)
        scores = query[:, :, start:end] @ key[:, :, :end].mT
        scores = scores + _triangle(end - start, end, scores)
        parts.append(_softmax(scores) @ value[:, :, :end])
    heads = query.shape[1]
    own = (batch, heads, slots, block, attention.head_dim)
    asked = query[:, :, prefix:]
    to_video = (asked @ key[:, :, :prefix].mT).view(batch, heads, slots, block, prefix)
    to_self = asked.reshape(own) @ key[:, :, prefix:].reshape(own).mT
    to_self = to_self + _triangle(block, block, to_self)
    weights = _softmax(torch.cat([to_video, to_self], -1))
    from_video = weights[..., :prefix].reshape(batch, heads, -1, prefix) @ value[:, :, :prefix]
    from_self = weights[..., prefix:] @ value[:, :, prefix:].reshape(own)
    parts.append(from_video + from_self.reshape(from_video.shape))
    mixed = torch.cat(parts, 2).transpose(1, 2).reshape(batch, length, -1)
    hidden = hidden + attention.o_proj(mixed)
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden))


class PackedLanguageModel(nn.Module):
    """The language model of a tiny model, run on cached video tokens."""

    def __init__(self, arch: Architecture, model: Any, compiled: bool = True) -> None:
        super().__init__()
        self.arch = arch
        self.inner = model.model.language_model
        self.newline = arch.video_end(model)
        self._fast = torch.compile(packed_layer, dynamic=False) if compiled else packed_layer
        if compiled:  # one entry per clip length
            torch._dynamo.config.recompile_limit = 32

    def forward(self, video: Tensor, ids: Tensor, interval: float | None = None) -> list[Tensor]:
        """Hidden states after every layer, ``[B, prefix + Q * L, D]``, the last one normalised.

        ``video [B, N, D]`` are visual tokens, ``ids [B, Q, L]`` the question blocks, ``interval``
        the time positions per step.
        """
        batch, slots, block = ids.shape
        arch, device = self.arch, ids.device
        embed = self.inner.embed_tokens
        before = embed(torch.tensor([arch.before] * batch, device=device))
        if self.newline is None:
            behind = embed(torch.tensor([arch.behind] * batch, device=device))
        else:
            behind = self.newline.view(1, 1, -1).expand(batch, 1, -1)
        hidden = torch.cat([before, video, behind, embed(ids.flatten(1))], 1)
        steps = video.shape[1] // CELLS
        prefix = hidden.shape[1] - slots * block
        places = arch.positions(steps, block, interval).to(device)
        asked = places[..., prefix:]
        places = torch.cat([places[..., :prefix], *[asked] * slots], -1)
        cos, sin = arch.rotary(self.inner, hidden, places)
        states = []
        run = self._fast if torch.is_grad_enabled() else packed_layer
        for layer in self.inner.layers:
            hidden = run(layer, hidden, cos, sin, prefix, slots)
            states.append(hidden)
        states.append(self.inner.norm(hidden))
        return states

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits in float32 through the tied embedding."""
        return nn.functional.linear(hidden, self.inner.embed_tokens.weight).float()
