"""DyCoke: drop tokens that repeat those of a neighbouring frame (CVPR 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from earlytom.checks import check_choice, check_count, check_ratio
from earlytom.errors import ConfigError
from earlytom.method import Method, register_method
from earlytom.ops.budget import spread
from earlytom.ops.pairwise import decode_step, least_similar
from earlytom.ops.select import evenly
from earlytom.ops.tensors import ceil_div, check_finite, exact
from earlytom.stages import TokenSelection, VideoFeatures

WINDOW = 4


@register_method
@dataclass(frozen=True, kw_only=True)
class DyCoke(Method):
    """DyCoke: tokens that repeat a neighbouring frame go; decode steps see few of the others.

    Tao et al., CVPR 2025, arXiv 2411.15024, released as KD-TAO/DyCoke@dd74634. In windows of 4
    frames the first frame stays whole; of frames 1, 2, 3 the tokens stay that are least similar to
    the token at the same place of frame 0, 0, 2. Nothing is averaged.

    Differences to the released code: ``exact`` (default) treats all windows alike and keeps exactly
    ``max(1, ceil(r T S))`` tokens. Below a quarter, where the released rule has nothing left to
    drop, the first frames of the windows are pruned too: against the first frame one window
    earlier, evenly for the very first (ours). ``official`` reproduces the release: frame 2 of the
    last window is not pruned and an odd last frame is lost. Under both policies tokens keep raster
    order (released: ascending similarity inside a frame) and videos of 4 frames or fewer work
    (released: crash).

    Dynamic pruning while decoding (``decode_ratio``, off by default): in every decode step the
    layers from ``decode_from`` on see only the visual tokens that the newest token looks at most
    one layer earlier. They are chosen anew when that attention changes. ``exact`` reads the tokens
    chosen last in all steps between (the paper); ``official`` reads the whole cache in them. The
    cache stays whole, so memory is not saved; the release gathers keys and values in every step,
    here a mask hides them. The last visual token counts as visual (released: as text), and every
    sequence has its own memory (released: one for the whole program).

    Args:
        retention_ratio: see :class:`Method`. ``official`` derives ``merge_ratio`` from it as if
            all windows were treated, and keeps a few per cent more.
        positions: see :class:`Method`; ``auto`` is ``renumber``.
        policy: ``exact`` or ``official``.
        merge_ratio: (official) the released ``k``: share of tokens dropped in a pruned frame
            (published: 0.7); None is ``4 / 3 (1 - retention_ratio)``.
        decode_ratio: share of the visual tokens that decode steps see from layer ``decode_from`` on
            (published: 0.3 or 0.2), None for all.
        decode_from: first such layer, at least 1.
        threshold: tokens are chosen anew if the cosine of the attention with that of the step
            before is below this.

    Raises:
        ConfigError: a value out of range; under ``official`` a ratio below 0.25.
        VideoError: NaN or infinite features.
    """

    name: ClassVar[str] = "dycoke"
    signals: ClassVar[tuple[str, ...]] = ("token features",)
    citation: ClassVar[str] = "Tao et al., CVPR 2025, arXiv 2411.15024"
    url: ClassVar[str] = "https://github.com/KD-TAO/DyCoke"

    policy: str = "exact"
    merge_ratio: float | None = None
    decode_ratio: float | None = None
    decode_from: int = 3
    threshold: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("policy", self.policy, ("exact", "official"))
        check_count("decode_from", self.decode_from)
        check_ratio("threshold", self.threshold, open_low=False)
        if self.decode_ratio is not None:
            check_ratio("decode_ratio", self.decode_ratio)
        if self.merge_ratio is not None:
            check_ratio("merge_ratio", self.merge_ratio, open_low=False)
            if self.policy != "official":
                raise ConfigError('merge_ratio has no meaning under policy "exact"; leave it out')
        elif self.policy == "official" and self.retention_ratio < 0.25:
            raise ConfigError(
                "policy 'official' keeps one frame of four: retention_ratio must be at least 0.25, "
                f"got {self.retention_ratio}; use policy='exact' for less"
            )

    @property
    def exact_budget(self) -> bool:
        """Whether exactly ``token_budget(T, S)`` tokens are kept."""
        return self.policy == "exact"

    def select_tokens(self, video: VideoFeatures) -> TokenSelection | None:
        """Choose the tokens of one video; None keeps all (ratio 1, a single frame as released)."""
        n, size = video.features.shape[:2]
        wanted = self.token_budget(video.state.n_input, size)
        plain = None
        if self.policy == "official":
            if self.retention_ratio == 1 or n == 1:
                return None
            reference, counts = self.official_counts(n, size)
        else:
            if wanted >= n * size:
                return None
            reference, counts = exact_counts(n, size, wanted)
            first = evenly(size, counts[0], video.features.device)
            plain = torch.ones(size, device=first.device).index_fill(0, first, 0)
            plain = plain.sort(stable=True).indices
        check_finite(video.features)
        return TokenSelection(least_similar(video.features, reference, counts, plain).sort().values)

    def official_counts(self, n: int, size: int) -> tuple[list[int | None], list[int]]:
        """Return the reference of every frame and how many tokens it keeps, as released."""
        k = self.merge_ratio
        if k is None:
            k = 4 / 3 * (1 - self.retention_ratio)
        kept = int((1 - k) * size)
        reference: list[int | None] = [None] * n
        counts = [size] * n
        reference[1::2] = range(0, n - 1, 2)
        counts[1::2] = [kept] * (n // 2)
        for t in range(0, n - WINDOW, WINDOW):
            reference[t + 2], counts[t + 2] = t, kept
        if n % 2:
            counts[-1] = 0
        return reference, counts

    # ------------------------------------------------------------------ decoding
    def decode_layer(self, n_layers: int) -> int | None:
        """Return ``decode_from`` if a ``decode_ratio`` below 1 is set; the engine checks it."""
        return None if self.decode_ratio in (None, 1) else self.decode_from

    def decode_keep(self, last_row: Tensor, memory: dict[str, Any]) -> Tensor | None:
        """Choose the visual columns ``[n_visual]`` that this step may see."""
        if self.decode_ratio is None:
            return None
        n = last_row.shape[1]
        before, kept = memory.get("dycoke", (None, None))
        if before is not None and before.numel() != n:  # a second turn has brought another video
            before = kept = None
        least = max(1, int(exact(self.decode_ratio) * n)) if self.policy == "exact" else 0
        keep, attention, similarity = decode_step(
            last_row, before, 0, n, 1 - self.decode_ratio, self.threshold, least
        )
        if least and kept is not None:
            keep = torch.where(similarity < self.threshold, keep, kept)
        memory["dycoke"] = attention, keep
        return keep


def exact_counts(n: int, size: int, wanted: int) -> tuple[list[int | None], list[int]]:
    """Return the reference of every frame and how many tokens it keeps, ``wanted`` in total."""
    back = (WINDOW, 1, 2, 1)
    reference = [t - back[t % WINDOW] if t else None for t in range(n)]
    whole = ceil_div(n, WINDOW)
    leading = min(wanted, whole * size)
    shares = iter(spread(leading, whole))
    others = iter(spread(wanted - leading, n - whole)) if n > whole else iter(())
    counts = [next(others if t % WINDOW else shares) for t in range(n)]
    return reference, counts
