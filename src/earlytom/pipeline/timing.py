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

from earlytom.clock import Mark
from earlytom.models import find_adapter


@dataclass(frozen=True)
class Timings:
    """Seconds of wall clock, each read after the device has finished its work.

    Attributes:
        decode: from the call until the last sampled frame is decoded; None if frames were given.
            Frames of a file are resized and normalised meanwhile, so this holds most of that work.
        preprocess: what is left of resize, normalise, tokenise and copy to the device once all
            frames are decoded; all of it if frames were given.
        vision: vision encoder, frame merging inside it included.
        tokens: from the end of the vision encoder to the start of the language model: projector,
            pooling, token selection and assembly of the prompt.
        prefill: language model over the whole prompt.
        ttft: from the moment all frames are decoded (the call, if frames were given) to the first
            new token id on the host, ``preprocess`` included. ``decode + ttft`` is the wait that a
            file costs. Compare values of one kind only: a file has most of its preprocessing
            behind it at that moment, given frames have all of it before them.
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

    Use as ``with StageClock(model) as clock: model.generate(...)`` and read the attributes
    afterwards. It lives in forward hooks of two module instances, which are removed on exit.
    Install it after a compression method, so that the method's own work is counted in the stage
    where it happens. On CUDA the marks are events in the stream: nothing waits for the device
    until an attribute is read. A model spread over several devices is waited for at every mark.

    Args:
        model: a supported model.
        nvtx: also open NVTX ranges ``vision`` and ``prefill``.

    Attributes:
        vision: seconds in the vision encoder.
        tokens: seconds from its end to the start of the language model.
        prefill: seconds of the first language-model call that follows.
        prompt_length: columns that entered the language model there.

    Raises:
        UnsupportedModelError: not a video model of a known family.
    """

    def __init__(self, model: Any, nvtx: bool = False) -> None:
        adapter = find_adapter(model)
        self._tower: nn.Module = adapter.tower
        self._language: nn.Module = adapter.language_model
        self._device = next(self._tower.parameters()).device
        devices = {p.device for m in (self._tower, self._language) for p in m.parameters()}
        self._split = devices if len(devices) > 1 else set()
        self._nvtx = nvtx
        self._hooks: list[Any] = []
        self._vision: list[tuple[Mark, Mark]] = []
        self._open: Mark | None = None
        self._prefill: tuple[Mark, Mark] | None = None
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

    @property
    def vision(self) -> float:
        """Seconds in the vision encoder."""
        return sum(end.since(begin) for begin, end in self._vision)

    @property
    def tokens(self) -> float:
        """Seconds from the end of the vision encoder to the start of the language model."""
        if not self._vision or self._prefill is None:
            return 0.0
        return self._prefill[0].since(self._vision[-1][1])

    @property
    def prefill(self) -> float:
        """Seconds of the language model over the prompt."""
        return 0.0 if self._prefill is None else self._prefill[1].since(self._prefill[0])

    # ------------------------------------------------------------------ hooks
    def _mark(self) -> Mark:
        for device in self._split:
            now(device)
        return Mark(torch.device("cpu") if self._split else self._device)

    def _enter(self, name: str) -> None:
        if self._nvtx and torch.cuda.is_available():
            torch.cuda.nvtx.range_push(name)
        self._open = self._mark()

    def _leave(self) -> tuple[Mark, Mark]:
        assert self._open is not None
        pair = self._open, self._mark()
        self._open = None
        if self._nvtx and torch.cuda.is_available():
            torch.cuda.nvtx.range_pop()
        return pair

    def _enter_vision(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._prefill is None:
            self._enter("vision")

    def _leave_vision(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._prefill is None:
            self._vision.append(self._leave())

    def _enter_language(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if self._prefill is not None:
            return
        self._enter("prefill")
        embeds = kwargs.get("inputs_embeds")
        if isinstance(embeds, torch.Tensor):
            self.prompt_length = int(embeds.shape[1])

    def _leave_language(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._prefill is None:
            self._prefill = self._leave()


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
