"""One method from stages of several: the encoder stage of one, token and model stages of others."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from earlytom.errors import ConfigError
from earlytom.method import Method, register_method
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
    from earlytom.ops.device_plan import FixedMerge
    from earlytom.ops.plan import MergePlan

STAGES = ("encoder", "tokens", "inner")
_STAGES_DECIDE = ("as its stages",)
_ALIASES = {"first": "encoder", "second": "tokens"}


@register_method
@dataclass(frozen=True)
class Compose(Method):
    """Stages of several methods as one.

    In ``Compose(EarlyTom(...), HoliTom(...))`` the first gives what happens inside the vision
    encoder, the second everything behind it: token selection and, unless ``inner`` is given, what
    happens inside the language model.

    Frames are merged for the token budget of ``tokens``: an encoder stage that sizes itself by
    ``retention_ratio`` sees that of ``tokens``, so it never leaves fewer frames than ``tokens``
    needs. Where the encoder reduces patches instead, it goes by its own ratio; the patch grid is
    restored if ``tokens`` selects from it. Encoder attention is measured in the layer that
    ``tokens`` names (in that of ``encoder`` if it names none).

    A method that acts inside the language model only keeps the meaning of its ratio (an average
    over layers, in tokens of the uncompressed video): it prunes less, the fewer tokens enter.

    The budget of ``tokens`` is a share of the uncompressed video, also behind merged frames; only
    the ``official`` policies of dycoke, holitom, prumerge and prunevid keep their share of the
    frames left.

    Args:
        encoder: whose encoder stage runs (frame merging, patch reduction).
        tokens: whose token selection runs.
        inner: whose stages inside the language model run; None is ``tokens``.
        retention_ratio: None is that of ``tokens``; a number replaces it there.
        positions: see :class:`Method`; ``auto`` is what ``tokens`` does (``encoder``, if ``tokens``
            has no token selection and leaves it open).

    Raises:
        ConfigError: a stage is not a method (or the JSON form of one), or does not take the ratio.
    """

    name: ClassVar[str] = "compose"
    acts: ClassVar[tuple[str, ...]] = _STAGES_DECIDE
    signals: ClassVar[tuple[str, ...]] = _STAGES_DECIDE
    token_count: ClassVar[str] = _STAGES_DECIDE[0]

    encoder: Method
    tokens: Method
    inner: Method | None = None
    retention_ratio: float = dataclasses.field(default=None, kw_only=True)  # type: ignore[assignment]
    positions: str = dataclasses.field(default="auto", kw_only=True)

    def __post_init__(self) -> None:
        for name in STAGES:
            stage = getattr(self, name)
            if isinstance(stage, dict):
                object.__setattr__(self, name, Method.from_dict(stage))
            elif not isinstance(stage, Method) and not (name == "inner" and stage is None):
                raise ConfigError(f"{name} must be a method, got {stage!r}")
        ratio = self.retention_ratio
        if ratio is None:
            object.__setattr__(self, "retention_ratio", self.tokens.retention_ratio)
        elif ratio != self.tokens.retention_ratio:
            tokens = dataclasses.replace(self.tokens, retention_ratio=ratio)
            object.__setattr__(self, "tokens", tokens)
        super().__post_init__()
        _ = self._merger  # a ratio that does not fit it is found here

    @cached_property
    def _merger(self) -> Method:
        """The encoder's method, with the budget that its frames must suffice for."""
        if type(self.encoder).merge_frames is Method.merge_frames:
            return self.encoder
        return dataclasses.replace(self.encoder, retention_ratio=self.retention_ratio)

    @property
    def _behind(self) -> Method:
        return self.tokens if self.inner is None else self.inner

    # ------------------------------------------------------------------ budget and positions
    @property
    def exact_budget(self) -> bool:
        """Whether exactly ``token_budget(T, S)`` tokens are kept: as ``tokens`` says."""
        return self.selects_tokens and self.tokens.exact_budget

    @property
    def selects_tokens(self) -> bool:
        """Whether ``tokens`` has a token selection."""
        return self.tokens.selects_tokens

    @property
    def weighs_tokens(self) -> bool:
        """Whether the tokens of ``tokens`` count differently."""
        return self.tokens.weighs_tokens

    def token_budget(self, n_frames: int, tokens_per_frame: int) -> int:
        """Return the budget of ``tokens``."""
        return self.tokens.token_budget(n_frames, tokens_per_frame)

    def patch_budget(self, n_frames: int, tokens_per_frame: int) -> int:
        """Return the budget that ``encoder`` reduces patches to."""
        return self.encoder.patch_budget(n_frames, tokens_per_frame)

    @property
    def asked_positions(self) -> str:
        """What was asked for here, or of the stage that decides."""
        return self._places.asked_positions if self.positions == "auto" else self.positions

    def resolved_positions(self) -> str:
        """Return ``positions`` with ``auto`` replaced by what the stages do."""
        return self._places.resolved_positions() if self.positions == "auto" else self.positions

    @property
    def _places(self) -> Method:
        """The part whose positions count."""
        decides = self.selects_tokens or self.tokens.positions != "auto"
        return self.tokens if decides else self.encoder

    # ------------------------------------------------------------------ encoder
    def merge_points(self, n_layers: int) -> tuple[int, ...]:
        """Return the merge points of ``encoder``."""
        return self._merger.merge_points(n_layers)

    def merge_frames(
        self, hidden: Tensor, state: VideoState, point: int, tokens_per_frame: int
    ) -> MergePlan | None:
        """Merge frames as ``encoder`` does."""
        return self._merger.merge_frames(hidden, state, point, tokens_per_frame)

    def fixed_merges(
        self, n_frames: int, tokens_per_frame: int, n_layers: int
    ) -> tuple[FixedMerge, ...] | None:
        """Return the merges of ``encoder`` for a compiled encoder."""
        return self._merger.fixed_merges(n_frames, tokens_per_frame, n_layers)

    def finish_frames(self, hidden: Tensor, state: VideoState, point: int) -> None:
        """Let ``encoder`` look at the merged frames."""
        self._merger.finish_frames(hidden, state, point)

    def reduce_layers(self, n_layers: int) -> tuple[int, ...]:
        """Return the layers in which ``encoder`` reduces patches."""
        return self.encoder.reduce_layers(n_layers)

    @property
    def reduce_place(self) -> str:
        """Where in a layer ``encoder`` does so."""
        return self.encoder.reduce_place

    def patch_signals(self) -> tuple[str, ...]:
        """Return what ``encoder`` wants for it."""
        return self.encoder.patch_signals()

    def proportional_attention(self) -> bool:
        """Return whether ``encoder`` weighs keys by size."""
        return self.encoder.proportional_attention()

    def reduce_patches(self, hidden: Tensor, state: PatchState) -> PatchReduction | None:
        """Reduce patches as ``encoder`` does."""
        return self.encoder.reduce_patches(hidden, state)

    def rebuild_layers(self, n_layers: int) -> tuple[int, ...]:
        """Return the layers whose attention ``encoder`` runs on all patches."""
        return self.encoder.rebuild_layers(n_layers)

    def restore_patches(self, hidden: Tensor, state: PatchState) -> Tensor | None:
        """Restore patches as ``encoder`` does."""
        return self.encoder.restore_patches(hidden, state)

    def restore_grid(self) -> bool:
        """Return True if ``tokens`` selects from the patch grid, or ``encoder`` restores it."""
        return self.selects_tokens or self.encoder.restore_grid()

    def final_patches(self, size: Tensor, budget: int) -> Tensor | None:
        """Choose the patches for the language model as ``encoder`` does."""
        return self.encoder.final_patches(size, budget)

    def encoder_grid(self, grid: tuple[int, int]) -> tuple[int, int] | None:
        """Return the token grid that ``encoder`` encodes frames for."""
        return self.encoder.encoder_grid(grid)

    def reuse_layer(self, n_layers: int) -> int | None:
        """Return the layer from which ``encoder`` reuses patches."""
        return self.encoder.reuse_layer(n_layers)

    def without_reuse(self) -> Method | None:
        """Return the same with ``encoder`` without its reuse of patches; None: it has none."""
        rest = self.encoder.without_reuse()
        return None if rest is None else dataclasses.replace(self, encoder=rest)

    def fresh_patches(self, hidden: Tensor, n_layers: int) -> Tensor:
        """Choose the patches to compute as ``encoder`` does."""
        return self.encoder.fresh_patches(hidden, n_layers)

    # ------------------------------------------------------------------ signals
    def score_layer(self, n_layers: int) -> int | None:
        """Return the score layer of ``tokens``, else that of ``encoder`` if it merges frames."""
        layer = self.tokens.score_layer(n_layers)
        if layer is None and type(self.encoder).merge_frames is not Method.merge_frames:
            return self._merger.score_layer(n_layers)
        return layer

    def needs_keys(self) -> bool:
        """Return whether a stage wants keys."""
        return self.tokens.needs_keys() or self.encoder.needs_keys()

    def needs_head(self) -> bool:
        """Return whether ``tokens`` wants the signals of the pooling head."""
        return self.tokens.needs_head()

    # ------------------------------------------------------------------ tokens
    def select_tokens(self, video: VideoFeatures) -> TokenSelection | None:
        """Choose tokens as ``tokens`` does."""
        return self.tokens.select_tokens(video)

    # ------------------------------------------------------------------ language model
    def inner_points(self, n_layers: int) -> tuple[InnerPoint, ...]:
        """Return the points of ``inner``.

        Raises:
            ConfigError: its ratio cannot be reached behind the tokens that enter.
        """
        # what will enter is known here only for an exact token stage
        enters = self.tokens.retention_ratio if self.exact_budget else 1.0
        return self._scaled(1.0, enters).inner_points(n_layers)

    @property
    def inner_positions(self) -> str:
        """Positions behind a point, as ``inner`` says."""
        return self._behind.inner_positions

    def inner_start(self, state: InnerState) -> None:
        """Let ``inner`` look at the embeddings."""
        method, state = self._entered(state)
        method.inner_start(state)

    def inner_queries(self, state: InnerState) -> Tensor | None:
        """Return the queries that ``inner`` wants."""
        method, state = self._entered(state)
        return method.inner_queries(state)

    def merge_inner(self, state: InnerState) -> InnerMerge | None:
        """Merge inside the language model as ``inner`` does; None if few enough tokens entered."""
        method, state = self._entered(state)
        if method.retention_ratio == 1 and not method.selects_tokens:
            return None
        return method.merge_inner(state)

    def _entered(self, state: InnerState) -> tuple[Method, InnerState]:
        """Show ``inner`` the tokens that entered as the whole video, and the ratio in these."""
        method = self._scaled(state.uncompressed, state.entered)
        if method is self._behind:
            return method, state
        return method, dataclasses.replace(state, uncompressed=state.entered)

    def _scaled(self, uncompressed: float, entered: float) -> Method:
        """Return ``inner`` with its ratio of the uncompressed video as one of what entered."""
        method = self._behind
        if method.selects_tokens or not 0 < entered < uncompressed:
            return method  # stages of its own settings, or nothing is gone
        # rounded down, so that no budget is exceeded by the rounding
        ratio = math.floor(method.retention_ratio * uncompressed / entered * 1e12) / 1e12
        return dataclasses.replace(method, retention_ratio=min(1.0, ratio))

    def decode_layer(self, n_layers: int) -> int | None:
        """Return the layer from which ``inner`` hides columns while decoding."""
        return self._behind.decode_layer(n_layers)

    def decode_keep(self, last_row: Tensor, memory: dict[str, Any]) -> Tensor | None:
        """Choose the columns to see as ``inner`` does."""
        return self._behind.decode_keep(last_row, memory)

    # ------------------------------------------------------------------ data
    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dict: ``first`` and ``second``, or every stage by its name."""
        data: dict[str, Any] = {"method": self.name}
        if self.inner is None:
            data |= {"first": self.encoder.to_dict(), "second": self.tokens.to_dict()}
        else:
            data |= {k: getattr(self, k).to_dict() for k in STAGES}
        if self.positions != "auto":
            data["positions"] = self.positions
        return data

    @classmethod
    def from_settings(cls, settings: dict[str, Any]) -> Method:
        """Build from stages, methods or their JSON form; ``first`` and ``second`` may be used.

        Raises:
            ConfigError: a stage is missing, given twice, or not a method.
        """
        named: dict[str, Any] = {}
        for key, value in settings.items():
            name = _ALIASES.get(key, key)
            if name in named:
                raise ConfigError(
                    f"compose has {name!r} twice (first is encoder, second is tokens)"
                )
            named[name] = value
        for name in STAGES[:2]:
            if name not in named:
                raise ConfigError(f"compose needs the stages encoder and tokens; {name} is missing")
        return super().from_settings(named)
