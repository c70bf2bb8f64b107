"""Windows of a stream: so many frames each, encoded and compressed together as a clip of their own.

For methods that have to see all frames of what they share a budget over. The engine does it all.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from earlytom.hf.api import last_report
from earlytom.hf.engine import Controller, controller_of
from earlytom.method import Method
from earlytom.models.base import Adapter
from earlytom.ops.tensors import check_finite
from earlytom.stream.tokens import Part


@dataclass(frozen=True, eq=False)
class WindowState:
    """What waits.

    Attributes:
        frames: input frames so far.
        pixels: those of the window that is not full ``[n, 3, height, width]``, or None.
    """

    frames: int
    pixels: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        """Return all tensors."""
        return [] if self.pixels is None else [self.pixels]


class WindowEncoder:
    """Turns pixels into the tokens of full windows; all state is passed in and returned.

    Args:
        model: what holds the model.
        adapter: the model.
        method: compresses every window, or None.
        window: frames of a window.

    Raises:
        ConfigError: the method does not fit the model.
        UnsupportedModelError: the model's layout rules the method out.
    """

    def __init__(self, model: Any, adapter: Adapter, method: Method | None, window: int) -> None:
        self.model, self.adapter, self.method, self.window = model, adapter, method, window
        if method is not None:
            Controller(adapter, method)  # refuses what does not fit

    def start(self) -> WindowState:
        """Return the state before the first frame."""
        return WindowState(0)

    def push(self, state: WindowState, pixels: Tensor) -> tuple[WindowState, list[Part]]:
        """Return the state behind frames ``[n, 3, height, width]``, and the windows they fill."""
        held = pixels if state.pixels is None else torch.cat([state.pixels, pixels])
        start = state.frames + len(pixels) - len(held)
        full = len(held) // self.window
        parts = [
            self._encode(piece, start + i * self.window)
            for i, piece in enumerate(held[: full * self.window].split(self.window))
            if len(piece)
        ]
        left = held[full * self.window :]
        # a view would keep all frames alive
        waiting = left.clone() if len(left) else None
        return WindowState(state.frames + len(pixels), waiting), parts

    def rest(self, state: WindowState) -> list[Part]:
        """Return the window that is not full, as if the stream ended here."""
        if state.pixels is None:
            return []
        return [self._encode(state.pixels, state.frames - len(state.pixels))]

    def _encode(self, pixels: Tensor, start: int) -> Part:
        n, size = len(pixels), self.adapter.tokens_per_frame
        config: Any = self.adapter.inner.config
        encode: Callable[..., Any]
        with nullcontext() if self.method is None else self.method(self.model):
            encode = getattr(self.adapter.inner, self.adapter.features_name)
            output = encode(
                pixels[None],
                vision_feature_layer=config.vision_feature_layer,
                vision_feature_select_strategy=config.vision_feature_select_strategy,
                return_dict=True,
            )
            rows = self.adapter.read_features(output, [n])[0]
            bias = self._bias(n)
        tokens = rows[: n * size]
        if self.method is None:  # nothing was dropped, so NaN marks nothing
            check_finite(tokens.unflatten(0, (n, size)))
        cells = (~tokens[:, 0].isnan()).nonzero().flatten()
        part = Part(
            start=start,
            stop=start + n,
            frames=n,
            features=tokens[cells],
            cells=cells + start * size,
            bias=None if bias is None else bias.to(cells.device)[cells],
        )
        return part if self.method is None else self._reported(part)

    def _bias(self, frames: int) -> Tensor | None:
        """Log weights of the rows of a window, None if all count alike."""
        controller = controller_of(self.model)
        if controller is None or controller.vision.weights is None:
            return None
        # newlines included in all versions
        rows = self.adapter.video_placeholders(frames, self.adapter.grid)
        visual = torch.ones(1, rows, dtype=torch.bool)
        found = controller.vision.weights.of(visual, [rows], [rows])
        return None if found is None else found[0]

    def _reported(self, part: Part) -> Part:
        """Add what the engine reports: frames left, attention received by the tokens."""
        report = last_report(self.model)
        assert report is not None
        video = report.videos[0]
        score = None if video.received is None else video.received.flatten()
        if score is not None and video.index is not None:
            score = score[video.index]
        if video.patch_reductions or (score is not None and score.numel() != len(part)):
            score = None  # tokens stand for other places than attention was measured at
        return replace(part, frames=video.frames_out, score=score)
