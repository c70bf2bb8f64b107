"""Spread an average over the layers of a language model over the steps that prune inside it."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction


def scaled_layers(published: Sequence[int], depth: int, n_layers: int) -> tuple[int, ...]:
    """Scale layers of a model of ``depth`` layers to ``n_layers``, distinct, the last one left out.

    Steps that have no layer of their own in a very shallow model are dropped.
    """
    layers: list[int] = []
    for layer in published:
        scaled = round(Fraction(layer * n_layers, depth))
        layers.append(max(scaled, layers[-1] + 1 if layers else 0))
    return tuple(layer for layer in layers if layer <= n_layers - 2)


def stage_shares(
    ratio: Fraction, n_layers: int, first: Sequence[int], profile: Sequence[int]
) -> list[Fraction]:
    """Return the share of tokens left behind every step, in given proportions, at most 1.

    Args:
        ratio: wanted average over layers of the share present.
        n_layers: layers of the language model.
        first: first layer behind every step, ascending, below ``n_layers``.
        profile: proportions of the shares, descending.

    Raises:
        ValueError: the layers in front of the first step alone cost the average or more.
    """
    left = ratio * n_layers - first[0]
    if left <= 0:
        raise ValueError(f"{first[0]} of {n_layers} layers alone cost {ratio} or more")
    ends = [*first[1:], n_layers]
    lengths = [b - a for a, b in zip(first, ends, strict=True)]
    shares: list[Fraction] = []
    for i in range(len(lengths)):  # steps whose share would exceed 1 keep everything
        weight = sum(n * p for n, p in zip(lengths[i:], profile[i:], strict=True))
        if left * profile[i] < weight:
            return [*shares, *(left * p / weight for p in profile[i:])]
        shares.append(Fraction(1))
        left -= lengths[i]
    return shares
