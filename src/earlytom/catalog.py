"""What every registered method does, read off its class: for the CLI and the documentation."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from earlytom.errors import EarlyTomError
from earlytom.method import Method
from earlytom.registry import list_methods, method_class

ENCODER_LAYERS, MODEL_LAYERS, GRID = 24, 28, (14, 14)  # a usual depth, for defaults that scale
_HOOKS = {
    "encoder": ("merge_frames", "reduce_patches", "encoder_grid", "fresh_patches"),
    "tokens": ("select_tokens",),
    "LLM": ("merge_inner",),
    "decode": ("decode_keep",),
}
_SIGNALS = {
    "received attention": "score_layer",
    "attention keys": "needs_keys",
    "pooling head where there is one": "needs_head",
    "LLM attention": "inner_points",
    "decode attention": "decode_layer",
}


@dataclass(frozen=True)
class Entry:
    """One method.

    Attributes:
        name: registered name.
        summary: first line of the docstring.
        acts: where it acts: ``encoder``, ``tokens`` (between encoder and language model), ``LLM``
            (prefill), ``decode``. ``(optional)`` marks what default settings leave out.
        signals: what it decides by, likewise; empty if it looks at nothing.
        token_count: how many tokens enter the language model with default settings: ``exact`` (the
            budget, known before the video is), or what the class says about it.
        citation: authors, venue and arXiv id, or an empty string.
        url: where the authors' code is, or an empty string.
        settings: names and default values, None without one.
    """

    name: str
    summary: str
    acts: tuple[str, ...]
    signals: tuple[str, ...]
    token_count: str
    citation: str
    url: str
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready data; ``exact`` says whether ``token_count`` is exact in advance."""
        data = dataclasses.asdict(self) | {"acts": list(self.acts), "signals": list(self.signals)}
        return data | {"exact": self.token_count == "exact"}


def catalog() -> list[Entry]:
    """Return all registered methods, plugins included, by name."""
    return [describe(method_class(name)) for name in list_methods()]


def describe(cls: type[Method]) -> Entry:
    """Describe one method from its class attributes and the hooks it overrides.

    A class that states ``acts`` states all its ``signals``, too; nothing is derived then.
    """
    plain = _with_defaults(cls)
    count = "exact" if plain is not None and plain.exact_budget else cls.token_count
    return Entry(
        cls.name,
        (cls.__doc__ or "").strip().split("\n")[0],
        cls.acts or _acts(cls, plain),
        cls.signals if cls.acts else (*cls.signals, *_signals(cls, plain)),
        count,
        cls.citation,
        cls.url,
        {f.name: _default(f) for f in dataclasses.fields(cls) if f.init},
    )


def markdown_table() -> str:
    """Return the methods of this package as a Markdown table (``docs/methods.md``)."""
    rows = ["| name | acts | signals | token count | published as |", "|---|---|---|---|---|"]
    for entry in catalog():
        if not method_class(entry.name).__module__.startswith("earlytom."):
            continue
        source = f"[{entry.citation}]({entry.url})" if entry.url else entry.citation
        acts, signals = ", ".join(entry.acts), ", ".join(entry.signals) or "none"
        rows.append(
            f"| `{entry.name}` | {acts} | {signals} | {entry.token_count} | {source or '-'} |"
        )
    return "\n".join(rows) + "\n"


def _with_defaults(cls: type[Method]) -> Method | None:
    try:
        return cls()
    except (TypeError, EarlyTomError):  # settings without default
        return None


def _overrides(cls: type[Method], hook: str) -> bool:
    return getattr(cls, hook) is not getattr(Method, hook)


def _acts(cls: type[Method], plain: Method | None) -> tuple[str, ...]:
    used = {
        "encoder": lambda m: (
            m.merge_points(ENCODER_LAYERS)
            or m.reduce_layers(ENCODER_LAYERS)
            or m.encoder_grid(GRID) is not None
            or m.reuse_layer(ENCODER_LAYERS) is not None
        ),
        "tokens": lambda m: m.selects_tokens,
        "LLM": lambda m: m.inner_points(MODEL_LAYERS),
        "decode": lambda m: m.decode_layer(MODEL_LAYERS) is not None,
    }
    there = {k: any(_overrides(cls, hook) for hook in hooks) for k, hooks in _HOOKS.items()}
    return tuple(_marked(k, plain, used[k]) for k, overridden in there.items() if overridden)


def _signals(cls: type[Method], plain: Method | None) -> tuple[str, ...]:
    used = {
        "score_layer": lambda m: m.score_layer(ENCODER_LAYERS) is not None,
        "needs_keys": lambda m: m.needs_keys(),
        "needs_head": lambda m: m.needs_head(),
        "inner_points": lambda m: any(p.attention != "none" for p in m.inner_points(MODEL_LAYERS)),
        "decode_layer": lambda m: m.decode_layer(MODEL_LAYERS) is not None,
    }
    found = [
        _marked(name, plain, used[hook]) for name, hook in _SIGNALS.items() if _overrides(cls, hook)
    ]
    wanted = () if plain is None else plain.patch_signals()
    return (*(f"encoder {'queries' if w == 'query' else 'keys'}" for w in wanted), *found)


def _marked(name: str, plain: Method | None, used: Any) -> str:
    """Return ``name``, marked where default settings do without it."""
    try:
        return name if plain is None or used(plain) else f"{name} (optional)"
    except EarlyTomError:  # the defaults do not fit the usual depth
        return name


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None
