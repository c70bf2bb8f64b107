"""Methods by name: those of this package, those registered here, and those of other packages.

Other packages announce methods with entry points of the group ``earlytom.methods``. They are
imported when a name is looked up that is not there yet, or when all names are listed.
"""

from __future__ import annotations

import importlib
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any, TypeVar

from earlytom.errors import ConfigError
from earlytom.plugins import Plugins, where

if TYPE_CHECKING:
    from earlytom.method import Method

M = TypeVar("M", bound="type[Method]")
_REGISTRY: dict[str, type[Method]] = {}


def register_method(cls: M) -> M:
    """Class decorator: make ``cls`` available by its ``name``.

    Raises:
        ConfigError: no name, or the name is taken by another class.
    """
    if not cls.name:
        raise ConfigError(f"{cls.__name__} needs a class attribute `name`")
    if not cls.__module__.startswith("earlytom."):
        _load_own()  # names of this package are taken, whoever comes first
    taken = _REGISTRY.get(cls.name)
    if taken is not None and where(taken) != where(cls):
        raise ConfigError(f"method name {cls.name!r} is taken by {where(taken)}")
    _REGISTRY[cls.name] = cls
    return cls


def list_methods() -> list[str]:
    """Return the registered method names, sorted; a plugin that cannot be loaded is left out."""
    _load_own()
    _PLUGINS.load()
    return sorted(_REGISTRY)


def method_class(name: str) -> type[Method]:
    """Return the class registered under ``name``.

    Raises:
        ConfigError: unknown name; the message lists what there is, or says which package names
            such a method but cannot be loaded.
    """
    if name not in _REGISTRY:
        _load_own()
    if name not in _REGISTRY:
        _PLUGINS.load(name)
    if name not in _REGISTRY:
        found = list_methods()  # a plugin may register under another name than its entry point
        if name not in _REGISTRY:
            if name in _PLUGINS.broken:
                raise ConfigError(_PLUGINS.broken[name])
            raise ConfigError(f"unknown method {name!r}; available: {', '.join(found)}")
    return _REGISTRY[name]


def load_method(name: str, **settings: Any) -> Method:
    """Build a method by name, e.g. ``load_method("earlytom", retention_ratio=0.1)``.

    Raises:
        ConfigError: unknown name, unknown setting or value out of range.
    """
    return method_class(name).from_settings(settings)


def _load_own() -> None:
    importlib.import_module("earlytom.methods")


def _register(entry: EntryPoint) -> None:
    from earlytom.method import Method

    found = entry.load()
    if isinstance(found, type) and issubclass(found, Method):
        register_method(found)
    elif isinstance(found, type):
        raise ConfigError(f"{where(found)} is not a subclass of earlytom.Method")
    if entry.name not in _REGISTRY:
        raise ConfigError(f"{entry.value} registers no method of that name")


_PLUGINS = Plugins("earlytom.methods", "method", _register)
