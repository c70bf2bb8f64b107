"""VidCom2: more tokens for frames that are unlike the rest of the video (EMNLP 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from earlytom.checks import check_choice
from earlytom.method import Method, register_method
from earlytom.methods.evs import kept_share
from earlytom.ops.tensors import check_finite
from earlytom.ops.uniqueness import frame_budgets, least_typical, settle, typicality
from earlytom.stages import TokenSelection, VideoFeatures


@register_method
@dataclass(frozen=True, kw_only=True)
class VidCom2(Method):
    """Video Compression Commander: tokens unlike their frame, more of them from unusual frames.

    Liu et al., EMNLP 2025, arXiv 2505.14454; xuyang-liu16/VidCom2@944a17d and
    vllm-project/vllm@v0.32.0 ``multimodal/video_prune/vidcom2.py``. Every frame gets a budget by
    how unlike the video's centre it is, and keeps the tokens least similar to the centres of frame
    and video.

    Policies differ in the count only:

    * ``official`` (reference repository): the rounded budgets of the frames, so the total is only
      close to the one asked for (24.8 % instead of 25 % if one frame stands out).
    * ``vllm``: repaired to exactly ``max(T, int(T S (1 - q)))`` with ``q = 1 - retention_ratio``:
      the most similar kept tokens go, or the least similar others come back.
    * ``exact``: the same repair to ``max(1, ceil(r T S))``, so a frame may keep no token.

    Scores are float32 whatever the model's dtype; equal scores go to the lowest index (undefined in
    the official code). For LLaVA-Video the official code puts the newline tokens of a frame behind
    its video tokens; here the engine keeps them where the layout has them.

    Args:
        retention_ratio: see :class:`Method` (official ``R_RATIO``).
        positions: see :class:`Method`; ``auto`` is ``keep`` for ``vllm``, else ``renumber``.
        policy: ``exact``, ``official`` or ``vllm``.

    Raises:
        ConfigError: a value out of range.
    """

    name: ClassVar[str] = "vidcom2"
    signals: ClassVar[tuple[str, ...]] = ("token features",)
    citation: ClassVar[str] = "Liu et al., EMNLP 2025, arXiv 2505.14454"
    url: ClassVar[str] = "https://github.com/xuyang-liu16/VidCom2"

    policy: str = "exact"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("policy", self.policy, ("exact", "official", "vllm"))

    @property
    def exact_budget(self) -> bool:
        """Whether exactly ``token_budget(T, S)`` tokens are kept."""
        return self.policy == "exact"

    def resolved_positions(self) -> str:
        """Return ``positions`` with ``auto`` replaced by the policy's own default."""
        if self.positions != "auto":
            return self.positions
        return "keep" if self.policy == "vllm" else "renumber"

    def select_tokens(self, video: VideoFeatures) -> TokenSelection | None:
        """Choose the tokens of one video; None keeps all.

        Raises:
            VideoError: NaN or infinite features.
        """
        n, size = video.features.shape[:2]
        n_input, share = video.state.n_input, self.retention_ratio
        if self.policy == "vllm":
            share = kept_share(share)
            wanted = max(n, int(n_input * size * share))
        else:
            wanted = self.token_budget(n_input, size)
        if self.retention_ratio == 1 or (self.policy != "official" and wanted >= n * size):
            return None
        check_finite(video.features)
        in_video, in_frame = typicality(video.features)
        similar = in_video + in_frame
        mask = least_typical(similar, frame_budgets(in_video, min(1.0, share * n_input / n)))
        if self.policy == "official":
            # the count depends on the video: the host has to read it
            return TokenSelection(mask.flatten().nonzero().flatten())
        return TokenSelection(settle(mask, similar, wanted))
