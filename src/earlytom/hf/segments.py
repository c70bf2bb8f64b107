"""Attention of packed towers reaches a probe segment by segment; methods see whole frames."""

from __future__ import annotations

import torch
from torch import Tensor

from earlytom.ops.received import received_attention


class Segments:
    """Queries and keys of one layer on their way.

    Args:
        rows: rows of the layer, over all segments.
    """

    def __init__(self, rows: int) -> None:
        self.missing = rows
        self._query: list[Tensor] = []
        self._key: list[Tensor] = []

    def add(self, query: Tensor, key: Tensor) -> bool:
        """Take over ``[1, heads, n, d]`` of the next segment; True once all rows are there."""
        self._query.append(query)
        self._key.append(key)
        self.missing -= query.shape[2]
        return self.missing <= 0

    def received(self, scaling: float, frame_of: list[int]) -> Tensor:
        """Attention received per row ``[rows]`` float32, averaged over the queries of its frame.

        Args:
            scaling: of the logits.
            frame_of: per segment, the rows of its frame.
        """
        lengths = [q.shape[2] for q in self._query]
        found: list[Tensor] = [self._query[0]] * len(lengths)
        for n in dict.fromkeys(lengths):
            alike = [i for i, length in enumerate(lengths) if length == n]
            query = torch.cat([self._query[i] for i in alike])
            key = torch.cat([self._key[i] for i in alike])
            for i, row in zip(alike, received_attention(query, key, scaling), strict=True):
                found[i] = row if frame_of[i] == n else row * (n / frame_of[i])
        return torch.cat(found)

    def keys(self) -> Tensor:
        """Head-mean keys ``[rows, d]``."""
        return torch.cat([k[0].mean(0) for k in self._key])
