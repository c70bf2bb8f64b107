"""One video on its way through a vision encoder of vLLM: stages I and II, and an exact count."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from earlytom.errors import BudgetError, EarlyTomError
from earlytom.hf.positions import positions_of
from earlytom.hf.reuse import FreshPatches
from earlytom.integrations.vllm import metrics
from earlytom.integrations.vllm.item import VideoItem
from earlytom.integrations.vllm.ranks import Ranks
from earlytom.integrations.vllm.settings import with_ratio
from earlytom.method import Method
from earlytom.models.base import Adapter
from earlytom.ops.received import received_attention
from earlytom.ops.select import evenly
from earlytom.ops.tensors import to_device
from earlytom.running import frame_slots, merge_video, select_video, token_cells
from earlytom.stages import TokenSelection, VideoState

logger = logging.getLogger(__name__)


class VideoRun:
    """What a tower asks while it encodes one video.

    Args:
        method: runs on the video; None: nothing is merged or measured.
        item: the video.
        n_layers: layers of the encoder.
        ranks: who decides.
    """

    def __init__(self, method: Method | None, item: VideoItem, n_layers: int, ranks: Ranks) -> None:
        self.method = method
        self.item = item
        self.ranks = ranks
        self.n_layers = n_layers
        self.state = VideoState.start(item.frames, n_layers, item.grid)
        self.points = () if method is None else method.merge_points(n_layers)
        self.score_layer = None if method is None else method.score_layer(n_layers)
        self.reuse_layer = None if method is None else method.reuse_layer(n_layers)
        self.fresh: FreshPatches | None = None

    def after_layer(self, layer: int, hidden: Tensor) -> Tensor:
        """Merge the frames of ``[frames, patches, dim]`` if it is time; -1: patch embeddings."""
        if self.method is None or layer not in self.points:
            return hidden
        point = self.points.index(layer)
        return merge_video(self.method, hidden, self.state, point, layer, agree=self.ranks.agree)

    def watch(self, query: Tensor, key: Tensor, scale: float) -> None:
        """Take over the attention of the score layer, ``[frames, heads, patches, d]``."""
        self.measured(received_attention(query, key, scale), key.mean(1))

    def measured(self, received: Tensor, keys: Tensor) -> None:
        """Note received attention ``[frames, patches]`` and mean keys of this rank's heads."""
        assert self.method is not None
        self.state.received = self.ranks.mean(received)
        if self.method.needs_keys():
            self.state.keys = self.ranks.mean(keys)

    def pack(self, hidden: Tensor) -> Tensor:
        """Leave ``[frames, patches, dim]`` the patches that are computed, ``[1, fresh, dim]``."""
        method = self.method
        assert method is not None
        fresh = self.ranks.agree(
            lambda: method.fresh_patches(hidden.detach(), self.n_layers), hidden.device
        )
        self.fresh = FreshPatches.build(fresh)
        return self.fresh.pack(hidden, fresh)


@dataclass(frozen=True)
class Encoded:
    """What goes on to the language model.

    Attributes:
        rows: ``[tokens, dim]``.
        cells: ``[tokens]`` int64 ascending, place of every token among ``frames * size`` ones.
    """

    rows: Tensor
    cells: Tensor


class Encoder:
    """Encodes videos into as many tokens as their placeholders say.

    Args:
        adapter: the vLLM model, seen through the names of its family.
        method: of the server.
        n_layers: layers of its vision encoder.
        encode: runs the tower on the pixels of one video up to features
            ``[frames left, tokens, dim]``, asking a :class:`VideoRun` on its way.
        ranks: who decides.
        counting: whether what is encoded now counts (see :mod:`.metrics`).
    """

    def __init__(
        self,
        adapter: Adapter,
        method: Method,
        n_layers: int,
        encode: Callable[[Tensor, VideoRun], Tensor],
        ranks: Ranks,
        counting: Callable[[], bool] = lambda: True,
    ) -> None:
        self.adapter = adapter
        self.method = method
        self.n_layers = n_layers
        self.positions = positions_of(adapter, method)
        self._encode = encode
        self._ranks = ranks
        self._counting = counting

    def __call__(self, pixels: Tensor, item: VideoItem) -> Encoded:
        """Encode one video.

        A method that fails on a video (values that are not finite, say) must not take the server
        down with it: such a video is encoded whole and keeps evenly spread tokens. The error is
        logged and counted.
        """
        start = time.perf_counter()
        method = with_ratio(self.method, item.ratio)
        run = VideoRun(method, item, self.n_layers, self._ranks)
        try:
            done = self._run(pixels, run)
        except EarlyTomError as e:
            logger.error("%s failed on a video and keeps evenly spread tokens: %s", method.name, e)
            run = VideoRun(None, item, self.n_layers, self._ranks)
            done = self._evenly(pixels, run)
            if self._ranks.first:
                metrics.failed(method.name)
        if self._ranks.first and self._counting():
            frames = run.state.n_frames
            metrics.encoded(method.name, item, frames, time.perf_counter() - start)
        return done

    def _run(self, pixels: Tensor, run: VideoRun) -> Encoded:
        method, item, state, adapter = run.method, run.item, run.state, self.adapter
        assert method is not None
        features = self._encode(pixels, run)
        device = features.device
        slots = to_device(frame_slots(state, self.positions), device)

        def choose() -> TokenSelection:
            chosen, _ = select_video(
                method, features.detach(), state, lambda x: adapter.pool_video(x, item.grid)
            )
            if chosen is None:
                chosen = TokenSelection(torch.arange(state.n_frames * item.size, device=device))
            if chosen.index.numel() != item.tokens:
                raise BudgetError(
                    f"{method.name} chose {chosen.index.numel()} tokens of a video where "
                    f"{item.tokens} were announced"
                )
            return chosen

        chosen = self._ranks.agree(choose, device)
        return _taken(features, chosen, slots, item)

    def _evenly(self, pixels: Tensor, run: VideoRun) -> Encoded:
        features, item = self._encode(pixels, run), run.item
        index = evenly(item.frames * item.size, item.tokens, features.device)
        slots = torch.arange(item.frames, device=features.device)
        return _taken(features, TokenSelection(index), slots, item)


def _taken(features: Tensor, chosen: TokenSelection, slots: Tensor, item: VideoItem) -> Encoded:
    rows = chosen.features
    if rows is None:
        rows = features.flatten(0, 1).index_select(0, chosen.index.to(features.device))
    return Encoded(rows.to(features.dtype), token_cells(chosen.index, slots, item.size))
