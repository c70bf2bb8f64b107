"""Attention rows of a few queries, inside the language model; never a whole map."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from earlytom.errors import UnsupportedModelError


def attention_rows(
    query: Tensor, key: Tensor, scaling: float, place: Tensor, past: Tensor | None
) -> Tensor:
    """Softmax rows of some queries of one sequence, causal.

    Args:
        query: ``[heads, q, d]``.
        key: ``[key heads, past + n, d]``; the last ``n`` columns belong to this step.
        scaling: of the logits.
        place: ``[q]`` int64, column (of the ``n``) of every query.
        past: ``[past]`` bool, earlier columns that are real; None: there are no earlier ones.

    Returns:
        ``[heads, q, n]`` float32; what goes to earlier columns is left out.
    """
    heads, q, dim = query.shape
    grouped = query.float().reshape(key.shape[0], -1, dim)
    logits = (grouped @ key.float().transpose(1, 2) * scaling).view(heads, q, -1)
    total = key.shape[1]
    n = total - (0 if past is None else past.shape[0])
    later = torch.arange(n, device=key.device) > place[:, None]
    logits[..., total - n :].masked_fill_(later, -torch.inf)
    if past is not None:
        logits[..., : total - n].masked_fill_(~past, -torch.inf)
    return logits.softmax(-1)[..., total - n :]


@dataclass(frozen=True)
class Seen:
    """Queries and keys of one layer.

    Attributes:
        layer: its number.
        query: gives ``[heads, q, d]`` of sequence ``b`` for some of its columns ``[q]``.
        key: ``[batch, key heads, columns, d]``, those of earlier turns first.
        scaling: of the logits.
    """

    layer: int
    query: Callable[[int, Tensor], Tensor]
    key: Tensor
    scaling: float

    def rows(
        self, b: int, asked: Tensor | None, width: int, count: int, past: Tensor | None
    ) -> Tensor | None:
        """Attention rows of one sequence.

        Args:
            b: its row in the batch.
            asked: ``[q]`` queries, counted without padding; None: the last one.
            width: columns of this step, padding included.
            count: real columns, at the end.
            past: ``[batch, k]`` bool, earlier columns that are real; None: there are none.

        Returns:
            ``[heads, q, count]`` float32, or None if nothing is asked for.
        """
        start, device = width - count, self.key.device
        if asked is None:
            asked = torch.arange(count - 1, count, device=device)
        if not asked.numel():
            return None
        asked = asked.to(device)
        before = 0 if past is None else past.shape[1]
        key = self.key[b, :, : before + width]
        if start:
            key = torch.cat([key[:, :before], key[:, before + start :]], 1)
        mine = None if past is None else past[b].to(device)
        with torch.no_grad():
            query = self.query(b, asked + start)
            return attention_rows(query, key, self.scaling, asked, mine)


class LayerSignal:
    """Queries and keys that a decoder layer would compute from its input, without running it.

    Raises:
        UnsupportedModelError: the layer's parts are not named as in Llama and Qwen2 models.
    """

    def __init__(self, layer: nn.Module, attention: nn.Module) -> None:
        self.layer: Any = layer
        self.attention: Any = attention
        code = sys.modules[type(attention).__module__]
        self.rotate: Any = getattr(code, "apply_rotary_pos_emb", None)
        if hasattr(code, "apply_multimodal_rotary_pos_emb"):  # its axes are joined beforehand
            from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

            self.rotate = apply_rotary_pos_emb
        parts = [(layer, "input_layernorm"), (attention, "q_proj"), (attention, "k_proj")]
        missing = [name for owner, name in parts if not hasattr(owner, name)]
        if missing or self.rotate is None:
            raise UnsupportedModelError(
                f"{type(attention).__name__} has no {(missing or ['apply_rotary_pos_emb'])[0]}: "
                "its attention cannot be computed in front of the layer"
            )

    @property
    def scaling(self) -> float:
        """Factor of the logits."""
        return float(getattr(self.attention, "scaling", self.attention.head_dim**-0.5))

    @torch.no_grad()
    def see(
        self, index: int, hidden: Tensor, rope: tuple[Tensor, Tensor], held: Tensor | None
    ) -> Seen:
        """Queries and keys of layer ``index``.

        Args:
            index: number of the layer.
            hidden: ``[batch, n, dim]``, its input.
            rope: cos and sin ``[batch, n, d]``.
            held: ``[batch, key heads, k, d]`` keys of earlier turns, or None.
        """
        normed = self.layer.input_layernorm(hidden.detach())
        key = self._heads(normed, "k", rope)
        if held is not None:
            key = torch.cat([held.to(key), key], 2)

        def query(b: int, place: Tensor) -> Tensor:
            cos, sin = (part[b : b + 1].index_select(1, place) for part in rope)
            return self._heads(normed[b : b + 1].index_select(1, place), "q", (cos, sin))[0]

        return Seen(index, query, key, self.scaling)

    def _heads(self, normed: Tensor, which: str, rope: tuple[Tensor, Tensor]) -> Tensor:
        module = self.attention
        x = getattr(module, f"{which}_proj")(normed)
        x = x.unflatten(-1, (-1, module.head_dim))
        norm = getattr(module, f"{which}_norm", None)
        x = (x if norm is None else norm(x)).transpose(1, 2)
        cos, sin = (part.to(x.device) for part in rope)
        rotated: Tensor = self.rotate(x, x[:, :1], cos, sin)[0]
        return rotated
