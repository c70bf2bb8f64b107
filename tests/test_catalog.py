"""What methods say about themselves."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

import pytest
from torch import Tensor

from earlytom.catalog import catalog, describe
from earlytom.method import Method, list_methods, method_class
from earlytom.stages import InnerMerge, InnerPoint, InnerState

ENTRIES = {e.name: e for e in catalog() if method_class(e.name).__module__.startswith("earlytom.")}
UNPUBLISHED = {  # baselines and what is ours
    "afterimage",
    "compose",
    "pool-space",
    "pool-time",
    "random",
    "resize",
    "uniform-frames",
    "uniform-spatial",
}


@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_published_methods_are_cited(name: str) -> None:
    entry = ENTRIES[name]
    if name in UNPUBLISHED:
        assert entry.citation == ""
        return
    assert re.fullmatch(r".+ et al\., .*20\d\d, arXiv \d{4}\.\d{5}", entry.citation), entry.citation
    assert re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+", entry.url), entry.url
    assert entry.citation.rsplit(" ", 1)[1] in (method_class(name).__doc__ or ""), "same paper"


@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_everything_is_described(name: str) -> None:
    entry = ENTRIES[name]
    assert entry.summary.endswith(".")
    assert entry.acts
    assert entry.signals or name in UNPUBLISHED, "which signals decide?"
    assert entry.token_count
    assert "retention_ratio" in entry.settings
    if name != "compose":
        assert (entry.token_count == "exact") == method_class(name)().exact_budget


def test_where_and_by_what() -> None:
    assert ENTRIES["evs"].acts == ("tokens",)
    assert ENTRIES["evs"].signals == ("token features",)
    assert ENTRIES["random"].signals == ()
    assert ENTRIES["earlytom"].acts == ("encoder", "tokens", "LLM (optional)")
    assert "received attention (optional)" in ENTRIES["earlytom"].signals
    assert "received attention" in ENTRIES["holitom"].signals
    assert "pooling head where there is one" in ENTRIES["fastvid"].signals
    assert ENTRIES["compose"].acts == ENTRIES["compose"].signals == ("as its stages",)
    assert [ENTRIES[n].token_count for n in ("evs", "pool-time")] == [
        "exact", "known: at most the budget"
    ]  # fmt: skip


def test_derived_from_the_hooks() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Third(Method):
        """Ends somewhere.

        More.
        """

        name: ClassVar[str] = "third"
        inner: int | None = None

        def inner_points(self, n_layers: int) -> tuple[InnerPoint, ...]:
            return () if self.inner is None else (InnerPoint(self.inner),)

        def merge_inner(self, state: InnerState) -> InnerMerge | None:
            return None

        def decode_keep(self, last_row: Tensor, memory: object) -> Tensor | None:
            return None

    entry = describe(Third)
    assert entry.summary == "Ends somewhere."
    assert entry.acts == ("LLM (optional)", "decode (optional)")
    assert entry.signals == ("LLM attention (optional)",)
    assert entry.token_count == "depends on the video"
    assert entry.settings == {"retention_ratio": 0.25, "positions": "auto", "inner": None}
    assert entry.to_dict()["exact"] is False
    assert ENTRIES["evs"].to_dict()["exact"] is True

    @dataclass(frozen=True, kw_only=True)
    class Always(Third):
        inner: int = 3

    assert describe(Always).signals == ("LLM attention",)
    assert describe(Always).acts == ("LLM", "decode (optional)")


def test_every_registered_method_is_there() -> None:
    assert [e.name for e in catalog()] == list_methods()
    with pytest.raises(TypeError):
        method_class("compose")()
