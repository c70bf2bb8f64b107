"""Base class of every compression method: a frozen, validated config with up to four stages."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from torch import Tensor

from earlytom.errors import ConfigError
from earlytom.files import atomic_write
from earlytom.stages import InnerMerge, TokenSelection, VideoFeatures, VideoState

if TYPE_CHECKING:
    from torch import nn

    from earlytom.ops.plan import MergePlan

POSITIONS = ("auto", "renumber", "keep", "respace")
CONFIG_NAME = "compression_config.json"

M = TypeVar("M", bound="type[Method]")
_REGISTRY: dict[str, type[Method]] = {}


@dataclass(frozen=True, kw_only=True)
class Method:
    """A training-free compression method.

    A subclass overrides the stages that it acts in; every stage left alone does nothing. Use it as
    ``with method(model): model.generate(...)``.

    Args:
        retention_ratio: visual tokens entering the language model / visual tokens that the
            uncompressed model would feed it, in (0, 1].
        positions: where the surviving tokens stand for the language model: ``renumber`` (0..n-1),
            ``keep`` (their original place), ``respace`` (surviving frames evenly spaced over the
            original span, patches keep their offset) or ``auto`` (the method's own default).

    Raises:
        ConfigError: on any value out of range.
    """

    retention_ratio: float = 0.25
    positions: str = "auto"

    name: ClassVar[str] = ""

    def __post_init__(self) -> None:
        check_ratio("retention_ratio", self.retention_ratio)
        check_choice("positions", self.positions, POSITIONS)

    # ------------------------------------------------------------------ what the engine asks
    @property
    def exact_budget(self) -> bool:
        """Whether exactly ``token_budget(T, S)`` tokens are kept, known before the video is."""
        return False

    def resolved_positions(self) -> str:
        """Return ``positions`` with ``auto`` replaced by the method's own default."""
        return "renumber" if self.positions == "auto" else self.positions

    def merge_points(self, n_layers: int) -> tuple[int, ...]:
        """Layers (0-based, ascending) of an ``n_layers`` encoder after which frames are merged."""
        return ()

    def score_layer(self, n_layers: int) -> int | None:
        """Encoder layer whose received attention is wanted, or None."""
        return None

    def needs_keys(self) -> bool:
        """Whether the keys of the score layer are wanted as well (``VideoFeatures.keys``)."""
        return False

    def inner_layer(self, n_layers: int) -> int | None:
        """Language-model layer in front of which stage III acts, or None."""
        return None

    def merge_frames(
        self, hidden: Tensor, state: VideoState, point: int, tokens_per_frame: int
    ) -> MergePlan | None:
        """Stage I: decide the merge at merge point number ``point`` (0-based).

        Args:
            hidden: ``[frames, patches, dim]`` of one video, after the layer of this point.
            state: the video so far; ``state.received`` already holds this layer's attention if
                this is the score layer.
            point: index into ``merge_points``.
            tokens_per_frame: tokens ``S`` of a frame after pooling (for budgets).
        """
        return None

    def finish_frames(self, hidden: Tensor, state: VideoState, point: int) -> None:
        """Look at the merged frames ``[N, patches, dim]`` after point ``point``; may set groups."""

    def select_tokens(self, video: VideoFeatures) -> TokenSelection | None:
        """Stage II: choose (and possibly merge) the tokens of one video; None keeps all."""
        return None

    def merge_inner(self, hidden: Tensor, last_row: Tensor, visual: Tensor) -> InnerMerge | None:
        """Stage III for one sequence in front of ``inner_layer``.

        Args:
            hidden: ``[n, dim]``, padding removed.
            last_row: ``[heads, n]`` float32, attention of the last query one layer earlier.
            visual: ``[n]`` bool, visual tokens (newline tokens of a video included).
        """
        return None

    def token_budget(self, n_frames: int, tokens_per_frame: int) -> int:
        """Exact token count ``max(1, ceil(r T S))`` of a video of ``T`` input frames."""
        share = Fraction(str(self.retention_ratio))
        return max(1, math.ceil(share * n_frames * tokens_per_frame))

    # ------------------------------------------------------------------ use
    def __call__(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Return a context manager that compresses ``model`` inside it and restores it after."""
        from earlytom.hf.api import compressed

        return compressed(model, self)

    # ------------------------------------------------------------------ data
    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dict; ``method`` holds the registered name."""
        return {"method": self.name, **dataclasses.asdict(self)}

    def to_json(self) -> str:
        """Return the config as JSON text."""
        return json.dumps(self.to_dict(), indent=2)

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Method:
        """Build the method named by ``data["method"]``.

        Raises:
            ConfigError: unknown method, unknown key or value out of range.
        """
        if not isinstance(data, dict) or not isinstance(data.get("method"), str):
            raise ConfigError('a method config is a JSON object with a "method" name')
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        del values["method"]
        return load_method(data["method"], **values)

    @staticmethod
    def from_json(text: str) -> Method:
        """Parse what :meth:`to_json` wrote.

        Raises:
            ConfigError: not JSON, or not a valid config.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as e:
            raise ConfigError(f"not valid JSON: {e}") from e
        return Method.from_dict(data)

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Write ``compression_config.json`` into ``directory`` (beside a saved model)."""
        path = Path(directory) / CONFIG_NAME
        atomic_write(path, lambda p: p.write_text(self.to_json() + "\n", encoding="utf-8"))
        return path

    @staticmethod
    def load(directory: str | os.PathLike[str]) -> Method:
        """Read ``compression_config.json`` from ``directory`` (or the file itself).

        Raises:
            ConfigError: no such file, or not a valid config.
        """
        path = Path(directory)
        path = path / CONFIG_NAME if path.is_dir() else path
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as e:
            raise ConfigError(f"cannot read {path}: {e}") from e
        return Method.from_json(text)


# ---------------------------------------------------------------------- registry
def register_method(cls: M) -> M:
    """Class decorator: make ``cls`` available by its ``name``.

    Raises:
        ConfigError: no name, or the name is taken by another class.
    """
    if not cls.name:
        raise ConfigError(f"{cls.__name__} needs a class attribute `name`")
    taken = _REGISTRY.get(cls.name)
    if taken is not None and taken.__qualname__ != cls.__qualname__:
        raise ConfigError(f"method name {cls.name!r} is taken by {taken.__qualname__}")
    _REGISTRY[cls.name] = cls
    return cls


def list_methods() -> list[str]:
    """Return the registered method names, sorted."""
    return sorted(_REGISTRY)


def method_class(name: str) -> type[Method]:
    """Return the class registered under ``name``.

    Raises:
        ConfigError: unknown name; the message lists what there is.
    """
    if name not in _REGISTRY:
        raise ConfigError(f"unknown method {name!r}; available: {', '.join(list_methods())}")
    return _REGISTRY[name]


def load_method(name: str, **settings: Any) -> Method:
    """Build a method by name, e.g. ``load_method("earlytom", retention_ratio=0.1)``.

    Raises:
        ConfigError: unknown name, unknown setting or value out of range.
    """
    cls = method_class(name)
    known = [f.name for f in dataclasses.fields(cls)]
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise ConfigError(f"{name} has no setting {unknown[0]!r}; it has: {', '.join(known)}")
    return cls(**settings)


# ---------------------------------------------------------------------- checks
def check_ratio(name: str, value: object, *, low: float = 0.0, open_low: bool = True) -> None:
    """Raise ConfigError unless ``value`` is a number in (low, 1] (or [low, 1])."""
    ok = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not ok or not (low < value or (not open_low and value == low)) or value > 1:  # type: ignore[operator]
        bracket = "(" if open_low else "["
        raise ConfigError(f"{name} must be a number in {bracket}{low:g}, 1], got {value!r}")


def check_count(name: str, value: object) -> None:
    """Raise ConfigError unless ``value`` is an integer >= 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name} must be an integer >= 1, got {value!r}")


def check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raise ConfigError unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        raise ConfigError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")


def check_ascending(name: str, values: object, minimum: int) -> None:
    """Raise ConfigError unless ``values`` is a tuple of strictly ascending ints >= minimum."""
    if not isinstance(values, tuple) or not all(
        isinstance(v, int) and not isinstance(v, bool) and v >= minimum for v in values
    ):
        raise ConfigError(f"{name} must be a tuple of integers >= {minimum}, got {values!r}")
    if any(b <= a for a, b in itertools.pairwise(values)):
        raise ConfigError(f"{name} must be strictly ascending without repeats, got {values!r}")
