"""PruneVid: cluster what stands still per scene and what moves per frame (ACL 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from earlytom.checks import check_choice, check_count, check_ratio
from earlytom.errors import ConfigError
from earlytom.method import Method, register_method
from earlytom.ops.cluster import Clusters, contiguous_labels, density_peaks, label_groups
from earlytom.ops.host import read_host
from earlytom.ops.pairwise import neighbour_cosine
from earlytom.ops.raters import best_per_group
from earlytom.ops.select import mask_index
from earlytom.ops.tensors import exact, to_device, unit_rows
from earlytom.ops.windows import Windows, merge_runs, share_out, window_sums
from earlytom.stages import (
    InnerMerge,
    InnerPoint,
    InnerState,
    TokenSelection,
    VideoFeatures,
)

WHOLE = 14  # the release does not cluster groups of this many tokens or fewer


@register_method
@dataclass(frozen=True, kw_only=True)
class PruneVid(Method):
    """PruneVid: clusters of what stands still per scene and of what moves per frame.

    Huang et al., ACL 2025, arXiv 2412.16117, released as Visual-AI/PruneVid@b12600c; the golden
    vectors come from the LLaVA-OneVision port in ModelTC/LightCompress@9701d03. Frames are
    clustered into temporal segments. Places whose tokens are alike in all frames of a segment are
    averaged over it; static tokens of a segment and dynamic tokens of a frame are then clustered,
    every cluster becoming its mean.

    Differences to the released code: ``exact`` (default) keeps exactly ``max(1, ceil(r T S))``
    tokens: clusters are shared out in proportion over segments and frames (groups of 14 or fewer
    tokens, which the release leaves alone, included), and where averaging over time alone goes
    below the budget, averages are split at their least similar steps. Under both policies: a token
    stands at its cluster's centre (static: in the first frame of its segment), in temporal and
    raster order (released: order of scores); the random noise on densities is 0; a segment of one
    frame is dynamic (released: 0 / 0); groups and videos are never too small (released: crash).

    Stage 2 (``inner_prune_layer``, off by default): inside the language model, of every frame the
    share ``inner_ratio`` stays that a text token behind the video looks at most in any head of the
    layer before. Differences to the released code: static tokens count with the frame they stand
    in (released: with their segment); ``exact`` keeps ``floor`` of the share once for the whole
    video, spread over the frames (released, ``official``: per frame, which can leave none); newline
    tokens all stay; so do the keys and values of the layers in front (released: cut back, which
    saves memory and changes what later tokens see there).

    Args:
        retention_ratio: see :class:`Method`, also with stage 2 behind it. ``official`` keeps what
            the video gives.
        positions: see :class:`Method`; ``auto`` is ``renumber``.
        policy: ``exact`` or ``official``.
        tau: a place is static in a segment if the mean cosine of all pairs of frames is above this.
        cluster_ratio: (official) clusters / tokens of every group (published: 0.5 with stage 2
            behind it); None is ``retention_ratio``.
        temporal_segment_ratio: temporal clusters / frames.
        neighbours: neighbours of the density estimate.
        inner_prune_layer: language-model layer in front of which stage 2 acts (published: 11 of 32
            as "after layer 10"), None for never.
        inner_ratio: share of the visual tokens that stay from that layer on, in (0, 1].

    Raises:
        ConfigError: a value out of range.
        VideoError: NaN or infinite features.
    """

    name: ClassVar[str] = "prunevid"
    signals: ClassVar[tuple[str, ...]] = ("token features",)
    citation: ClassVar[str] = "Huang et al., ACL 2025, arXiv 2412.16117"
    url: ClassVar[str] = "https://github.com/Visual-AI/PruneVid"

    policy: str = "exact"
    tau: float = 0.8
    cluster_ratio: float | None = None
    temporal_segment_ratio: float = 0.25
    neighbours: int = 7
    inner_prune_layer: int | None = None
    inner_ratio: float = 0.4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("policy", self.policy, ("exact", "official"))
        check_ratio("tau", self.tau, low=-1.0, open_low=False)
        check_ratio("temporal_segment_ratio", self.temporal_segment_ratio)
        check_count("neighbours", self.neighbours)
        check_ratio("inner_ratio", self.inner_ratio)
        if self.inner_prune_layer is not None:
            check_count("inner_prune_layer", self.inner_prune_layer)
        if self.cluster_ratio is not None:
            check_ratio("cluster_ratio", self.cluster_ratio)
            if self.policy != "official":
                raise ConfigError('cluster_ratio has no meaning under policy "exact"; leave it out')

    @property
    def exact_budget(self) -> bool:
        """Whether exactly ``token_budget(T, S)`` tokens are kept."""
        return self.policy == "exact"

    def select_tokens(self, video: VideoFeatures) -> TokenSelection | None:
        """Cluster the tokens of one video; None keeps all (ratio 1)."""
        x = video.features
        n, size = x.shape[:2]
        wanted = self.token_budget(video.state.n_input, size)
        exact = self.exact_budget
        if self.retention_ratio == 1 or (exact and wanted >= n * size):
            return None
        windows = self.find_windows(x, contiguous_labels(self.frame_labels(x)))
        if exact and wanted >= n * size - windows.removed:
            return TokenSelection(*merge_runs(x, windows.joined(), neighbour_cosine(x), wanted))
        place, rows, weight, sizes = token_groups(x, windows)
        clusters = self.cluster(rows, sizes, wanted if exact else None)
        values, _ = clusters.means(rows)
        stands_for = clusters.totals(weight)
        index, order = place.index_select(0, clusters.centre).sort()
        return TokenSelection(
            index,
            values.index_select(0, order).to(x.dtype),
            stands_for.index_select(0, order),
        )

    def frame_labels(self, features: Tensor) -> list[int]:
        """Return the temporal cluster of every frame, numbered by descending score."""
        n = features.shape[0]
        count = max(1, int(n * self.temporal_segment_ratio))
        means = features.float().mean(1)
        owner = density_peaks(means, [n], [count], [self.neighbours]).owner
        return [int(label) for label in read_host(owner, features)]

    def find_windows(self, features: Tensor, labels: list[int]) -> Windows:
        """Return the segments of equal labels and their static places."""
        groups = label_groups(labels)
        total = torch.cat(
            [window_sums(unit_rows(features[a : b + 1]), ((0, b - a),)) for a, b in groups]
        )
        length = to_device([[b - a + 1] for a, b in groups], features.device, torch.float32)
        pairs = length * (length - 1)
        similar = (total.square().sum(-1) - length) / pairs.clamp_min(1)
        static = (similar > self.tau) & (length > 1)
        return Windows(groups, read_host(static) != 0)

    def cluster(self, rows: Tensor, sizes: list[int], wanted: int | None) -> Clusters:
        """Cluster the groups: to ``wanted`` clusters in total, or as released (None)."""
        counts: list[int | None]
        if wanted is None:
            ratio = self.retention_ratio if self.cluster_ratio is None else self.cluster_ratio
            counts = [max(1, int(s * ratio)) if s > WHOLE else None for s in sizes]
        else:
            counts = [*share_out(wanted, sizes)]
        return density_peaks(rows, sizes, counts, [self.neighbours] * len(sizes))

    # ------------------------------------------------------------------ stage III
    def inner_points(self, n_layers: int) -> tuple[InnerPoint, ...]:
        """Return the point in front of ``inner_prune_layer``; the engine checks the depth."""
        layer = self.inner_prune_layer
        return () if layer is None or self.inner_ratio == 1 else (InnerPoint(layer),)

    def inner_queries(self, state: InnerState) -> Tensor | None:
        """Return the columns behind the last visual token; None (the last one) if there is none."""
        columns = torch.arange(state.visual.numel(), device=state.visual.device)
        last = columns.masked_fill(~state.visual, -1).max()
        behind = (columns > last).nonzero().flatten()
        return behind if behind.numel() else None

    def merge_inner(self, state: InnerState) -> InnerMerge | None:
        """Keep the tokens of every frame that the question looks at most."""
        if state.attention is None:
            raise ConfigError("prunevid needs attention rows, which this model does not give")
        rivals = state.patch >= 0
        column = mask_index(rivals, state.n_tokens)
        score = state.attention.amax((0, 1)).index_select(0, column)
        frame = state.frame.index_select(0, column)
        total = max(1, int(exact(self.inner_ratio) * column.numel())) if self.exact_budget else None
        stay = best_per_group(score, frame, self.inner_ratio, total)
        return InnerMerge((~rivals).index_copy(0, column, stay).nonzero().flatten())


def token_groups(x: Tensor, windows: Windows) -> tuple[Tensor, Tensor, Tensor, list[int]]:
    """Return what is clustered: per segment its static tokens, then the dynamic ones by frame.

    Args:
        x: ``[T, S, D]``.
        windows: segments and their static places.

    Returns:
        ``[R]`` place of every row in ``T * S`` (static: in the first frame of its segment),
        ``[R, D]`` float32 rows, ``[R]`` float32 tokens that a row stands for, and group sizes.
    """
    size = x.shape[1]
    places, rows, weights, sizes = [], [], [], []
    for w, (a, b) in enumerate(windows.groups):
        still = windows.static[w]
        static, dynamic = still.nonzero()[0], (~still).nonzero()[0]
        moving = (np.arange(a, b + 1)[:, None] * size + dynamic).ravel()
        places += [a * size + static, moving]
        weights += [np.full(len(static), b - a + 1), np.ones(len(moving))]
        sizes += [len(static), *[len(dynamic)] * (b - a + 1)]
        mean = x[a : b + 1].float().mean(0)
        rows.append(mean.index_select(0, to_device(static, x.device)))
        rows.append(x.flatten(0, 1).index_select(0, to_device(moving, x.device)).float())
    place = to_device(np.concatenate(places), x.device)
    weight = to_device(np.concatenate(weights), x.device, torch.float32)
    return place, torch.cat(rows), weight, sizes
