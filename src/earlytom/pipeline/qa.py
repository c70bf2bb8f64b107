"""Video question answering in one object, with or without a compression method."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from earlytom.checks import check_count
from earlytom.errors import ConfigError
from earlytom.hf.api import active_method, compressed, last_report
from earlytom.hf.engine import controller_of
from earlytom.method import Method
from earlytom.models import find_adapter
from earlytom.models.llava_video import LlavaVideo
from earlytom.pipeline.loading import load_model, shipped_model
from earlytom.pipeline.overlap import read_clip
from earlytom.pipeline.timing import StageClock, Timings, TokenClock, now
from earlytom.preprocess import Pixels, Preprocessor
from earlytom.report import Report
from earlytom.video import Video

SHIPPED_FRAMES = 16
CHUNK = 32  # frames that are encoded at a time ...
LONG = 64  # ... of videos with more frames than this


@dataclass(frozen=True)
class Answer:
    """What :meth:`VideoQA.ask` returns.

    Attributes:
        text: the answer, special tokens removed.
        token_ids: its token ids.
        timings: where the time went.
        frames_in: frames given to the vision encoder.
        frames_out: frames left behind it.
        patches_in: patches of these frames, at full resolution.
        patches_out: patches that the last layer of the encoder computed.
        tokens_in: visual tokens that the uncompressed model would feed the language model
            (newline tokens excluded).
        tokens_out: visual tokens that entered the language model.
        prompt_in: columns of the prompt, text included.
        prompt_out: columns that entered the language model, measured at its entrance.
        method: the method as JSON-ready data, or None.
        report: the engine's report, or None without a method.
    """

    text: str
    token_ids: list[int]
    timings: Timings
    frames_in: int
    frames_out: int
    patches_in: int
    patches_out: int
    tokens_in: int
    tokens_out: int
    prompt_in: int
    prompt_out: int
    method: dict[str, Any] | None = None
    report: Report | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-ready data."""
        counts = ("frames", "patches", "tokens", "prompt")
        return {
            "text": self.text,
            **{f"{n}_{way}": getattr(self, f"{n}_{way}") for n in counts for way in ("in", "out")},
            "new_tokens": len(self.token_ids),
            "retention": self.tokens_out / self.tokens_in,
            "timings": self.timings.to_dict(),
            "method": self.method,
            "report": None if self.report is None else self.report.to_dict(),
        }


class VideoQA:
    """A loaded video model with its preprocessing; build it with :meth:`load`.

    Args:
        model: a supported transformers model.
        preprocessor: the checkpoint's preprocessing.
        frames: how many frames :meth:`ask` samples by default.

    Raises:
        UnsupportedModelError: ``model`` is not a video model of a known family.
    """

    def __init__(self, model: Any, preprocessor: Preprocessor, frames: int = 32) -> None:
        self.adapter = find_adapter(model)
        self.model = model
        self.preprocessor = preprocessor
        if isinstance(self.adapter, LlavaVideo):
            preprocessor.use_layout(self.adapter.placeholder_count)
        self.frames = frames

    @classmethod
    def load(
        cls,
        model: str | os.PathLike[str] | None = None,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        attn_implementation: str | None = None,
    ) -> VideoQA:
        """Load a checkpoint folder or Hub id, or the small model that comes along (None).

        Raises:
            EarlyTomError: no such checkpoint, or it cannot be loaded.
            UnsupportedModelError: not a video model of a known family.
            ConfigError: unknown device or dtype.
        """
        source = shipped_model() if model is None else model
        loaded = load_model(source, device, dtype, attn_implementation)
        preprocessor = Preprocessor.from_pretrained(source)
        return cls(loaded, preprocessor, SHIPPED_FRAMES if model is None else 32)

    @property
    def device(self) -> torch.device:
        """Where the model's inputs go."""
        return next(self.adapter.inner.parameters()).device

    def ask(
        self,
        video: Video | Tensor | str | os.PathLike[str] | bytes,
        question: str,
        method: Method | None = None,
        *,
        frames: int | None = None,
        fps: float | None = None,
        allow_http: bool = False,
        frames_per_chunk: int | None = None,
        max_new_tokens: int = 64,
        stream: Callable[[str], None] | None = None,
    ) -> Answer:
        """Answer a question about a video, greedily.

        Args:
            video: a file (see :func:`earlytom.video.load_video`), a :class:`Video` or uint8
                frames ``[T, H, W, 3]``.
            question: plain text.
            method: compression for this call only, e.g. ``EarlyTom(retention_ratio=0.1)``.
            frames: frames to sample from a file (default: ``self.frames``).
            fps: frames per second to sample from a file instead.
            allow_http: permit http(s) URLs as ``video``.
            frames_per_chunk: frames that the vision encoder takes at a time, which bounds its
                memory (see :func:`earlytom.compress`); 0: all at once. None: 32 if there are more
                than 64 frames.
            max_new_tokens: length limit of the answer, >= 1.
            stream: called with pieces of text as they are generated.

        Raises:
            VideoError: the video cannot be used.
            ConfigError: the method does not fit the model, or a bad ``max_new_tokens`` or
                ``frames_per_chunk``.
            EarlyTomError: the question holds a placeholder, or the chat template is broken.
        """
        check_count("max_new_tokens", max_new_tokens)
        self._check_chunk(frames_per_chunk, method)
        begin = decoded = perf_counter()
        clip: Video | Tensor | Pixels
        if isinstance(video, (Video, Tensor)):
            clip = video
        else:
            clip, decoded = read_clip(
                self.preprocessor,
                video,
                self.frames if frames is None and fps is None else frames,
                fps=fps,
                allow_http=allow_http,
                dtype=self.model.dtype,
            )
        inputs = self.preprocessor(clip, question, device=self.device, dtype=self.model.dtype)
        ready = now(self.device)
        tokens = TokenClock(self.preprocessor.tokenizer, stream)
        with contextlib.ExitStack() as stack:
            chunk = self._chunk(frames_per_chunk, inputs)
            if method is not None or (chunk and controller_of(self.model) is None):
                stack.enter_context(compressed(self.model, method, frames_per_chunk=chunk))
            active = active_method(self.model)  # also of a model that was compressed before
            clock = stack.enter_context(StageClock(self.model))
            with torch.inference_mode():
                self.model.generate(
                    **inputs, do_sample=False, max_new_tokens=max_new_tokens, streamer=tokens
                )
        end = perf_counter()
        timings = Timings(
            decode=None if clip is video else decoded - begin,
            preprocess=ready - decoded,
            vision=clock.vision,
            tokens=clock.tokens,
            prefill=clock.prefill,
            ttft=tokens.times[0] - decoded,
            decode_tokens_per_s=tokens.rate,
            total=end - begin,
        )
        return self._answer(inputs, tokens, clock, timings, active)

    def _check_chunk(self, asked: int | None, method: Method | None) -> None:
        if asked is None or asked == 0:
            return
        check_count("frames_per_chunk", asked)
        if method is None and controller_of(self.model) is not None:
            raise ConfigError(
                "this model is compressed or compiled already; give frames_per_chunk to "
                "earlytom.compress, or restore the model"
            )

    def _chunk(self, asked: int | None, inputs: dict[str, Tensor]) -> int | None:
        if asked is not None:
            return asked or None
        return CHUNK if sum(t for t, _ in self.adapter.video_shapes(inputs)) > LONG else None

    def _answer(
        self,
        inputs: dict[str, Tensor],
        tokens: TokenClock,
        clock: StageClock,
        timings: Timings,
        method: Method | None,
    ) -> Answer:
        prompt = int(inputs["input_ids"].shape[1])
        shapes = self.adapter.video_shapes(inputs)
        frames = sum(t for t, _ in shapes)
        visual = sum(t * math.prod(grid) for t, grid in shapes)
        report = None if method is None else last_report(self.model)
        each = [self.adapter.frame_patches(grid) for _, grid in shapes]
        patches = sum(t * n for (t, _), n in zip(shapes, each, strict=True))
        if method is not None and self.adapter.patch_grid is not None:
            coarse = method.encoder_grid(self.adapter.grid)
            if coarse is not None:
                each = [math.prod(self.adapter.encoder_grid(coarse))] * len(each)
        return Answer(
            text=self.preprocessor.decode(torch.tensor(tokens.ids)),
            token_ids=tokens.ids,
            timings=timings,
            frames_in=frames,
            frames_out=sum(v.frames_out for v in report.videos) if report else frames,
            patches_in=patches,
            patches_out=sum(v.encoded_patches(n) for v, n in zip(report.videos, each, strict=True))
            if report
            else patches,
            tokens_in=report.tokens_in if report else visual,
            tokens_out=report.tokens_out if report else visual,
            prompt_in=prompt,
            prompt_out=clock.prompt_length or prompt,
            method=None if method is None else method.to_dict(),
            report=report,
        )
