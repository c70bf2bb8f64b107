"""HoliTom: merge what stands still over a globally chosen segmentation (NeurIPS 2025)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from earlytom.checks import check_choice, check_count, check_ratio
from earlytom.errors import ConfigError, VideoError
from earlytom.method import Method, register_method
from earlytom.methods.inner_tools import merge_unseen
from earlytom.ops.cluster import density_peaks
from earlytom.ops.host import read_host
from earlytom.ops.pairwise import neighbour_cosine
from earlytom.ops.select import mask_index, top_per_frame
from earlytom.ops.tensors import to_device
from earlytom.ops.windows import Windows, merge_runs, share_out, static_windows, window_sums
from earlytom.stages import InnerMerge, InnerPoint, InnerState, TokenSelection, VideoFeatures


@register_method
@dataclass(frozen=True, kw_only=True)
class HoliTom(Method):
    """HoliTom: what stands still is merged over windows chosen for the whole video.

    Shao et al., NeurIPS 2025, arXiv 2505.21334, released as cokeshao/HoliTom@e9b2972. Outer part
    (stage II): a dynamic programme cuts the video into windows so that as many tokens as possible
    stand still. Static places are averaged over their window and then clustered; of the other
    tokens every frame keeps those that receive most attention in the last encoder layer. Inner part
    (stage III, optional): visual tokens are merged once more inside the language model.

    Differences to the released code: ``exact`` (default) keeps exactly ``max(1, ceil(r T S))``
    tokens. Rounding is shared out over windows and frames instead of accumulating, and where the
    static merge alone goes below the budget (the release then caps its ratio at 1 and keeps too
    few), windows are split at their least similar steps until the budget is used. The inner part
    takes plain means instead of ``h <- (h + source) / 2`` in a row. Under both policies: tokens
    keep temporal and raster order (a static token stands in the first frame of its window; the
    release puts all static tokens of a window first), decisions are made in float32, the random
    noise on densities is 0, videos of a call do not influence each other, the causal mask stays.
    The release's ``D > 0`` (crashes) is left out.

    Args:
        retention_ratio: see :class:`Method`. ``official`` comes close to it.
        positions: see :class:`Method`; ``auto`` is ``renumber``.
        policy: ``exact`` or ``official``.
        tau: a place stands still where the cosine to the next frame is above this; None is the
            published 0.8, or 0.65 for a ratio of 10% or less.
        beta: weight of the centre against the mean of its cluster; None is the plain mean.
        neighbours: neighbours of the density estimate.
        max_window: longest window in frames.
        inner_merge_layer: language-model layer in front of which stage III acts (published: 18 of
            28), None for never.
        inner_ratio: share of the visual tokens that stay from that layer on, in (0, 1].

    Raises:
        ConfigError: a value out of range, or no received attention.
        VideoError: NaN or infinite features; no token left (``official``, tiny ratios).
    """

    name: ClassVar[str] = "holitom"
    signals: ClassVar[tuple[str, ...]] = ("token features",)
    citation: ClassVar[str] = "Shao et al., NeurIPS 2025, arXiv 2505.21334"
    url: ClassVar[str] = "https://github.com/cokeshao/HoliTom"

    policy: str = "exact"
    tau: float | None = None
    beta: float | None = 0.6
    neighbours: int = 7
    max_window: int = 1024
    inner_merge_layer: int | None = None
    inner_ratio: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("policy", self.policy, ("exact", "official"))
        if self.tau is not None:
            check_ratio("tau", self.tau, low=-1.0, open_low=False)
        if self.beta is not None:
            check_ratio("beta", self.beta, open_low=False)
        check_ratio("inner_ratio", self.inner_ratio)
        check_count("neighbours", self.neighbours)
        check_count("max_window", self.max_window)
        if self.inner_merge_layer is not None:
            check_count("inner_merge_layer", self.inner_merge_layer)

    @property
    def exact_budget(self) -> bool:
        """Whether exactly ``token_budget(T, S)`` tokens are kept."""
        return self.policy == "exact"

    def score_layer(self, n_layers: int) -> int | None:
        """Return the last layer: its received attention ranks dynamic tokens."""
        return n_layers - 1

    def inner_points(self, n_layers: int) -> tuple[InnerPoint, ...]:
        """Return the point in front of ``inner_merge_layer``; the engine checks the depth."""
        layer = self.inner_merge_layer
        return () if layer is None else (InnerPoint(layer),)

    # ------------------------------------------------------------------ stage II
    def select_tokens(self, video: VideoFeatures) -> TokenSelection | None:
        """Merge static places and choose dynamic tokens; None keeps all (ratio 1)."""
        n, size = video.features.shape[:2]
        wanted = self.token_budget(video.state.n_input, size)
        exact = self.exact_budget
        if self.retention_ratio == 1 or (exact and wanted >= n * size):
            return None
        if video.received is None:
            raise ConfigError("holitom needs received attention, which this model does not give")
        windows, similarity = self.find_windows(video.features)
        if exact and wanted >= n * size - windows.removed:
            return TokenSelection(*merge_runs(video.features, windows.joined(), similarity, wanted))
        static, dynamic = self.counts(windows, size, wanted)
        index, values, weight = self.static_tokens(video.features, windows, static)
        rest = self.dynamic_tokens(video.received, windows, dynamic)
        if index.numel() + rest.numel() == 0:
            raise VideoError(
                f"retention_ratio={self.retention_ratio} leaves no token of {n} x {size} under "
                'policy "official"; raise it or use policy="exact"'
            )
        copied = video.features.flatten(0, 1).index_select(0, rest)
        index, order = torch.cat([index, rest]).sort()
        return TokenSelection(
            index,
            torch.cat([values, copied]).index_select(0, order),
            torch.cat([weight, torch.ones_like(rest, dtype=torch.float32)]).index_select(0, order),
        )

    def find_windows(self, features: Tensor) -> tuple[Windows, Tensor]:
        """Return the segmentation and the similarity ``[T - 1, S]`` of successive frames."""
        tau = self.tau
        if tau is None:
            tau = 0.65 if self.retention_ratio <= 0.1 else 0.8
        similarity = neighbour_cosine(features)
        still = read_host(similarity > tau, features) != 0
        return static_windows(still, self.max_window), similarity

    def counts(self, windows: Windows, size: int, wanted: int) -> tuple[list[int], list[int]]:
        """Return how many static tokens every window and dynamic tokens every frame keeps."""
        static, lengths = windows.n_static, windows.lengths
        dynamic = [size - n for n, w in zip(static, lengths, strict=True) for _ in range(w)]
        if self.policy == "official":
            rate = self.official_rate(windows, size)
            return [round(n * rate) for n in static], [math.ceil(n * rate) for n in dynamic]
        # static tokens stand in front of the frames of their window: shares follow time
        parts, first = [], 0
        for n, w in zip(static, lengths, strict=True):
            parts += [n, *dynamic[first : first + w]]
            first += w
        shares = iter(share_out(wanted, parts))
        split = [[next(shares) for _ in range(w + 1)] for w in lengths]
        return [s[0] for s in split], [n for s in split for n in s[1:]]

    def official_rate(self, windows: Windows, size: int) -> float:
        """Return the ratio as the release rescales it, in binary floats."""
        total = sum(windows.lengths) * size
        return min(self.retention_ratio / ((total - float(windows.removed)) / total), 1)

    def static_tokens(
        self, features: Tensor, windows: Windows, counts: list[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return index, values and weight of the static clusters, window by window."""
        size, device = features.shape[1], features.device
        row = to_device(windows.static.ravel().nonzero()[0], device)
        length = to_device(windows.lengths, device).index_select(0, row // size)
        rows = window_sums(features, windows.groups).flatten(0, 1).index_select(0, row)
        rows = rows / length[:, None]
        near = [min(self.neighbours, c) for c in counts]
        clusters = density_peaks(rows, windows.n_static, counts, near).in_row_order()
        if self.beta is None:
            values, members = clusters.means(rows)
        else:
            values, members = clusters.blends(rows, self.beta)
        centre = row.index_select(0, clusters.centre)
        first = to_device([a for a, _ in windows.groups], device).index_select(0, centre // size)
        weight = members * length.index_select(0, clusters.centre)
        return first * size + centre % size, values.to(features.dtype), weight

    def dynamic_tokens(self, received: Tensor, windows: Windows, counts: list[int]) -> Tensor:
        """Return the ascending index of the dynamic tokens of largest received attention."""
        static = to_device(windows.by_frame(), received.device, torch.bool)
        score = received.float().masked_fill(static, -torch.inf)
        return mask_index(top_per_frame(score, counts), sum(counts))

    # ------------------------------------------------------------------ stage III
    def merge_inner(self, state: InnerState) -> InnerMerge | None:
        """Merge the visual tokens that the last query looks at least into the others."""
        mode = "sequential" if self.policy == "official" else "mean"
        return merge_unseen(state, self.inner_ratio, mode)
