"""Shared by the tests of the tiny models."""

from __future__ import annotations

import functools

import pytest

from earlytom.tiny import held_out
from earlytom.tiny.held_out import BlindGuesser


@pytest.fixture
def quick_guesser(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guesser with less data; its accuracy is tested elsewhere."""
    guesser = functools.lru_cache(lambda frames: BlindGuesser(frames, clips=50, shots=100))
    monkeypatch.setattr(held_out, "_blind_guesser", guesser)
