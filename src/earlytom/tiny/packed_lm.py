"""Fast training pass of the language model over clips with many questions each.

The video prefix is shared: question blocks attend to it and to themselves only, and their
positions restart after it, so each block sees exactly what it would see alone in
``model.forward``.  Computes the same as the model itself (a test compares them).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from earlytom.tiny.vocabulary import USER_ID

_CHUNKS = 4
_MASKED = -3e4


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
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
    """One Qwen2 layer over ``[B, prefix + slots * L, D]`` with block attention.

    Prefix queries attend causally, in chunks that skip most of the masked half; question queries
    attend to the whole prefix and causally to their own block of ``L`` tokens.
    """
    attention = layer.self_attn
    batch, length, _ = hidden.shape
    block = (length - prefix) // slots
    x = layer.input_layernorm(hidden)
    view = (batch, length, -1, attention.head_dim)
    query = _rotate(attention.q_proj(x).view(view).transpose(1, 2), cos, sin) * attention.scaling
    key = _rotate(attention.k_proj(x).view(view).transpose(1, 2), cos, sin)
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
    """The language model of a LLaVA-OneVision model, run on cached video tokens."""

    def __init__(self, model: Any, compiled: bool = True) -> None:
        super().__init__()
        self.inner = model.model.language_model
        self.newline = model.model.image_newline
        self._fast = torch.compile(packed_layer, dynamic=False) if compiled else packed_layer
        if compiled:  # one entry per clip length
            torch._dynamo.config.recompile_limit = 32

    def forward(self, video: Tensor, ids: Tensor) -> list[Tensor]:
        """Hidden states after every layer, ``[B, 2 + N + Q * L, D]``, the last one normalised.

        ``video [B, N, D]`` are projected tokens, ``ids [B, Q, L]`` the question blocks.
        """
        batch, slots, block = ids.shape
        embed = self.inner.embed_tokens
        user = embed(torch.full((batch, 1), USER_ID, device=ids.device))
        newline = self.newline.view(1, 1, -1).expand(batch, 1, -1)
        hidden = torch.cat([user, video, newline, embed(ids.flatten(1))], 1)
        prefix = video.shape[1] + 2
        places = torch.arange(prefix + block, device=ids.device)
        places = torch.cat([places[:prefix], places[prefix:].repeat(slots)])[None]
        cos, sin = (part[:, None] for part in self.inner.rotary_emb(hidden, places))
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
