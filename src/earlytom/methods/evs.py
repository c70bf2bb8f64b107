"""EVS: keep what changed since the frame before (NVIDIA, in vLLM)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from earlytom.checks import check_choice
from earlytom.method import Method, register_method
from earlytom.ops.change import change_since_last_frame
from earlytom.ops.lattice import lattice
from earlytom.ops.select import mask_index, top_of_video
from earlytom.ops.tensors import check_finite, exact, to_device
from earlytom.stages import TokenSelection, VideoFeatures


@register_method
@dataclass(frozen=True, kw_only=True)
class EVS(Method):
    """Efficient Video Sampling: the first frame, then the tokens that changed most.

    Bagrov et al., arXiv 2510.14624; released in vllm-project/vllm@v0.32.0 as
    ``multimodal/video_prune/evs.py`` (``--video-pruning-rate q``; here
    ``q = 1 - retention_ratio``). Tokens are ranked over the whole video by ``1 - cos`` to the token
    at their place one frame earlier. The paper compares pixels; its code, and so this method,
    compares features behind the projector.

    ``official`` keeps ``max(S, int(T S (1 - q)))`` tokens in binary floats: never less than one
    frame, at times one token less than asked for. ``exact`` keeps ``max(1, ceil(r T S))``; a budget
    below one frame takes evenly spaced patches of the first frame, where the official ranking (all
    tokens of the first frame tie) would take its upper rows. Both decide in float32; vLLM decides
    in the dtype of the model and rounds positions above 256 to it.

    Drift that is slow from frame to frame stays invisible, and a still frame may keep no token.

    Args:
        retention_ratio: see :class:`Method`.
        positions: see :class:`Method`; ``auto`` is ``keep``, as in vLLM.
        policy: ``exact`` or ``official``.

    Raises:
        ConfigError: a value out of range.
    """

    name: ClassVar[str] = "evs"
    signals: ClassVar[tuple[str, ...]] = ("token features",)
    citation: ClassVar[str] = "Bagrov et al., 2025, arXiv 2510.14624"
    url: ClassVar[str] = "https://github.com/vllm-project/vllm"

    policy: str = "exact"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("policy", self.policy, ("exact", "official"))

    @property
    def exact_budget(self) -> bool:
        """Whether exactly ``token_budget(T, S)`` tokens are kept."""
        return self.policy == "exact"

    def resolved_positions(self) -> str:
        """Return ``positions`` with ``auto`` replaced by ``keep``."""
        return "keep" if self.positions == "auto" else self.positions

    def select_tokens(self, video: VideoFeatures) -> TokenSelection | None:
        """Choose the tokens of one video; None keeps all.

        Raises:
            VideoError: NaN or infinite features.
        """
        n, size = video.features.shape[:2]
        if self.policy == "official":
            wanted = max(size, int(video.state.n_input * size * kept_share(self.retention_ratio)))
        else:
            wanted = self.token_budget(video.state.n_input, size)
        if wanted >= n * size:
            return None
        check_finite(video.features)
        if wanted < size:
            return TokenSelection(to_device(lattice(video.grid, wanted), video.features.device))
        change = change_since_last_frame(video.features)
        return TokenSelection(mask_index(top_of_video(change, wanted), wanted))


def kept_share(retention_ratio: float) -> float:
    """Return ``1 - q`` as vLLM computes it from the pruning rate ``q`` that a user wrote."""
    return 1 - float(1 - exact(retention_ratio))
