"""Base class of every compression method: a frozen, validated config with up to four stages."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from earlytom.checks import check_choice, check_ratio
from earlytom.errors import ConfigError
from earlytom.files import write_text
from earlytom.ops.cells import largest_tokens
from earlytom.registry import list_methods, load_method, method_class, register_method
from earlytom.stages import (
    InnerMerge,
    InnerPoint,
    InnerState,
    PatchReduction,
    PatchState,
    TokenSelection,
    VideoFeatures,
    VideoState,
)

if TYPE_CHECKING:
    from torch import nn

    from earlytom.ops.device_plan import FixedMerge
    from earlytom.ops.plan import MergePlan

POSITIONS = ("auto", "renumber", "keep", "respace")
"""Where surviving tokens may stand, see :class:`Method`."""
CONFIG_NAME = "compression_config.json"
"""File that :meth:`Method.save` writes beside a model."""

__all__ = [
    "CONFIG_NAME",
    "POSITIONS",
    "Method",
    "list_methods",
    "load_method",
    "method_class",
    "register_method",
]


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
            original span, patches keep their offset) or ``auto`` (the method's own default; where
            that keeps places, a video longer than the model's context is interpolated into it).

    Raises:
        ConfigError: on any value out of range.
    """

    retention_ratio: float = 0.25
    positions: str = "auto"

    name: ClassVar[str] = ""
    # what `earlytom methods` shows beside that which follows from the stages (earlytom.catalog)
    acts: ClassVar[tuple[str, ...]] = ()
    signals: ClassVar[tuple[str, ...]] = ()
    token_count: ClassVar[str] = "depends on the video"
    citation: ClassVar[str] = ""
    url: ClassVar[str] = ""

    def __post_init__(self) -> None:
        check_ratio("retention_ratio", self.retention_ratio)
        check_choice("positions", self.positions, POSITIONS)

    # ------------------------------------------------------------------ what the engine asks
    @property
    def exact_budget(self) -> bool:
        """Whether exactly ``token_budget(T, S)`` tokens are kept, known before the video is."""
        return False

    @property
    def asked_positions(self) -> str:
        """What the user asked for; ``auto`` leaves it to the method and the model."""
        return self.positions

    def resolved_positions(self) -> str:
        """Return ``positions`` with ``auto`` replaced by the method's own default."""
        return "renumber" if self.positions == "auto" else self.positions

    def merge_points(self, n_layers: int) -> tuple[int, ...]:
        """Layers (0-based, ascending) of an ``n_layers`` encoder after which frames are merged.

        -1 stands for the patch embeddings.
        """
        return ()

    def score_layer(self, n_layers: int) -> int | None:
        """Encoder layer whose received attention is wanted, or None."""
        return None

    def needs_keys(self) -> bool:
        """Whether the keys of the score layer are wanted as well (``VideoFeatures.keys``)."""
        return False

    def needs_head(self) -> bool:
        """Whether vectors and probe attention of the encoder's pooling head are wanted.

        They arrive as ``VideoFeatures.frame_vectors`` and ``.probe``, None without such a head.
        """
        return False

    def inner_points(self, n_layers: int) -> tuple[InnerPoint, ...]:
        """Points (ascending) inside an ``n_layers`` language model where stage III acts.

        Raises:
            ConfigError: the settings do not fit a language model of this depth.
        """
        return ()

    @property
    def inner_positions(self) -> str:
        """Positions behind a point: ``keep`` their own, or ``renumber``: 0..n'-1 once more."""
        return "keep"

    def decode_layer(self, n_layers: int) -> int | None:
        """First layer whose decode steps see only what :meth:`decode_keep` says, or None."""
        return None

    def merge_frames(
        self, hidden: Tensor, state: VideoState, point: int, tokens_per_frame: int
    ) -> MergePlan | None:
        """Stage I: decide the merge at merge point number ``point`` (0-based).

        Args:
            hidden: ``[frames, patches, dim]`` of one video, after the layer of this point. Valid
                during the call: merging may write over it, so copy what is to be kept.
            state: the video so far; ``state.received`` already holds this layer's attention if
                this is the score layer.
            point: index into ``merge_points``.
            tokens_per_frame: tokens ``S`` of a frame after pooling (for budgets).
        """
        return None

    def finish_frames(self, hidden: Tensor, state: VideoState, point: int) -> None:
        """Look at the merged frames ``[N, patches, dim]`` after point ``point``; may set groups.

        ``hidden`` is valid during the call, as in :meth:`merge_frames`.
        """

    def fixed_merges(
        self, n_frames: int, tokens_per_frame: int, n_layers: int
    ) -> tuple[FixedMerge, ...] | None:
        """Return stage I in a form that a compiled encoder can run, one entry per merge point.

        Decisions must be those of :meth:`merge_frames`; :meth:`finish_frames` is not called.

        Args:
            n_frames: frames of the video.
            tokens_per_frame: tokens ``S`` of a frame after pooling.
            n_layers: encoder layers whose output reaches the projector.

        Returns:
            None if how many frames are left depends on what the video shows.
        """
        return None if self.merge_points(n_layers) else ()

    # ------------------------------------------------------------------ patches in the encoder
    def reduce_layers(self, n_layers: int) -> tuple[int, ...]:
        """Encoder layers (0-based, ascending) in which patch tokens are reduced."""
        return ()

    @property
    def reduce_place(self) -> str:
        """Where in such a layer: ``input``, ``attention`` (between it and the MLP), ``output``."""
        return "attention"

    def patch_signals(self) -> tuple[str, ...]:
        """Attention inputs that ``reduce_patches`` wants: a subset of ``("query", "key")``."""
        return ()

    def proportional_attention(self) -> bool:
        """Whether later layers add ``log(size)`` of a key's token to its attention logits."""
        return False

    def reduce_patches(self, hidden: Tensor, state: PatchState) -> PatchReduction | None:
        """Reduce the patch tokens ``[T, n, dim]`` of one video; None keeps them as they are.

        All frames of all videos of a call must be left with the same number of tokens.
        """
        return None

    def rebuild_layers(self, n_layers: int) -> tuple[int, ...]:
        """Layers whose attention runs on the restored patch grid, the MLP on the tokens left."""
        return ()

    def restore_patches(self, hidden: Tensor, state: PatchState) -> Tensor | None:
        """Return ``[T, patches, dim]`` from the tokens left ``[T, n, dim]``.

        None gives every patch the value of its owner (of the nearest token if it has none).
        """
        return None

    def restore_grid(self) -> bool:
        """Whether the patch grid is restored behind the encoder, so that stage II can select.

        If not, the tokens left go to the language model, each in the cell nearest to its patches.
        """
        return self.selects_tokens

    def final_patches(self, size: Tensor, budget: int) -> Tensor | None:
        """Return which of the tokens left ``size [T, m]`` go to the language model.

        Returns:
            Ascending int64 index into ``T * m``, or None for all. With an exact budget these are
            the ``budget`` tokens that stand for most patches.
        """
        if not self.exact_budget or size.numel() <= budget:
            return None
        return largest_tokens(size, budget)

    def reuse_layer(self, n_layers: int) -> int | None:
        """Encoder layer from which on only fresh patches are computed, or None."""
        return None

    def without_reuse(self) -> Method | None:
        """Return what is left of the method without reuse of patches; None: it has none."""
        return None

    def fresh_patches(self, hidden: Tensor, n_layers: int) -> Tensor:
        """Mark the patches of one video that go on being computed.

        Every other patch shows the state of the same patch in the latest frame that computed it.

        Args:
            hidden: ``[T, patches, dim]`` in front of ``reuse_layer``.
            n_layers: depth of the encoder.

        Returns:
            ``[T, patches]`` bool, all of frame 0 True.
        """
        return torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)

    def encoder_grid(self, grid: tuple[int, int]) -> tuple[int, int] | None:
        """Return a coarser token grid (height, width) to encode frames for, None: full resolution.

        Args:
            grid: (height, width) of the tokens of a frame after pooling.
        """
        return None

    # ------------------------------------------------------------------ tokens
    @property
    def selects_tokens(self) -> bool:
        """Whether there is a stage II at all."""
        return type(self).select_tokens is not Method.select_tokens

    @property
    def weighs_tokens(self) -> bool:
        """Whether ``TokenSelection.weight`` counts in the attention to the tokens.

        The logarithm of a weight is added to the attention logits of its token in all layers of
        the language model. Attention functions without a float mask count all tokens alike.
        """
        return False

    def select_tokens(self, video: VideoFeatures) -> TokenSelection | None:
        """Stage II: choose (and possibly merge) the tokens of one video; None keeps all."""
        return None

    # ------------------------------------------------------------------ inside the language model
    def inner_start(self, state: InnerState) -> None:
        """Look at the embeddings of one sequence before layer 0, if there are inner points."""

    def inner_queries(self, state: InnerState) -> Tensor | None:
        """Return ``[q]`` int64 columns whose attention rows are wanted; None: the last one.

        ``state`` is what :meth:`merge_inner` will see, with ``attention`` still None.
        """
        return None

    def merge_inner(self, state: InnerState) -> InnerMerge | None:
        """Stage III at one point, for one sequence with visual tokens; None keeps all columns."""
        return None

    def decode_keep(self, last_row: Tensor, memory: dict[str, Any]) -> Tensor | None:
        """Choose the visual columns that the layers from ``decode_layer`` on see in this step.

        Called once per decoded token and sequence. The cache stays intact: this is a mask.

        Args:
            last_row: ``[heads, n_visual]`` float32, attention of the new token to the visual
                columns in layer ``decode_layer - 1``.
            memory: scratch of this sequence, kept with its row of the cache.

        Returns:
            ``[n_visual]`` bool, or None for all of them. Must not synchronise with the host.
        """
        return None

    # ------------------------------------------------------------------ budget
    def token_budget(self, n_frames: int, tokens_per_frame: int) -> int:
        """Exact token count ``max(1, ceil(r T S))`` of a video of ``T`` input frames."""
        share = Fraction(str(self.retention_ratio))
        return max(1, math.ceil(share * n_frames * tokens_per_frame))

    def patch_budget(self, n_frames: int, tokens_per_frame: int) -> int:
        """Tokens that patch reduction has to leave of a video of ``T`` input frames."""
        return self.token_budget(n_frames, tokens_per_frame)

    # ------------------------------------------------------------------ use
    def __call__(
        self, model: nn.Module, *, frames_per_chunk: int | None = None, images: bool = False
    ) -> AbstractContextManager[Any]:
        """Return a context manager that compresses ``model`` inside it and restores it after.

        Args:
            model: see :func:`earlytom.compress`.
            frames_per_chunk: likewise.
            images: likewise.
        """
        from earlytom.hf.api import compressed

        return compressed(model, self, frames_per_chunk=frames_per_chunk, images=images)

    # ------------------------------------------------------------------ data
    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dict; ``method`` holds the registered name."""
        return {"method": self.name, **dataclasses.asdict(self)}

    def to_json(self) -> str:
        """Return the config as JSON text."""
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> Method:
        """Build this method from named settings.

        Raises:
            ConfigError: unknown setting, or a value out of range.
        """
        known = [f.name for f in dataclasses.fields(cls)]
        unknown = sorted(set(settings) - set(known))
        if unknown:
            raise ConfigError(
                f"{cls.name} has no setting {unknown[0]!r}; it has: {', '.join(known)}"
            )
        return cls(**settings)

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
        write_text(path, self.to_json() + "\n")
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
