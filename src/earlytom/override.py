"""Attributes of single instances that something else stands in for, for a while."""

from __future__ import annotations

from typing import Any


class Override:
    """Puts ``instead`` in the place of ``owner.name``, until :meth:`remove`.

    Only this instance is touched, not its class.  What the instance had of its own (a hook of
    accelerate, an earlier stand-in) comes back in the end.

    Args:
        owner: any object with a ``__dict__``; modules register nothing.
        name: of the attribute.
        instead: what stands there now.
    """

    def __init__(self, owner: Any, name: str, instead: Any) -> None:
        self._owner, self._name = owner, name
        self._own: Any = owner.__dict__.get(name)
        object.__setattr__(owner, name, instead)

    def remove(self) -> None:
        """Give the instance its own attribute back."""
        self._owner.__dict__.pop(self._name, None)
        if self._own is not None:
            object.__setattr__(self._owner, self._name, self._own)
