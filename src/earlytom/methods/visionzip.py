"""VisionZip: dominant tokens by attention, the rest merged into contextual ones (CVPR 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from earlytom.checks import check_choice, check_ratio
from earlytom.errors import ConfigError
from earlytom.method import Method, register_method
from earlytom.ops.budget import spread
from earlytom.ops.contextual import zip_frames
from earlytom.ops.tensors import check_finite, exact
from earlytom.stages import TokenSelection, VideoFeatures

# the published SPATIAL_TOKENS of 14 x 14 tokens: 50, 40, 30, 20 for 25, 20, 15, 10 %
_PUBLISHED = Fraction(200, 196)


@register_method
@dataclass(frozen=True, kw_only=True)
class VisionZip(Method):
    """VisionZip for encoders without CLS token: dominant and contextual tokens of every frame.

    Yang et al., CVPR 2025, arXiv 2412.04467, dvlab-research/VisionZip@3151f6d, in the adaptation to
    SigLIP and LLaVA-OneVision of cokeshao/HoliTom@e9b2972 (``visionzip/``). Per frame, the tokens
    that received most attention in the last encoder layer are dominant. Of the others, evenly
    spaced ones are targets, and each other token joins the target of most similar key. The
    original for CLIP is the same operator with the attention of the CLS token
    (:func:`earlytom.ops.contextual.zip_frames`).

    Differences between the policies:

    * counts: ``official`` keeps the published number of tokens of a frame, ``200 r`` at 14 x 14
      tokens (25.5 % instead of 25 %) and in proportion elsewhere; ``exact`` keeps
      ``max(1, ceil(r T S))`` tokens of the video, frames differing by at most one.
    * merged tokens: ``official`` adds the mean of the joined tokens to the target, as released;
      ``exact`` averages all members, as the paper says.

    Under both, a contextual token stands where its target stood; the adaptation appends them to the
    dominant tokens of their frame. The misplaced rows and newlines of its "grid" layout
    (LLaVA-Video) are not reproduced.

    Args:
        retention_ratio: see :class:`Method`.
        positions: see :class:`Method`; ``auto`` is ``renumber``.
        policy: ``exact`` or ``official``.
        dominant_ratio: share of a frame's kept tokens that are dominant (rounded down), in [0, 1].

    Raises:
        ConfigError: a value out of range.
    """

    name: ClassVar[str] = "visionzip"
    citation: ClassVar[str] = "Yang et al., CVPR 2025, arXiv 2412.04467"
    url: ClassVar[str] = "https://github.com/dvlab-research/VisionZip"

    policy: str = "exact"
    dominant_ratio: float = 54 / 64

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("policy", self.policy, ("exact", "official"))
        check_ratio("dominant_ratio", self.dominant_ratio, open_low=False)

    @property
    def exact_budget(self) -> bool:
        """Whether exactly ``token_budget(T, S)`` tokens are kept."""
        return self.policy == "exact"

    def score_layer(self, n_layers: int) -> int:
        """Return the last layer."""
        return n_layers - 1

    def needs_keys(self) -> bool:
        """Return True: tokens are alike if their keys are."""
        return True

    def split(
        self, n_frames: int, tokens_per_frame: int, n_input: int | None = None
    ) -> list[tuple[int, int]]:
        """Return the numbers of dominant and contextual tokens of every frame.

        Args:
            n_frames: frames present.
            tokens_per_frame: tokens ``S`` of a frame after pooling.
            n_input: frames of the video, more than ``n_frames`` if some were merged.
        """
        n_input = n_frames if n_input is None else n_input
        if self.policy == "official":
            share = exact(self.retention_ratio) * n_input / n_frames
            kept = round(share * _PUBLISHED * tokens_per_frame)
            counts = (min(max(1, kept), tokens_per_frame),) * n_frames
        else:
            wanted = self.token_budget(n_input, tokens_per_frame)
            counts = spread(min(wanted, n_frames * tokens_per_frame), n_frames)
        dominant = [int(exact(self.dominant_ratio) * k) for k in counts]
        return [(d, k - d) for d, k in zip(dominant, counts, strict=True)]

    def select_tokens(self, video: VideoFeatures) -> TokenSelection | None:
        """Choose and merge the tokens of one video; None keeps all.

        Raises:
            VideoError: NaN or infinite features.
            ConfigError: attention or keys were not measured.
        """
        n, size = video.features.shape[:2]
        counts = self.split(n, size, video.state.n_input)
        if self.retention_ratio == 1 or all(d + c == size for d, c in counts):
            return None
        if video.received is None or video.keys is None:
            raise ConfigError(
                "visionzip needs received attention and keys, which were not measured for this "
                "model; methods without them: evs, vidcom2"
            )
        check_finite(video.features)
        dominant, contextual = zip(*counts, strict=True)
        zipped = zip_frames(
            video.features,
            video.received,
            video.keys,
            dominant,
            contextual,
            average=self.policy == "exact",
        )
        return TokenSelection(zipped.index, zipped.features, zipped.weight)
