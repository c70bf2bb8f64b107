"""Typed errors. Every message says in one line what was wrong and what is allowed."""

from __future__ import annotations


class EarlyTomError(Exception):
    """Base class of every error that this package raises on purpose."""


class ConfigError(EarlyTomError, ValueError):
    """A method, command or training setting is out of its allowed range."""


class BudgetError(ConfigError):
    """A frame or token budget cannot be met by the video at hand."""


class UnsupportedModelError(EarlyTomError, TypeError):
    """The model (or one of its parts) is not of a family that this package knows."""


class VideoError(EarlyTomError, ValueError):
    """A video file or video tensor is missing, broken, empty or not usable."""


class ResultError(EarlyTomError, ValueError):
    """A file of benchmark results is missing, broken or does not belong to the others."""


class MissingExtraError(EarlyTomError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""
