"""EarlyTom with its token budget shared out segment by segment: what can be decided as frames come.

Stage I of the policies ``official`` and ``paper`` decides from the past, with one exception: how a
segment is merged needs its end. Stage II of these policies does not: it stretches the rate of every
token by (frames of the whole clip) / (frames left of it). Here both numbers are those of one
segment.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from earlytom.errors import ConfigError
from earlytom.methods import EarlyTom
from earlytom.ops.plan import Groups
from earlytom.stages import EMBEDDINGS, TokenSelection, VideoFeatures, VideoState

POLICIES = ("official", "paper")
# the most accurate of the causal settings that were measured (docs/streaming.md)
RECOMMENDED = {"policy": "paper", "max_window": 6, "selection": "diversity"}


@dataclass(frozen=True, kw_only=True)
class CausalEarlyTom(EarlyTom):
    """EarlyTom whose stage II treats every segment of merged frames as a clip of its own.

    An ordinary method: ``with causal(method)(model): ...`` answers as a :class:`~earlytom.Stream`
    does to which the frames of the clip were pushed. Segments are those that ``decoupled``
    selection uses, also for the other selections, which then keep exactly
    ``max(1, ceil(r B S))`` tokens of a segment of ``B`` input frames (all that are left of it, if
    that is fewer): ``global``, ``diversity`` and ``uniform``.

    Raises:
        ConfigError: policy ``budget``, which counts the frames of the whole clip in stage I.
    """

    policy: str = "official"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.policy not in POLICIES:
            raise ConfigError(
                f"policy {self.policy!r} needs the whole clip; causal are: {', '.join(POLICIES)}"
            )

    def cuts_features(self, n_layers: int) -> bool:
        """Whether segments are found on the features: no frames were merged behind a layer."""
        return max(self.merge_points(n_layers), default=EMBEDDINGS) < 0

    def segments(self, x: Tensor) -> Groups:
        """Cut merged frames ``[N, S, D]`` into the segments that stage II works on."""
        return self._segment(x)

    def finish_frames(self, hidden: Tensor, state: VideoState, point: int) -> None:
        """Segment the merged frames of the last point."""
        n = state.n_layers
        assert n is not None
        if point == len(self.merge_points(n)) - 1 and not self.cuts_features(n):
            state.groups = self.segments(hidden)

    def select_tokens(self, video: VideoFeatures) -> TokenSelection | None:
        """Choose the tokens segment by segment; None keeps all."""
        size = video.features.shape[1]
        groups = video.state.groups or self.segments(video.features)
        pieces = list(pieces_of(video, groups))
        chosen = [self.select_segment(piece) for piece in pieces]
        if all(c is None for c in chosen):
            return None
        index, values, weight = [], [], []
        for (start, _), piece, choice in zip(groups, pieces, chosen, strict=True):
            tokens = piece.features.flatten(0, 1)
            if choice is None:
                choice = TokenSelection(torch.arange(len(tokens), device=tokens.device))
            index.append(choice.index + start * size)
            values.append(tokens[choice.index] if choice.features is None else choice.features)
            ones = torch.ones(choice.index.numel(), device=tokens.device)
            weight.append(ones if choice.weight is None else choice.weight)
        if not self.merge_rest:
            return TokenSelection(torch.cat(index))
        return TokenSelection(torch.cat(index), torch.cat(values), torch.cat(weight))

    def select_segment(self, piece: VideoFeatures) -> TokenSelection | None:
        """Stage II of EarlyTom on one segment, as if it were a clip."""
        return super().select_tokens(piece)


def is_causal(method: EarlyTom) -> bool:
    """Whether :func:`causal` takes it."""
    return type(method) in (EarlyTom, CausalEarlyTom) and method.policy in POLICIES


def causal(method: EarlyTom) -> CausalEarlyTom:
    """Return ``method`` with the budget of stage II per segment.

    Raises:
        ConfigError: not EarlyTom, or a policy that needs the whole clip.
    """
    if type(method) not in (EarlyTom, CausalEarlyTom):  # another class decides in its own way
        raise ConfigError(f"only EarlyTom has a causal form, not {type(method).__name__}")
    return CausalEarlyTom(**{f.name: getattr(method, f.name) for f in fields(method)})


def pieces_of(video: VideoFeatures, groups: Groups) -> Iterator[VideoFeatures]:
    """Yield the segments ``groups`` of a video, each as a video.

    The input frames of a segment are those from its first frame up to the first frame of the next
    one, frames that merging has dropped included: together all frames of the video.
    """
    state = video.state
    ends = [state.first[start] for start, _ in groups[1:]] + [state.n_input]
    for (start, stop), end in zip(groups, ends, strict=True):
        part = slice(start, stop + 1)
        yield replace(
            video,
            features=video.features[part],
            received=None if video.received is None else video.received[part],
            state=VideoState(
                end - state.first[start],
                state.first[part],
                state.count[part],
                groups=((0, stop - start),),
                n_layers=state.n_layers,
                grid=state.grid,
            ),
        )
