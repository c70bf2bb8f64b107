"""Wall-clock timing of one ``generate`` call at the model's own module boundaries."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from types import TracebackType
from typing import Any

import torch
from torch import nn
from transformers import TextStreamer

from earlytom.models import find_adapter


@dataclass(frozen=True)
class Timings:
    """Seconds of wall clock, each read after the device has finished its work.

    Attributes:
        decode: reading and decoding the sampled frames; None if frames were given.
        preprocess: resize, normalise, tokenise, copy to the device.
        vision: vision encoder, frame merging inside it included.
        tokens: from the end of the vision encoder to the start of the language model: projector,
            pooling, token selection and assembly of the prompt.
        prefill: language model over the whole prompt.
        ttft: from the call with decoded frames to the first new token id on the host
            (preprocessing included, decoding of the file not).
        decode_tokens_per_s: new tokens per second after the first; None for a single token.
        total: from the call to the end of the answer, ``decode`` included.
    """

    decode: float | None
    preprocess: float
    vision: float
    tokens: float
    prefill: float
    ttft: float
    decode_tokens_per_s: float | None
    total: float

    def to_dict(self) -> dict[str, float | None]:
        """Return the fields as JSON-ready data."""
        return dataclasses.asdict(self)


class StageClock:
    """Marks when a model enters and leaves its vision encoder and its language model.

    Use as ``with StageClock(model) as clock: model.generate(...)``. It lives in forward hooks of
    two module instances, which are removed on exit. Install it after a compression method, so that
    the method's own work is counted in the stage where it happens. On CUDA every mark waits for
    the device (four times per call, in prefill only).

    Attributes:
        vision: seconds in the vision encoder.
        tokens: seconds from its end to the start of the language model.
        prefill: seconds of the first language-model call that follows.
        prompt_length: columns that entered the language model there.

    Raises:
        UnsupportedModelError: not a video model of a known family.
    """

    def __init__(self, model: Any) -> None:
        adapter = find_adapter(model)
        self._tower: nn.Module = adapter.tower
        self._language: nn.Module = adapter.language_model
        self._device = next(adapter.inner.parameters()).device
        self._hooks: list[Any] = []
        self._start = self._vision_end = 0.0
        self._done = False
        self.vision = self.tokens = self.prefill = 0.0
        self.prompt_length = 0

    def __enter__(self) -> StageClock:
        tower, language = self._tower, self._language
        self._hooks = [
            tower.register_forward_pre_hook(self._enter_vision, with_kwargs=True),
            tower.register_forward_hook(self._leave_vision),
            language.register_forward_pre_hook(self._enter_language, with_kwargs=True),
            language.register_forward_hook(self._leave_language),
        ]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def now(self) -> float:
        """Wait for the device and return the time."""
        return now(self._device)

    # ------------------------------------------------------------------ hooks
    def _enter_vision(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if not self._done:
            self._start = self.now()

    def _leave_vision(self, module: nn.Module, args: Any, output: Any) -> None:
        if not self._done:
            self._vision_end = self.now()
            self.vision += self._vision_end - self._start

    def _enter_language(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if self._done:
            return
        self._start = self.now()
        if self._vision_end:
            self.tokens = self._start - self._vision_end
        embeds = kwargs.get("inputs_embeds")
        if isinstance(embeds, torch.Tensor):
            self.prompt_length = int(embeds.shape[1])

    def _leave_language(self, module: nn.Module, args: Any, output: Any) -> None:
        if not self._done:
            self.prefill = self.now() - self._start
            self._done = True


class TokenClock(TextStreamer):
    """A streamer that notes when every new token id reaches the host and passes text on.

    Attributes:
        times: seconds (``perf_counter``) at which each new token arrived.
        ids: the new token ids.
    """

    def __init__(self, tokenizer: Any, callback: Callable[[str], None] | None = None) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._callback = callback
        self._prompt_seen = False
        self.times: list[float] = []
        self.ids: list[int] = []

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt (first call) or one new token from ``generate``."""
        if self._prompt_seen:
            self.times.append(perf_counter())
            self.ids += value.flatten().tolist()
        self._prompt_seen = True
        if self._callback is not None:
            super().put(value)

    def end(self) -> None:
        """Flush the text that is left."""
        if self._callback is not None:
            super().end()

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Hand finished text to the callback."""
        if self._callback is not None and text:
            self._callback(text)

    @property
    def rate(self) -> float | None:
        """New tokens per second after the first, or None."""
        if len(self.times) < 2:
            return None
        return (len(self.times) - 1) / max(self.times[-1] - self.times[0], 1e-9)


def now(device: torch.device) -> float:
    """Wait for ``device`` (CUDA) and return ``perf_counter`` seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter()
