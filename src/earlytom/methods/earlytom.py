"""EarlyTom: merge redundant frames inside the vision encoder, then select tokens (CVPR 2026)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

from torch import Tensor

from earlytom.errors import BudgetError, ConfigError
from earlytom.method import Method, register_method
from earlytom.methods import earlytom_settings as settings
from earlytom.methods.earlytom_presets import published_settings
from earlytom.methods.inner_tools import merge_unseen
from earlytom.ops import budget, diversity, select
from earlytom.ops.device_plan import FixedMerge
from earlytom.ops.merge import plan_official, plan_paper
from earlytom.ops.plan import Groups, MergePlan
from earlytom.ops.segment import segment_official, segment_stream, static_frames
from earlytom.ops.similarity import measure_frames
from earlytom.ops.tensors import ceil_div, check_finite, exact
from earlytom.stages import (
    EMBEDDINGS,
    InnerMerge,
    InnerPoint,
    InnerState,
    TokenSelection,
    VideoFeatures,
    VideoState,
)


@register_method
@dataclass(frozen=True, kw_only=True)
class EarlyTom(Method):
    """EarlyTom (Wang et al., CVPR 2026, arXiv 2605.30010), under one of three policies.

    ``official`` decides exactly as the released code does, quirks included; ``paper`` follows the
    equations; ``budget`` (ours) keeps a number of frames and tokens that is known before the video
    is seen. ``docs/differences.md`` lists every difference.

    Args:
        retention_ratio: see :class:`Method`. Under ``budget`` the number of tokens is exactly
            ``max(1, ceil(r T S))``; the other policies come close to it.
        positions: see :class:`Method`; ``auto`` is ``renumber`` for ``official``, else ``keep``.
        policy: ``budget``, ``official`` or ``paper``.
        merge_layers: encoder layers (0-based) after which frames are merged, -1 for the patch
            embeddings; None scales the policy's own to the depth of the encoder, ``()`` switches
            stage I off.
        frames: (budget) exact number of frames left after every merge point. A video with fewer
            frames raises BudgetError.
        encoder_budget: (budget) encoder layer-frames to spend / those of the full encoder; 0.6 if
            ``frames`` is not given either. Never exceeded, unless the token budget needs more
            frames or the video has too few of them to merge.
        frame_similarity: (budget) ``worst``: mean cosine of the ``worst_share`` least similar
            patches of two frames; ``mean``: of all patches.
        worst_share: share of patches for ``worst``, in (0, 1].
        fuse: what merged frames become. official, paper: ``weighted`` by similarity or
            ``average`` (all middle frames of a segment become their mean); budget: ``first`` (the
            first frame stands for all) or ``average``. ``auto`` is the first one named.
        tau: (official, paper, ``decoupled``) a segment ends where the similarity falls below this.
        ema: weight of the newest similarity in its moving average.
        max_window: official: segments are closed at this many frames and hold one less (None: 6);
            otherwise the longest segment (None: no limit).
        tau_merge: (paper) least similarity of two merged frames; None means ``tau``. The released
            code derives it from head and tail of the segment.
        selection: stage II: ``decoupled`` (head and tail frames by top-k, frames between them by
            window), ``topk`` or ``window`` (all frames alike), ``global`` (top-k of the whole
            video), ``uniform``, ``diversity`` (farthest-point), ``none``. ``auto`` is
            ``diversity`` for budget, else ``decoupled``.
        merge_rest: average every token that was not selected into the most similar selected one.
        inner_merge_layer: stage III: language-model layer in front of which visual tokens are
            merged once more, None for never.
        inner_ratio: share of the visual tokens that stay from that layer on, in (0, 1].

    Raises:
        ConfigError: a value out of range, or a setting that the policy does not use.
    """

    name: ClassVar[str] = "earlytom"
    signals: ClassVar[tuple[str, ...]] = (
        "frame similarity",
        "token features",
    )
    citation: ClassVar[str] = "Wang et al., CVPR 2026, arXiv 2605.30010"
    url: ClassVar[str] = "https://github.com/viridisGreen/EarlyTom"

    policy: str = "budget"
    merge_layers: tuple[int, ...] | None = None
    frames: tuple[int, ...] | None = None
    encoder_budget: float | None = None
    frame_similarity: str = "mean"
    worst_share: float = 0.05
    fuse: str = "auto"
    tau: float = 0.6
    ema: float = 0.9
    max_window: int | None = None
    tau_merge: float | None = None
    selection: str = "auto"
    merge_rest: bool = False
    inner_merge_layer: int | None = None
    inner_ratio: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        settings.check(self)

    @classmethod
    def preset(
        cls,
        task: str,
        retention_ratio: float,
        model: str = "llava-onevision-7b",
        **changes: Any,
    ) -> EarlyTom:
        """Return the published settings of a benchmark, under ``policy="official"``.

        Args:
            task: mvbench, videomme, egoschema or longvideobench.
            retention_ratio: 0.1, 0.15, 0.2 or 0.25.
            model: llava-onevision-0.5b, llava-onevision-7b or llava-video-7b.
            **changes: settings to use instead of the published ones, e.g. ``policy="paper"``.

        Raises:
            ConfigError: nothing was published for this; the message lists what was.
        """
        published = published_settings(task, retention_ratio, model)
        return cls(**{"policy": "official", **published, **changes})

    # ------------------------------------------------------------------ what the engine asks
    @property
    def exact_budget(self) -> bool:
        """True under ``budget``, unless selection is off."""
        return self.policy == "budget" and self.selection != "none"

    def resolved_positions(self) -> str:
        """Return ``positions`` with ``auto`` replaced by the policy's own default."""
        if self.positions != "auto":
            return self.positions
        return "renumber" if self.policy == "official" else "keep"

    def merge_points(self, n_layers: int) -> tuple[int, ...]:
        """Return the layers after which frames are merged.

        Raises:
            ConfigError: the encoder has no such layer, or ``frames`` or ``encoder_budget`` does
                not fit it.
        """
        return settings.merge_points(self, n_layers)

    def score_layer(self, n_layers: int) -> int | None:
        """Return the last merge layer (else the last layer) if selection ranks by attention."""
        if self._selection() not in settings.BY_ATTENTION:
            return None
        return max(self.merge_points(n_layers), default=EMBEDDINGS) % n_layers

    def inner_points(self, n_layers: int) -> tuple[InnerPoint, ...]:
        """Return the point in front of ``inner_merge_layer``.

        Raises:
            ConfigError: the language model has no such layer.
        """
        layer = self.inner_merge_layer
        if layer is not None and layer >= n_layers:
            raise ConfigError(
                f"inner_merge_layer {layer} is out of range: the language model has {n_layers} "
                f"layers (allowed: 1..{n_layers - 1})"
            )
        return () if layer is None else (InnerPoint(layer),)

    def frame_counts(
        self, n_frames: int, tokens_per_frame: int, n_layers: int | None = None
    ) -> tuple[int, ...]:
        """Return the frames left after every merge point: known before the encoder runs (budget).

        Args:
            n_frames: frames of the video.
            tokens_per_frame: tokens ``S`` of a frame after pooling.
            n_layers: layers of the encoder; needed for ``encoder_budget`` with ``merge_layers``.

        Raises:
            BudgetError: ``frames`` does not fit the video or its token budget.
            ConfigError: another policy, or the depth is needed and unknown.
        """
        if self.policy != "budget":
            raise ConfigError(f"policy {self.policy!r} decides its frame counts from the video")
        least = ceil_div(self.token_budget(n_frames, tokens_per_frame), tokens_per_frame)
        if self.frames is None:
            n_layers, points = settings.nominal_points(self, n_layers)
            share = exact(settings.budget_share(self))
            return budget.frame_schedule(n_frames, n_layers, points, share, least)
        if self.frames and self.frames[0] > n_frames:
            raise BudgetError(
                f"frames={self.frames} asks for {self.frames[0]} frames, but the video has "
                f"{n_frames}; give at most {n_frames}, or encoder_budget instead of frames"
            )
        if self.frames and self.frames[-1] < least:
            raise BudgetError(
                f"frames={self.frames} leaves {self.frames[-1]} x {tokens_per_frame} tokens, fewer "
                f"than retention_ratio={self.retention_ratio} asks for; keep at least {least} "
                "frames or lower retention_ratio"
            )
        return self.frames

    # ------------------------------------------------------------------ stage I
    def merge_frames(
        self, hidden: Tensor, state: VideoState, point: int, tokens_per_frame: int
    ) -> MergePlan | None:
        """Decide the merge at one merge point; the similarities are its only host copy."""
        n = hidden.shape[0]
        if self.policy == "budget":
            merge = self._budget_merges(state.n_input, tokens_per_frame, state.n_layers)[point]
            if merge.target >= n:
                return None
            width = budget.needed_width(n, merge.target)
            band = measure_frames(hidden, width, merge.worst_share)
            return budget.plan_budget(band, merge.target, state.count, merge.fuse)
        average = self._fuse() == "average"
        band = measure_frames(hidden, self._band_width())
        if self.policy == "official":
            groups = segment_official(band, self.tau, self.ema, self._window())
            return plan_official(band, groups, average)
        groups = segment_stream(band.adjacent(), self.tau, self.ema, self.max_window)
        tau_merge = self.tau if self.tau_merge is None else self.tau_merge
        return plan_paper(band.adjacent(), groups, tau_merge, average)

    def fixed_merges(
        self, n_frames: int, tokens_per_frame: int, n_layers: int
    ) -> tuple[FixedMerge, ...] | None:
        """Return the merges of policy ``budget``; None where segments are needed as well.

        Raises:
            BudgetError: see :meth:`frame_counts`.
        """
        if not self.merge_points(n_layers):
            return ()
        if self.policy != "budget" or self._selection() == "decoupled":
            return None
        return self._budget_merges(n_frames, tokens_per_frame, n_layers)

    def _budget_merges(
        self, n_frames: int, tokens_per_frame: int, n_layers: int | None
    ) -> tuple[FixedMerge, ...]:
        worst = self.worst_share if self.frame_similarity == "worst" else None
        counts = self.frame_counts(n_frames, tokens_per_frame, n_layers)
        return tuple(FixedMerge(count, worst, self._fuse()) for count in counts)

    def finish_frames(self, hidden: Tensor, state: VideoState, point: int) -> None:
        """Segment the merged frames again: these groups drive decoupled selection."""
        # attention is there from the last merge layer on; earlier groups would be overwritten
        if self._selection() == "decoupled" and state.received is not None:
            state.groups = self._segment(hidden)

    def _segment(self, x: Tensor) -> Groups:
        band = measure_frames(x, self._band_width())
        if self.policy == "official":
            return segment_official(band, self.tau, self.ema, self._window())
        return segment_stream(band.adjacent(), self.tau, self.ema, self.max_window)

    def _band_width(self) -> int:
        return self._window() - 2 if self.policy == "official" else 1

    # ------------------------------------------------------------------ stage II
    def select_tokens(self, video: VideoFeatures) -> TokenSelection | None:
        """Choose the tokens of one video; None keeps all.

        Raises:
            VideoError: NaN or infinite features.
            ConfigError: selection by attention, but no attention was measured.
        """
        n, size = video.features.shape[:2]
        total = n * size
        by = self._selection()
        wanted = self.token_budget(video.state.n_input, size)
        if by == "none" or (self.policy == "budget" and wanted >= total):
            return None
        # stage I has not looked at what the layers after it made
        check_finite(video.features)
        if by in ("diversity", "uniform"):
            if wanted >= total:
                return None
            index = (
                diversity.diverse_tokens(video.features, wanted)
                if by == "diversity"
                else select.evenly(total, wanted, video.features.device)
            )
        else:
            found = self._by_attention(video, by, wanted)
            if found is None:
                return None
            index = found
        if not self.merge_rest:
            return TokenSelection(index)
        values, weight = diversity.merge_rest(video.features.flatten(0, 1), index)
        return TokenSelection(index, values, weight)

    def _by_attention(self, video: VideoFeatures, by: str, wanted: int) -> Tensor | None:
        n, size = video.features.shape[:2]
        score = video.received
        if score is None:
            raise ConfigError(
                f"selection {by!r} needs received attention, which was not measured for this "
                "model; allowed without it: diversity, uniform, none"
            )
        if by == "global":
            wanted = min(wanted, n * size)
            return select.mask_index(select.top_of_video(score, wanted), wanted)
        static = [by == "window"] * n
        if by == "decoupled":
            static = static_frames(video.state.groups or self._segment(video.features))
        counts = self._tokens_of_frames(static, size, video.state.n_input)
        if all(c == size for c in counts):
            return None
        windows = [c if s else 0 for s, c in zip(static, counts, strict=True)]
        mask = select.top_per_frame(score, [c - w for c, w in zip(counts, windows, strict=True)])
        if any(windows):
            mask |= select.top_per_window(score, windows)
        return select.mask_index(mask, sum(counts))

    def _tokens_of_frames(self, static: list[bool], size: int, n_input: int) -> list[int]:
        """Return how many tokens every frame keeps (paper: rate rescaling)."""
        n = len(static)
        if self.policy == "budget":
            return list(budget.spread(self.token_budget(n_input, size), n))
        if self.policy == "official":
            # binary floats and banker's rounding, as released: 100 * 0.30000000000000004 -> 31
            rate = min(self.retention_ratio / (n / n_input), 1)
            window = max(1, round(size * rate))
            return [window if s else math.ceil(size * rate) for s in static]
        share = min(exact(self.retention_ratio) * n_input / n, Fraction(1))
        return [math.ceil(size * share)] * n

    # ------------------------------------------------------------------ stage III
    def merge_inner(self, state: InnerState) -> InnerMerge | None:
        """Merge the visual tokens that the last query looks at least into the others."""
        mode = "sequential" if self.policy == "official" else "mean"
        return merge_unseen(state, self.inner_ratio, mode)

    # ------------------------------------------------------------------ resolved settings
    def _selection(self) -> str:
        if self.selection != "auto":
            return self.selection
        return "diversity" if self.policy == "budget" else "decoupled"

    def _fuse(self) -> str:
        if self.fuse != "auto":
            return self.fuse
        return "first" if self.policy == "budget" else "weighted"

    def _window(self) -> int:
        return 6 if self.max_window is None else self.max_window
