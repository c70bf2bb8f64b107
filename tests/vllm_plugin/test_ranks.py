"""Processes that share a model agree on every decision."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from earlytom.errors import ConfigError, EarlyTomError, VideoError
from earlytom.integrations.vllm.ranks import Ranks
from earlytom.stages import TokenSelection


class Wire:
    """Stands in for the group of two processes: rank 0 runs first, then rank 1 hears of it."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def rank(self, number: int) -> Ranks:
        heard = iter(range(10**6))

        def send(mine: Any) -> Any:
            if number == 0:
                self.sent.append(mine)
                return mine
            return self.sent[next(heard)]

        return Ranks(2, number, send, lambda x: x * 2)


def test_only_the_first_decides() -> None:
    wire = Wire()
    first, second = wire.rank(0), wire.rank(1)
    assert first.agree(lambda: "mine") == "mine"
    assert second.agree(lambda: pytest.fail("not asked")) == "mine"


def test_tensors_of_a_decision_arrive() -> None:
    wire, device = Wire(), torch.device("cpu")
    chosen = TokenSelection(torch.tensor([1, 5]), torch.randn(2, 3))
    wire.rank(0).agree(lambda: chosen, device)
    found = wire.rank(1).agree(lambda: chosen, device)
    assert torch.equal(found.index, chosen.index)
    assert torch.equal(found.features, chosen.features)


def test_an_error_is_raised_everywhere() -> None:
    wire = Wire()

    def fail() -> None:
        raise VideoError("not finite")

    for rank in (wire.rank(0), wire.rank(1)):
        with pytest.raises(VideoError, match="not finite"):
            rank.agree(fail)
    for rank in (Ranks(), Wire().rank(0)):  # also of a kind that is not ours
        with pytest.raises(EarlyTomError, match="ZeroDivisionError"):
            rank.agree(lambda: 1 // 0)


def test_signals_are_averaged_over_ranks() -> None:
    rank = Wire().rank(1)
    assert torch.equal(rank.mean(torch.ones(3)), torch.ones(3))
    assert rank.mean(None) is None


def test_one_process_decides_for_itself() -> None:
    alone = Ranks()
    x = torch.ones(2)
    assert alone.agree(lambda: x) is x
    assert alone.mean(x) is x
    with pytest.raises(ConfigError):
        alone.agree(lambda: (_ for _ in ()).throw(ConfigError("no")))
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(alone.agree, lambda: 3).result() == 3
