"""What a method sees and returns at each of its stages (see docs/architecture.md)."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from earlytom.ops.plan import MergePlan

Groups = tuple[tuple[int, int], ...]


@dataclass
class VideoState:
    """One video on its way through the vision encoder; the engine owns and updates it.

    Attributes:
        n_input: frames given to the encoder.
        first: for every frame present, the input frame whose place it keeps.
        count: for every frame present, how many input frames it stands for.
        plans: the merge plan of every merge point passed so far.
        layers: the encoder layer after which each of those plans was applied.
        groups: inclusive segments of the frames present (what stage II decouples), or ``()``.
        received: attention received per patch ``[frames present, patches]`` float32, or None.
        keys: head-mean attention keys ``[frames present, patches, head dim]`` of the score layer,
            or None.
        n_layers: depth of the encoder, None where it is not known.
    """

    n_input: int
    first: tuple[int, ...]
    count: tuple[int, ...]
    plans: list[MergePlan] = field(default_factory=list)
    layers: list[int] = field(default_factory=list)
    groups: Groups = ()
    received: Tensor | None = None
    keys: Tensor | None = None
    n_layers: int | None = None

    @classmethod
    def start(cls, n_input: int, n_layers: int | None = None) -> VideoState:
        """State of a video of ``n_input`` frames before the first encoder layer."""
        return cls(n_input, tuple(range(n_input)), (1,) * n_input, n_layers=n_layers)

    @property
    def n_frames(self) -> int:
        """Frames present now."""
        return len(self.first)

    def apply(self, plan: MergePlan, layer: int) -> None:
        """Record ``plan`` as applied after encoder layer ``layer`` and merge the signals alike."""
        self.plans.append(plan)
        self.layers.append(layer)
        self.first = tuple(self.first[m[0]] for m in plan.members)
        self.count = tuple(sum(self.count[i] for i in m) for m in plan.members)
        if self.received is not None:
            self.received = plan.apply(self.received)
        if self.keys is not None:
            self.keys = plan.apply(self.keys)


@dataclass(frozen=True)
class VideoFeatures:
    """One video between projector and language model: what stage II (token selection) sees.

    Attributes:
        features: ``[frames, tokens, dim]`` after projector and pooling, newline tokens excluded.
        received: ``[frames, tokens]`` float32 received attention pooled alike, or None.
        grid: (height, width) of the token grid of a frame; ``height * width == tokens``.
        state: what happened in the encoder.
        keys: ``[frames, tokens, head dim]`` head-mean keys pooled alike, or None.
    """

    features: Tensor
    received: Tensor | None
    grid: tuple[int, int]
    state: VideoState
    keys: Tensor | None = None


@dataclass(frozen=True)
class TokenSelection:
    """The tokens of one video that go on to the language model.

    Attributes:
        index: ``[k]`` int64, strictly ascending indices into ``frames * tokens`` (frame-major).
        features: ``[k, dim]`` replacement values (merged tokens), or None to copy the selected.
        weight: ``[k]`` float32, how many tokens of ``VideoFeatures`` each stands for, or None.
    """

    index: Tensor
    features: Tensor | None = None
    weight: Tensor | None = None


@dataclass(frozen=True)
class InnerMerge:
    """Stage III for one sequence.

    Attributes:
        index: ``[m]`` int64 ascending, columns of the sequence that stay.
        hidden: ``[m, dim]`` their new hidden states, or None to copy.
    """

    index: Tensor
    hidden: Tensor | None = None
