"""What a method sees and returns at each of its stages (see docs/architecture.md)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from earlytom.ops.plan import MergePlan

Groups = tuple[tuple[int, int], ...]
EMBEDDINGS = -1  # merge point behind the patch embeddings, in front of encoder layer 0
Grid = tuple[int, int]
Shape = tuple[int, Grid]  # frames of a video, (height, width) of the tokens of each


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
        vectors: ``[frames present, dim]`` output of the attention-pooling head, or None.
        probe: ``[frames present, patches]`` float32 attention of that head's probe, or None.
        grid: (height, width) of the tokens of a frame behind the projector, None where it is not
            known.
        deep: per deepstack layer passed, its features ``[frames present, tokens, dim]``.
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
    vectors: Tensor | None = None
    probe: Tensor | None = None
    grid: Grid | None = None
    deep: list[Tensor] = field(default_factory=list)

    @classmethod
    def start(
        cls, n_input: int, n_layers: int | None = None, grid: Grid | None = None
    ) -> VideoState:
        """State of a video of ``n_input`` frames before the first encoder layer."""
        return cls(n_input, tuple(range(n_input)), (1,) * n_input, n_layers=n_layers, grid=grid)

    @property
    def n_frames(self) -> int:
        """Frames present now."""
        return len(self.first)

    @property
    def tokens_per_frame(self) -> int:
        """Tokens of a frame behind the projector; ``grid`` must be known."""
        assert self.grid is not None
        return self.grid[0] * self.grid[1]

    def apply(self, plan: MergePlan, layer: int) -> None:
        """Record ``plan`` as applied after encoder layer ``layer`` and merge the signals alike."""
        self.plans.append(plan)
        self.layers.append(layer)
        self.first = tuple(self.first[m[0]] for m in plan.members)
        self.count = tuple(sum(self.count[i] for i in m) for m in plan.members)
        for name in ("received", "keys", "vectors", "probe"):
            signal = getattr(self, name)
            if signal is not None:
                setattr(self, name, plan.apply(signal))
        self.deep = [plan.apply(x) for x in self.deep]


@dataclass
class PatchState:
    """One video inside the encoder where patch tokens are reduced; the engine owns it.

    ``n`` is the number of tokens present per frame, the same in all frames.

    Attributes:
        patches: tokens per frame at the input of the encoder.
        grid: (height, width) of the patch grid; ``height * width == patches``.
        n_layers: encoder layers whose output reaches the projector.
        wanted: tokens per frame that must be left behind the last reduction point,
            ``ceil(token budget / frames)``.
        size: ``[T, n]`` float32, input patches that each token present stands for.
        owner: ``[T, patches]`` int64, token present that each input patch belongs to, -1 none.
        layer: encoder layer of the reduction point at hand.
        point: its number (0-based index into ``reduce_layers``).
        query: ``[T, heads, n, d]`` queries of that layer, None unless ``patch_signals`` asks. In
            front of a layer (``reduce_place == "input"``) they are those of the layer before.
        key: ``[T, heads, n, d]`` keys, likewise.
        memory: scratch of the method for this video, empty at the start of a call.
    """

    patches: int
    grid: tuple[int, int]
    n_layers: int
    wanted: int
    size: Tensor
    owner: Tensor
    layer: int = -1
    point: int = -1
    query: Tensor | None = None
    key: Tensor | None = None
    memory: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def start(
        cls,
        n_frames: int,
        grid: tuple[int, int],
        n_layers: int,
        wanted: int,
        device: torch.device | None = None,
    ) -> PatchState:
        """State of a video of ``n_frames`` frames in front of the first encoder layer."""
        n = grid[0] * grid[1]
        size = torch.ones(n_frames, n, device=device)
        owner = torch.arange(n, device=device).expand(n_frames, -1)
        return cls(n, grid, n_layers, wanted, size, owner)

    @property
    def n_tokens(self) -> int:
        """Tokens present per frame."""
        return self.size.shape[1]

    def apply(self, done: PatchReduction) -> None:
        """Carry ``size`` and ``owner`` over a reduction."""
        gone = done.target < 0
        target = done.target.clamp_min(0)
        if done.size is not None:
            self.size = done.size.float()
        else:
            size = self.size.new_zeros(done.hidden.shape[:2])
            self.size = size.scatter_add(1, target, self.size.masked_fill(gone, 0.0))
        moved = done.target.gather(1, self.owner.clamp_min(0))
        self.owner = moved.masked_fill(self.owner < 0, -1)


@dataclass(frozen=True)
class PatchReduction:
    """What is left of the patch tokens of one video at a reduction point.

    Attributes:
        hidden: ``[T, m, dim]`` the tokens left, in any order.
        target: ``[T, n]`` int64, the token left that each token present went into, -1 dropped.
        size: ``[T, m]`` input patches each stands for, or None to sum the sizes by ``target``.
    """

    hidden: Tensor
    target: Tensor
    size: Tensor | None = None


@dataclass(frozen=True)
class VideoFeatures:
    """One video between projector and language model: what stage II (token selection) sees.

    Attributes:
        features: ``[frames, tokens, dim]`` after projector and pooling, newline tokens excluded.
        received: ``[frames, tokens]`` float32 received attention pooled alike, or None.
        grid: (height, width) of the token grid of a frame; ``height * width == tokens``.
        state: what happened in the encoder.
        keys: ``[frames, tokens, head dim]`` head-mean keys pooled alike, or None.
        frame_vectors: ``[frames, dim]`` output of the encoder's attention-pooling head, or None
            (not asked for, or the encoder has none).
        probe: ``[frames, tokens]`` float32 attention of that head's probe pooled alike, or None.
    """

    features: Tensor
    received: Tensor | None
    grid: tuple[int, int]
    state: VideoState
    keys: Tensor | None = None
    frame_vectors: Tensor | None = None
    probe: Tensor | None = None


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
class InnerPoint:
    """A place inside the language model where stage III acts, during prefill only.

    Attributes:
        layer: decoder layer (0-based).
        attention: the attention that ``InnerState`` shows there: ``none``, ``previous`` (of layer
            ``layer - 1``) or ``own`` (of ``layer``; in front of the layer its norm, projections and
            rotary embedding are applied to its input, without running it).
        after_attention: False: in front of ``layer``, whose attention sees the columns left; True:
            between its attention and its MLP, so the layer still enters with all columns.
    """

    layer: int
    attention: str = "previous"
    after_attention: bool = False


@dataclass(frozen=True)
class InnerState:
    """One sequence (padding removed) at one point inside the language model.

    Attributes:
        point: number of the point, -1 for the embeddings in front of layer 0.
        layer: decoder layer of the point.
        n_layers: depth of the language model.
        hidden: ``[n, dim]``; only the columns of this forward, also on a filled cache.
        visual: ``[n]`` bool, video tokens, newline tokens of a video included.
        attention: ``[heads, q, n]`` float32 causal softmax rows of the asked queries, or None.
            What the queries give to columns of earlier turns is left out.
        frame: ``[n]`` int64 frame slot of every video token, running over all videos of the
            sequence; -1 elsewhere (newline tokens included).
        patch: ``[n]`` int64 index in the token grid of its frame; -1 not visual, -2 newline token.
        entered: visual tokens with which the sequence entered layer 0, newline tokens not counted.
        uncompressed: visual tokens that the uncompressed model would have fed, counted alike.
        memory: scratch of this sequence, alive from the embeddings to the last point.
        n_visual: number of True in ``visual``; negative: counted here (synchronises with the host).
        n_tokens: number of columns with ``patch >= 0``; negative: counted here.
        rotary: cos and sin ``[n, head dim]`` of the columns' positions, or None where the model has
            no one-dimensional rotary embedding.
    """

    point: int
    layer: int
    n_layers: int
    hidden: Tensor
    visual: Tensor
    attention: Tensor | None
    frame: Tensor
    patch: Tensor
    entered: int
    uncompressed: int
    memory: dict[str, Any] = field(default_factory=dict)
    n_visual: int = -1
    n_tokens: int = -1
    rotary: tuple[Tensor, Tensor] | None = None

    def __post_init__(self) -> None:
        if self.n_visual < 0:
            object.__setattr__(self, "n_visual", int(self.visual.sum()))
        if self.n_tokens < 0:
            object.__setattr__(self, "n_tokens", int((self.patch >= 0).sum()))


@dataclass(frozen=True)
class InnerMerge:
    """Stage III for one sequence.

    Attributes:
        index: ``[m]`` int64 ascending, columns that stay; all columns that are not visual must.
        hidden: ``[m, dim]`` their new hidden states, or None to copy.
    """

    index: Tensor
    hidden: Tensor | None = None
