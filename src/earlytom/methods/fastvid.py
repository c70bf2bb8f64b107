"""FastVID: keep salient tokens, let dense ones of every segment absorb the rest (NeurIPS 2025)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from earlytom.checks import check_choice, check_count, check_ratio
from earlytom.errors import ConfigError
from earlytom.method import Method, register_method
from earlytom.ops.anchors import absorb, cut_frames
from earlytom.ops.budget import spread
from earlytom.ops.cluster import density_peaks
from earlytom.ops.host import read_host
from earlytom.ops.plan import Groups
from earlytom.ops.select import mask_index, top_per_frame
from earlytom.ops.tensors import exact, to_device
from earlytom.ops.windows import share_out
from earlytom.stages import TokenSelection, VideoFeatures


@register_method
@dataclass(frozen=True, kw_only=True)
class FastVID(Method):
    """FastVID: salient tokens of every frame, and dense tokens of a few that absorb the others.

    Shen et al., NeurIPS 2025, arXiv 2503.11187, released as LunarShen/FastVID@a40a109 (here: its
    LLaVA-OneVision version). The video is cut where frame vectors change (DySeg). Every frame keeps
    the tokens of largest attention. Of the others, those of high density and far from denser ones
    become anchors in every ``anchor_step``-th frame of a segment, counted from its end, and absorb
    the tokens of the whole segment that are most like them (STPrune).

    Signals: vector and probe attention of the encoder's attention-pooling head (SigLIP). LLaVA-
    OneVision checkpoints come without that head; then the mean of a frame's tokens and the
    attention received in the last layer stand in for it. The release loads a head from elsewhere.

    Differences to the released code: ``exact`` (default) keeps exactly ``max(1, ceil(r T S))``
    tokens (the release rounds down three times); a segment gets more anchor frames where the usual
    ones are too small for its share (the release fails); an anchor does not absorb itself or
    the others of its frame (in the release it always does, which leaves less to the rest). Under
    both policies the random noise on densities is 0, decisions are float32, videos of fewer than
    ``segments`` frames work, and videos of a call do not influence each other.

    Args:
        retention_ratio: see :class:`Method`. ``official`` keeps a little less.
        positions: see :class:`Method`; ``auto`` is ``keep``, as released.
        policy: ``exact`` or ``official``.
        segments: least number of segments (released ``c``).
        tau: frames less similar than this are cut apart.
        context_share: share of the tokens that are anchors (released ``d``), in [0, 1].
        anchor_step: every how many frames of a segment one holds anchors (released ``p``).
        beta: least weight of an anchor against what it absorbs, in [0, 1].
        neighbours: neighbours of the density estimate, the token itself included.

    Raises:
        ConfigError: a value out of range, or no attention.
        VideoError: NaN or infinite features.
    """

    name: ClassVar[str] = "fastvid"
    signals: ClassVar[tuple[str, ...]] = ("token features",)
    citation: ClassVar[str] = "Shen et al., NeurIPS 2025, arXiv 2503.11187"
    url: ClassVar[str] = "https://github.com/LunarShen/FastVID"

    policy: str = "exact"
    segments: int = 8
    tau: float = 0.9
    context_share: float = 0.4
    anchor_step: int = 4
    beta: float = 0.6
    neighbours: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("policy", self.policy, ("exact", "official"))
        for name in ("segments", "anchor_step", "neighbours"):
            check_count(name, getattr(self, name))
        check_ratio("tau", self.tau, low=-1.0, open_low=False)
        check_ratio("context_share", self.context_share, open_low=False)
        check_ratio("beta", self.beta, open_low=False)

    @property
    def exact_budget(self) -> bool:
        """Whether exactly ``token_budget(T, S)`` tokens are kept."""
        return self.policy == "exact"

    def resolved_positions(self) -> str:
        """Return ``positions``, with ``keep`` for ``auto``."""
        return "keep" if self.positions == "auto" else self.positions

    def score_layer(self, n_layers: int) -> int | None:
        """Return the last layer, whose received attention replaces a missing pooling head."""
        return n_layers - 1

    def needs_head(self) -> bool:
        """Return True: the pooling head gives frame vectors and token attention."""
        return True

    def select_tokens(self, video: VideoFeatures) -> TokenSelection | None:
        """Choose and merge the tokens of one video; None keeps all (ratio 1)."""
        x, vectors, score = video.features, video.frame_vectors, video.probe
        n, size = x.shape[:2]
        wanted = self.token_budget(video.state.n_input, size)
        if self.retention_ratio == 1 or (self.exact_budget and wanted >= n * size):
            return None
        if vectors is None:
            vectors = x.float().mean(1)
        if score is None:
            score = video.received
        if score is None:
            raise ConfigError("fastvid needs received attention, which this model does not give")
        vectors = vectors.float()
        similarity = read_host(F.cosine_similarity(vectors[:-1], vectors[1:], dim=1), x)
        groups = cut_frames(similarity, self.segments, self.tau)
        if self.exact_budget:
            salient, anchors = self.exact_counts(groups, size, wanted)
        else:
            salient, anchors = self.official_counts(groups, size, video.state.n_input)
        taken = top_per_frame(score.float(), [salient] * n)
        place = self.anchor_places(x, taken, size - salient, anchors)
        official = self.policy == "official"
        absorbed = absorb(x, taken, groups, anchors, place, self.beta, itself=official)
        copied = mask_index(taken, n * salient)
        index, order = torch.cat([copied, place]).sort()
        values = absorbed.values.to(x.dtype)
        values = torch.cat([x.flatten(0, 1).index_select(0, copied), values])
        weight = torch.cat([torch.ones_like(copied, dtype=torch.float32), absorbed.weight])
        return TokenSelection(index, values.index_select(0, order), weight.index_select(0, order))

    # ------------------------------------------------------------------ how many
    def exact_counts(
        self, groups: Groups, size: int, wanted: int
    ) -> tuple[int, list[tuple[int, int]]]:
        """Return the salient tokens of every frame, and anchor frames with their numbers."""
        lengths = [b - a + 1 for a, b in groups]
        n = sum(lengths)
        salient = min(math.ceil((1 - exact(self.context_share)) * wanted / n), wanted // n)
        room = size - salient
        anchors: list[tuple[int, int]] = []
        for (a, b), share in zip(groups, share_out(wanted - n * salient, lengths), strict=True):
            for step in range(min(self.anchor_step, b - a + 1), 0, -1):
                frames = range(b, a - 1, -step)[::-1]
                if math.ceil(share / len(frames)) <= room:
                    break  # at the latest with anchors in every frame
            anchors += zip(frames, spread(share, len(frames)), strict=True)
        return salient, anchors

    def official_counts(
        self, groups: Groups, size: int, n_input: int
    ) -> tuple[int, list[tuple[int, int]]]:
        """Return the same as released: in binary floats, rounded down per frame and segment."""
        n = groups[-1][1] + 1
        kept = max(1, int(size * min(1, self.retention_ratio * n_input / n)))
        context = int(kept * self.context_share)
        salient = kept - context
        anchors = []
        for a, b in groups:
            frames = range(b, a - 1, -self.anchor_step)[::-1]
            each = min(context * (b - a + 1) // len(frames), size - salient)
            anchors += [(t, each) for t in frames]
        return salient, anchors

    # ------------------------------------------------------------------ which
    def anchor_places(
        self, x: Tensor, taken: Tensor, room: int, anchors: list[tuple[int, int]]
    ) -> Tensor:
        """Return the place in ``T * S`` of every anchor, by anchor frame.

        Args:
            x: ``[T, S, D]``.
            taken: ``[T, S]`` bool, salient tokens; ``room`` others in every frame.
            room: see ``taken``.
            anchors: anchor frames and their numbers of anchors.
        """
        size, count = x.shape[1], [c for _, c in anchors]
        frame = to_device([t for t, _ in anchors], x.device)
        free = mask_index(~taken.index_select(0, frame), len(count) * room)
        frame = frame.index_select(0, torch.div(free, size, rounding_mode="floor"))
        place = frame * size + free % size
        rows = x.flatten(0, 1).index_select(0, place)
        sizes, near = [room] * len(count), [self.neighbours] * len(count)
        return place.index_select(0, density_peaks(rows, sizes, count, near).centre)
