"""Entry points of other packages: each is loaded once, and none can break the others."""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points

logger = logging.getLogger(__name__)


class Plugins:
    """The entry points of one group.

    Args:
        group: name of the group, e.g. ``earlytom.methods``.
        what: what an entry point brings, for messages.
        register: imports one and registers what it finds; may raise anything.

    Attributes:
        broken: for every entry point that could not be loaded, a message that names the package
            and the reason. It was logged as a warning.
    """

    def __init__(self, group: str, what: str, register: Callable[[EntryPoint], None]) -> None:
        self.group = group
        self.what = what
        self.broken: dict[str, str] = {}
        self._register = register
        self._loaded: set[EntryPoint] = set()

    def load(self, name: str | None = None) -> None:
        """Load the entry points called ``name`` (None: all) that are not loaded yet."""
        found = entry_points(group=self.group)
        for entry in found if name is None else found.select(name=name):
            self._load(entry)

    def _load(self, entry: EntryPoint) -> None:
        if entry in self._loaded:
            return
        self._loaded.add(entry)
        try:
            self._register(entry)
        except (Exception, SystemExit) as e:  # whatever a plugin does must not break the others
            package = "an unknown package" if entry.dist is None else f"package {entry.dist.name!r}"
            reason = f"{type(e).__name__}: {e}".strip().splitlines()[0]
            message = f"{self.what} {entry.name!r} of {package} cannot be loaded ({reason})"
            self.broken[entry.name] = message
            logger.warning("%s", message)


def where(cls: type) -> str:
    """Return module and name of a class, for messages."""
    return f"{cls.__module__}.{cls.__qualname__}"
