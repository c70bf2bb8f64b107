"""Tensor-parallel processes encode every video together, so they must decide alike.

One of them, rank 0, runs every decision and sends the result, or the error, to the others. What
the decision rests on (attention per head) is averaged over all of them first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from earlytom.errors import EarlyTomError

T = TypeVar("T")


class Ranks:
    """The processes that hold parts of one model.

    Args:
        size: how many there are.
        rank: number of this one.
        send: sends an object from rank 0 to all, ``send(mine) -> rank 0's``.
        total: sums a tensor over all.
    """

    def __init__(
        self,
        size: int = 1,
        rank: int = 0,
        send: Callable[[Any], Any] | None = None,
        total: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.size = size
        self.rank = rank
        self._send = send
        self._total = total

    @classmethod
    def of_vllm(cls) -> Ranks:
        """Return the tensor-parallel group of this worker."""
        from vllm.distributed.parallel_state import get_tp_group

        group = get_tp_group()
        return cls(group.world_size, group.rank_in_group, group.broadcast_object, group.all_reduce)

    @property
    def first(self) -> bool:
        """Whether this one decides."""
        return self.rank == 0

    def agree(self, decide: Callable[[], T], device: torch.device | None = None) -> T:
        """Return what ``decide`` gives on rank 0; tensors of others arrive on ``device``.

        Raises:
            EarlyTomError: what ``decide`` raised on rank 0, whatever it was: a method may come from
                another package, and must neither part the ranks nor take the server down.
        """
        if self.size == 1 or self._send is None:
            return _own_errors(decide)
        mine: Any = None
        if self.first:
            try:
                mine = _moved(_own_errors(decide), torch.device("cpu"))
            except EarlyTomError as e:
                mine = e
        found = self._send(mine)
        if isinstance(found, EarlyTomError):
            raise found
        agreed: T = found if device is None else _moved(found, device)
        return agreed

    def mean(self, x: Tensor | None) -> Tensor | None:
        """Average a tensor over all."""
        if x is None or self.size == 1 or self._total is None:
            return x
        return self._total(x.contiguous()) / self.size


def _own_errors(decide: Callable[[], T]) -> T:
    try:
        return decide()
    except EarlyTomError:
        raise
    except Exception as e:
        raise EarlyTomError(f"{type(e).__name__}: {e}") from e


def _moved(value: Any, device: torch.device) -> Any:
    """Return a tensor, or a dataclass of tensors and other values, on ``device``."""
    if isinstance(value, Tensor):
        return value.to(device)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [f.name for f in dataclasses.fields(value)]
        changes = {
            n: getattr(value, n).to(device) for n in names if isinstance(getattr(value, n), Tensor)
        }
        return dataclasses.replace(value, **changes) if changes else value
    return value
