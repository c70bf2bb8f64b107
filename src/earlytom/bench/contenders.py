"""Who takes part in the comparison: every registered method, some of them in several variants."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from earlytom.errors import ConfigError, UnsupportedModelError
from earlytom.hf.positions import positions_of
from earlytom.method import Method
from earlytom.models import find_adapter
from earlytom.registry import list_methods, load_method, method_class

FULL = "full"
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Contender:
    """A row of the comparison.

    Attributes:
        label: its name in results.
        method: registered name of the method.
        settings: what differs from the method's defaults, given the depth of the language model.
    """

    label: str
    method: str
    settings: Callable[[int], Settings] = lambda depth: {}

    def build(self, depth: int, **changes: Any) -> Method:
        """Return the method with the variant's settings and ``changes``."""
        return load_method(self.method, **{**self.settings(depth), **changes})


def _fixed(**settings: Any) -> Callable[[int], Settings]:
    return lambda depth: settings


def _scaled(name: str, layer: int, published: int) -> Callable[[int], Settings]:
    """A layer of a language model of ``published`` layers, scaled to the depth at hand."""
    return lambda depth: {name: max(1, min(depth - 1, round(layer * depth / published)))}


_UNWHITENED = {
    "encoder_budget": 1.0,
    "ridge": None,
    "time_weight": 2.0,
    "weight_power": 0.7,
    "blend": 0.0,
}
_VARIANTS: dict[str, tuple[Contender, ...]] = {
    # the last two without patch reuse, which packed towers do not have
    "afterimage": (
        Contender("afterimage", "afterimage"),
        Contender("afterimage-tokens", "afterimage", _fixed(encoder_budget=1.0)),
        # as it was before features were whitened: what that brings
        Contender("afterimage-unwhitened", "afterimage", _fixed(**_UNWHITENED)),
    ),
    "earlytom": (
        Contender("earlytom-budget", "earlytom"),
        Contender("earlytom-official", "earlytom", _fixed(policy="official")),
        Contender("earlytom-paper", "earlytom", _fixed(policy="paper")),
    ),
    # with the published step inside the language model, on top of the budget in front of it
    "holitom": (
        Contender("holitom", "holitom"),
        Contender("holitom-inner", "holitom", _scaled("inner_merge_layer", 18, 28)),
    ),
    "prunevid": (
        Contender("prunevid", "prunevid"),
        Contender("prunevid-inner", "prunevid", _scaled("inner_prune_layer", 10, 28)),
    ),
    "prumerge": (
        Contender("prumerge", "prumerge"),
        Contender("prumerge-plus", "prumerge", _fixed(plus=True)),
    ),
    "sparsevlm": (
        Contender("sparsevlm", "sparsevlm"),
        Contender("sparsevlm-v2", "sparsevlm", _fixed(version="v2.0")),
    ),
}


def contenders(names: Sequence[str] = ("all",)) -> list[Contender]:
    """Return the contenders of the given labels or method names, ``all`` for every one.

    The name of a method with variants stands for all of them. Methods that cannot be built without
    settings (``compose``) do not take part.

    Raises:
        ConfigError: no such label or method.
    """
    there = {c.label: c for c in _every()}
    chosen: dict[str, Contender] = {}
    for name in names:
        found = [c for c in there.values() if name in ("all", c.label)]
        found = found or [c for c in there.values() if c.method == name]
        if not found and name != FULL:
            raise ConfigError(f"unknown method {name!r}; there are: all, {', '.join(there)}")
        chosen.update((c.label, c) for c in found)
    return list(chosen.values())


def _every() -> list[Contender]:
    rows: list[Contender] = []
    for name in list_methods():
        if not _needs_settings(method_class(name)):
            rows += _VARIANTS.get(name, (Contender(name, name),))
    return rows


def _needs_settings(cls: type[Method]) -> bool:
    none = dataclasses.MISSING
    return any(f.default is none and f.default_factory is none for f in dataclasses.fields(cls))


def applied(method: Method | None, model: Any) -> AbstractContextManager[Any]:
    """Put ``method`` on ``model`` inside a block; None leaves the full model as it is."""
    return nullcontext() if method is None else method(model)


@dataclass(frozen=True)
class Entry:
    """A contender at one ratio, or the full model.

    Attributes:
        label: name in results.
        retention_ratio: the ratio asked for.
        method: the method, None for the full model or where the ratio cannot be reached.
        name: registered name of the method, None for the full model.
        note: a remark on how the ratio is meant.
        error: why the ratio cannot be reached or the model not be used, or None.
        positions: where the tokens left stand in this model, None if that is not known.
    """

    label: str
    retention_ratio: float
    method: Method | None
    name: str | None = None
    note: str | None = None
    error: str | None = None
    positions: str | None = None


def entry(contender: Contender, ratio: float, positions: str, model: Any, depth: int) -> Entry:
    """Fit a contender to a ratio and a model.

    Where a method that counts its ratio as an average over layers (``budget``) cannot reach it, the
    ratio is what it keeps behind its last pruning point instead, and the note says so.
    """
    label, name = contender.label, contender.method

    def fitting(note: str | None = None, **changes: Any) -> Entry:
        method = contender.build(depth, retention_ratio=ratio, positions=positions, **changes)
        with method(model):  # layers and ratios are checked here
            where = positions_of(find_adapter(model), method)
        return Entry(label, ratio, method, name, note, positions=where)

    try:
        return fitting()
    except UnsupportedModelError as e:
        return Entry(label, ratio, None, name, error=str(e))
    except ConfigError as e:
        error = str(e)
    if "budget" in {f.name for f in dataclasses.fields(method_class(name))}:
        try:
            note = f"share kept behind its last pruning point ({error})"
            return fitting(note, budget="behind")
        except ConfigError as e:
            error = str(e)
    return Entry(label, ratio, None, name, error=error)
