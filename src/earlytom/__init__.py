"""Fast video understanding: remove redundant visual tokens inside and after the vision encoder.

>>> import earlytom
>>> method = earlytom.EarlyTom(retention_ratio=0.10)
>>> with method(model):  # doctest: +SKIP
...     output = model.generate(**inputs)
>>> earlytom.last_report(model).tokens_out  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from earlytom._version import __version__
from earlytom.errors import (
    BudgetError,
    ConfigError,
    EarlyTomError,
    UnsupportedModelError,
    VideoError,
)

if TYPE_CHECKING:
    from earlytom.compose import Compose
    from earlytom.hf.api import active_method, compile, compress, last_report, restore
    from earlytom.method import Method, list_methods, load_method, register_method
    from earlytom.methods import EarlyTom
    from earlytom.report import Report
    from earlytom.stream import Stream

__all__ = [
    "BudgetError",
    "Compose",
    "ConfigError",
    "EarlyTom",
    "EarlyTomError",
    "Method",
    "Report",
    "Stream",
    "UnsupportedModelError",
    "VideoError",
    "__version__",
    "active_method",
    "compile",
    "compress",
    "last_report",
    "list_methods",
    "load_method",
    "register_method",
    "restore",
]

_WHERE = {
    "Compose": "earlytom.compose",
    "EarlyTom": "earlytom.methods",
    "Method": "earlytom.method",
    "list_methods": "earlytom.methods",
    "load_method": "earlytom.methods",
    "register_method": "earlytom.method",
    "active_method": "earlytom.hf.api",
    "compile": "earlytom.hf.api",
    "compress": "earlytom.hf.api",
    "restore": "earlytom.hf.api",
    "last_report": "earlytom.hf.api",
    "Report": "earlytom.report",
    "Stream": "earlytom.stream",
}


def __getattr__(name: str) -> Any:
    """Import heavy parts (torch, transformers) at first use, so that the CLI starts fast."""
    if name not in _WHERE:
        raise AttributeError(f"module 'earlytom' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
