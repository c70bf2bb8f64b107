"""DPC-KNN clustering of groups of different sizes at once (HoliTom, PruneVid)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from earlytom.ops.plan import Groups
from earlytom.ops.tensors import CHUNK_BYTES, full_precision, slices, to_device


@dataclass(frozen=True)
class Clusters:
    """Clusters of rows, numbered group by group, inside a group from the highest score down.

    Attributes:
        centre: ``[K]`` int64 row of every centre.
        owner: ``[R]`` int64 cluster of every row; ``K`` in a group without clusters.
    """

    centre: Tensor
    owner: Tensor

    def in_row_order(self) -> Clusters:
        """Return the same clusters numbered by the row of their centre."""
        centre, order = self.centre.sort()
        number = torch.arange(order.numel() + 1, device=order.device)
        return Clusters(centre, number.index_copy(0, order, number[:-1])[self.owner])

    def totals(self, weight: Tensor) -> Tensor:
        """Return the sum ``[K]`` of the members' weights ``[R]``."""
        total = torch.zeros(self.centre.numel() + 1, device=weight.device)
        return total.index_add_(0, self.owner, weight)[:-1]

    def sums(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the float32 sums ``[K, D]`` of the members without the centre, and their number.

        Args:
            rows: ``[R, D]``.
        """
        k = self.centre.numel()
        others = self.owner.index_fill(0, self.centre, k)
        total = torch.zeros(k + 1, rows.shape[1], device=rows.device)
        total.index_add_(0, others, rows.float())
        members = torch.zeros(k + 1, device=rows.device)
        members.index_add_(0, others, torch.ones(rows.shape[0], device=rows.device))
        return total[:k], members[:k]

    def means(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the float32 means ``[K, D]`` of all members, and their number ``[K]``."""
        total, others = self.sums(rows)
        total = total + rows.index_select(0, self.centre).float()
        return total / (others + 1)[:, None], others + 1

    def blends(self, rows: Tensor, beta: float) -> tuple[Tensor, Tensor]:
        """Return ``beta centre + (1 - beta) mean of the others`` ``[K, D]`` and all members."""
        centre = rows.index_select(0, self.centre).float()
        total, others = self.sums(rows)
        mean = total / others.clamp_min(1)[:, None]
        blend = beta * centre + (1 - beta) * mean
        return torch.where(others[:, None] > 0, blend, centre), others + 1


def density_peaks(
    rows: Tensor,
    sizes: Sequence[int],
    counts: Sequence[int | None],
    neighbours: Sequence[int],
    max_bytes: int = CHUNK_BYTES,
) -> Clusters:
    """Cluster every group of rows by density peaks.

    With ``d = |x - y| / sqrt(D)``: density = exp(-mean of the squared distances to the nearest
    rows, itself included), score = density * distance to the nearest denser row (the largest
    distance of the group if there is none). The rows of highest score are centres; all others go to
    the nearest one. The random noise that the released codes add to the density is 0; ties go to
    the lowest row.

    Args:
        rows: ``[R, D]``, the groups one after the other.
        sizes: rows of every group.
        counts: clusters of every group, in [0, size]; None keeps all its rows, in their order.
        neighbours: rows that the density of every group looks at (at most its size).
        max_bytes: bound of the padded groups at a time (at least one group).
    """
    device, dim = rows.device, rows.shape[1]
    wanted = [s if c is None else c for s, c in zip(sizes, counts, strict=True)]
    none = sum(wanted)
    widest = max(sizes, default=0)
    step = max(1, max_bytes // max(1, 4 * widest * (dim + 2 * widest)))
    centres, owners = [], []
    for a, b in slices(len(sizes), step):
        if not any(sizes[a:b]):
            continue
        size = np.array(sizes[a:b])[:, None]
        first_row = sum(sizes[:a]) + size[:, 0].cumsum()[:, None] - size
        slot = np.arange(size.max())
        inside, number = slot < size, np.array(wanted[a:b])[:, None]
        x = rows.index_select(
            0, to_device((first_row + slot * inside).clip(max=len(rows) - 1).ravel(), device)
        )
        score, distance = _scores(
            x.view(*inside.shape, dim).float(),
            to_device(inside, device, torch.bool),
            np.minimum(np.array(neighbours[a:b])[:, None], size).clip(min=1),
        )
        asis = np.array([[c is None] for c in counts[a:b]])
        if asis.any():
            raster = -torch.arange(inside.shape[1], device=device, dtype=torch.float32)
            score = torch.where(to_device(asis, device, torch.bool), raster, score)
            score = score.masked_fill(~to_device(inside, device, torch.bool), -torch.inf)
        order = score.sort(dim=1, descending=True, stable=True).indices
        chosen = slot[: number.max()] < number
        order = order[:, : chosen.shape[1]]
        first_cluster = sum(wanted[:a]) + number[:, 0].cumsum()[:, None] - number
        owner = _nearest(distance, order, to_device(chosen, device, torch.bool))
        owner = owner + to_device(first_cluster, device)
        owner = owner.masked_fill(to_device(number == 0, device, torch.bool), none)
        owners.append(owner.flatten()[to_device(np.flatnonzero(inside), device)])
        places = (order + to_device(first_row, device)).flatten()
        centres.append(places[to_device(np.flatnonzero(chosen), device)])
    empty = torch.zeros(0, dtype=torch.int64, device=device)
    return Clusters(torch.cat([empty, *centres]), torch.cat([empty, *owners]))


def _scores(x: Tensor, inside: Tensor, neighbours: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return scores ``[G, n]`` (-inf outside) and distances ``[G, n, n]`` (inf outside)."""
    with full_precision(x.device):
        x = x - x.mean(1, keepdim=True)  # a common offset costs precision
        gram = x @ x.mT
        square = gram.diagonal(dim1=1, dim2=2)
        distance = (square[:, :, None] + square[:, None] - 2 * gram).clamp_min_(0).sqrt_()
    distance = distance / x.shape[2] ** 0.5
    distance.diagonal(dim1=1, dim2=2).zero_()
    largest = distance.masked_fill(~(inside[:, :, None] & inside[:, None]), 0).amax((1, 2))
    distance.masked_fill_(~inside[:, None], torch.inf)
    nearest = distance.topk(int(neighbours.max()), dim=2, largest=False).values.square()
    used = (
        torch.arange(nearest.shape[2], device=x.device) < to_device(neighbours, x.device)[..., None]
    )
    count = to_device(neighbours, x.device)
    density = (-(nearest.masked_fill(~used, 0).sum(2) / count)).exp()
    denser = (density[:, None] > density[:, :, None]) & inside[:, None]
    apart = torch.where(denser, distance, largest[:, None, None]).amin(2)
    return (apart * density).masked_fill(~inside, -torch.inf), distance


def _nearest(distance: Tensor, order: Tensor, chosen: Tensor) -> Tensor:
    """Return for every row ``[G, n]`` the number of its nearest centre; centres own themselves."""
    groups, n = distance.shape[:2]
    if order.shape[1] == 0:
        return torch.zeros(groups, n, dtype=torch.int64, device=distance.device)
    apart = distance.gather(2, order[:, None].expand(-1, n, -1))
    owner = apart.masked_fill(~chosen[:, None], torch.inf).argmin(2)
    number = torch.arange(order.shape[1], device=order.device).expand_as(order)
    slot = torch.where(chosen, order, n)  # column n takes what is no centre
    return torch.cat([owner, owner[:, :1]], 1).scatter(1, slot, number)[:, :n]


def contiguous_labels(labels: Sequence[int]) -> list[int]:
    """Make every label one run, as PruneVid does.

    Of every label its longest runs stay (if longer than 1); what lies between takes the label of
    the longer neighbouring run, the left one if they are equally long, 0 if there is none.
    """
    runs = _runs(labels)
    longest: dict[int, int] = {}
    for label, length in runs:
        longest[label] = max(longest.get(label, 0), length)
    kept = [(label, n) if n == longest[label] > 1 else (-1, n) for label, n in runs]
    todo = _runs([label for label, n in kept for _ in range(n)])
    done: list[int] = []
    for i, (label, length) in enumerate(todo):
        if label < 0:
            left = _runs(done)[-1] if done else (0, 0)
            right = todo[i + 1] if i + 1 < len(todo) else (0, 0)
            label = right[0] if right[1] > left[1] else left[0]
        done += [label] * length
    return done


def label_groups(labels: Sequence[int]) -> Groups:
    """Return the inclusive runs of equal labels."""
    ends = np.cumsum([n for _, n in _runs(labels)]).tolist()
    return tuple(zip([0, *ends[:-1]], [e - 1 for e in ends], strict=True))


def _runs(labels: Sequence[int]) -> list[tuple[int, int]]:
    return [(label, sum(1 for _ in run)) for label, run in groupby(labels)]
