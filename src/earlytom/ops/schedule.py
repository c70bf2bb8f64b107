"""How many tokens are left after every reduction point, so that exactly the wanted number ends."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate

_STEPS = 64  # resolution of a linear schedule, in parts of a token


def halvings(n: int, points: int) -> int:
    """Return the least number of tokens that ``points`` halvings leave of ``n`` (rounded up)."""
    return -(-n // 2**points)


@lru_cache(maxsize=256)
def linear_counts(points: int, n: int, wanted: int, inflection: Fraction) -> tuple[int, ...]:
    """Remove ``r_l`` tokens at point ``l``, growing linearly from ``r (1 - c)`` to ``r (1 + c)``.

    Bolya et al., ICLR 2023, appendix D. ``r`` is the smallest rate that suffices; no point removes
    more than half of its tokens, and the last ones remove what is still missing.

    Args:
        points: reduction points, at least 1.
        n: tokens at the start.
        wanted: tokens at the end, in [1, n].
        inflection: ``c`` in [-1, 1]: 0 is constant, negative removes more early.

    Returns:
        Tokens left after every point; the last is ``wanted``.

    Raises:
        ValueError: the points cannot remove as many.
    """
    slope = 2 * inflection / max(1, points - 1)
    share = [1 - inflection + slope * i for i in range(points)] if points > 1 else [Fraction(1)]

    def run(rate: int) -> list[int]:
        counts, left = [], n
        for s in share:
            left = max(wanted, left - min(int(rate * s / _STEPS), left // 2))
            counts.append(left)
        return counts

    low, high = 0, math.ceil(_STEPS * n / min(s for s in share if s > 0))
    if run(high)[-1] > wanted:
        raise ValueError(f"{points} points cannot reduce {n} tokens to {wanted}")
    while low < high:
        middle = (low + high) // 2
        if run(middle)[-1] == wanted:
            high = middle
        else:
            low = middle + 1
    return tuple(run(low))


@lru_cache(maxsize=256)
def geometric_counts(points: int, n: int, wanted: int) -> tuple[int, ...]:
    """Keep the same share ``(wanted / n)^(1 / points)`` at every point, at least one half.

    Raises:
        ValueError: the points cannot remove as many.
    """
    if halvings(n, points) > wanted:
        raise ValueError(f"{points} points cannot reduce {n} tokens to {wanted}")
    counts, left = [], n
    for i in range(1, points + 1):
        ideal = round(n ** (1 - i / points) * wanted ** (i / points))
        # what comes after must be able to halve down to ``wanted``
        ideal = min(ideal, wanted * 2 ** (points - i))
        left = min(left, max(wanted, ideal, -(-left // 2)))
        counts.append(left)
    return tuple(counts)


def equal_counts(points: int, n: int, wanted: int) -> tuple[int, ...]:
    """Remove the same number at every point, the first ones one more if it does not divide."""
    base, extra = divmod(n - wanted, points)
    return tuple(n - i * base - min(i, extra) for i in range(1, points + 1))


def parse_rate(points: int, rate: int, inflection: float) -> tuple[int, ...]:
    """Return the tokens removed at every point as facebookresearch/ToMe reads ``(r, c)``.

    Linear from ``int(r (1 - c))`` to ``2 r`` minus that, each truncated.
    """
    first = int(rate * (1 - inflection))
    step = (2 * rate - 2 * first) / max(1, points - 1)
    return tuple(int(first + step * i) for i in range(points))


def ported_counts(points: int, n: int, wanted: int, inflection: float) -> tuple[int, ...]:
    """Tokens left as in the port of ToMe to OneVision: :func:`parse_rate`, no limit of one half.

    The rate is the smallest whose sum suffices; the first points remove less by what is too much.
    """
    rate = 0
    while sum(parse_rate(points, rate, inflection)) < n - wanted:
        rate += 1
    removed = list(parse_rate(points, rate, inflection))
    excess = sum(removed) - (n - wanted)
    for i, r in enumerate(removed):
        less = min(r, excess)
        removed[i], excess = r - less, excess - less
    return tuple(n - gone for gone in accumulate(removed))
