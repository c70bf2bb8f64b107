"""Asking a compressed model all questions about a clip, fast and as its ordinary forward would."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from earlytom.bench.contenders import applied
from earlytom.bench.flops import (
    EncoderWork,
    LayerWork,
    encoder_flops,
    encoder_work,
    llm_flops,
    prompt_work,
)
from earlytom.bench.memory import forget_peak, peak_rss
from earlytom.bench.records import Outcome
from earlytom.bench.replay import Replay
from earlytom.bench.suite import SuiteClip
from earlytom.hf.api import last_report
from earlytom.method import Method
from earlytom.models import find_adapter
from earlytom.override import Override
from earlytom.report import Report, VideoReport
from earlytom.tiny.architecture import architecture_of, normalise
from earlytom.tiny.questions import Question
from earlytom.tiny.vocabulary import ASSISTANT_ID, PAD_ID, encode
from earlytom.tiny.world import GRID, IMAGE_SIZE

_PIXELS = ("pixel_values_videos", "pixel_values")
_GRIDS = "video_grid_thw"


@dataclass(frozen=True)
class Reply:
    """Answers to all questions about a clip.

    Attributes:
        logits: ``[questions, vocabulary]``.
        works: what the language model ran on, for every question.
        report: of the last call, None without a method.
        llm_retention: visual tokens of a decoder layer / all of them, mean over layers, questions.
    """

    logits: Tensor
    works: list[tuple[LayerWork, ...]]
    report: Report | None
    llm_retention: float


class Examiner:
    """Runs methods on one clip after the other; layers remember what they did to a clip.

    Args:
        model: the tiny model, bare, in evaluation mode.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.arch = architecture_of(model)
        self.adapter = find_adapter(model)
        self.depth = len(self.adapter.decoder_layers)
        first = next(model.parameters())
        self.device, self.dtype = first.device, first.dtype
        with torch.no_grad():  # hooks of transformers appear in the first call
            shape = (self.arch.step_frames, 3, IMAGE_SIZE, IMAGE_SIZE)
            self._ask_all(torch.zeros(shape, device=self.device, dtype=self.dtype), [[]])
        self.replay = Replay(self.adapter)
        self.clip: SuiteClip | None = None
        self._encoder: dict[EncoderWork, tuple[float, float]] = {}
        self._llm: dict[tuple[LayerWork, ...], float] = {}

    def open(self, clip: SuiteClip) -> None:
        """Render a clip and forget the one before."""
        self.replay.clear()
        self.clip = clip
        self.pixels = normalise(clip.render()).to(self.device, self.dtype)
        self.rows = [[*encode(q.question), ASSISTANT_ID] for q in clip.questions]
        self._full_encoder = self._encoder_flops(None, None)[0]

    @torch.no_grad()
    def run(self, method: Method | None, timed: tuple[float, float, float] | None) -> Outcome:
        """Ask every question about the clip with ``method`` on the model (None: uncompressed).

        Args:
            method: the method.
            timed: what :meth:`time` returned for this method and clip, if it was asked.

        Raises:
            EarlyTomError: the method cannot do with this clip or model.
        """
        assert self.clip is not None
        start = perf_counter()
        reply = self.ask(method)
        correct, opened = _mark(self.clip, reply.logits)
        seconds = perf_counter() - start
        video = None if reply.report is None else reply.report.videos[0]
        encoder, projector = self._encoder_flops(method, video)
        llm = [self._llm_flops(work) for work in reply.works]
        return Outcome(
            correct=correct,
            open=opened,
            retention=1.0 if reply.report is None else reply.report.achieved_retention,
            llm_retention=reply.llm_retention,
            frames_out=self._steps if video is None else video.frames_out,
            flops=(encoder, projector, sum(llm) / len(llm), self._full_encoder),
            seconds=seconds,
            timed=None if timed is None else timed[:2],
            peak_rss_mib=None if timed is None else timed[2],
        )

    @torch.no_grad()
    def ask(self, method: Method | None) -> Reply:
        """Ask every question; what :meth:`run` counts."""
        with applied(method, self.model):
            inside = _asks_inside(method, self.depth)
            return self._ask_whole(method) if inside else self._ask_shared(method)

    @torch.no_grad()
    def plain(self, method: Method | None, number: int) -> Tensor:
        """Return logits ``[vocabulary]`` of question ``number``: one ordinary call with pixels."""
        with self.replay.paused(), applied(method, self.model):
            return self._ask_all(self.pixels, self.rows[number : number + 1])[0]

    @torch.no_grad()
    def time(self, method: Method | None) -> tuple[float, float, float]:
        """Return seconds (encode, answer) and the peak memory in MiB of one plain call.

        ``encode`` is from pixels to the visual tokens that are left, ``answer`` the rest of the
        call up to the logits of the answer.
        """
        with self.replay.paused(), applied(method, self.model):
            clock = _Clock(self.adapter.inner)
            forget_peak()
            start = perf_counter()
            with clock.on():
                self._ask_all(self.pixels, self.rows[:1])
            total = perf_counter() - start
            return clock.seconds, total - clock.seconds, peak_rss()

    # ------------------------------------------------------------------ operations
    def _encoder_flops(
        self, method: Method | None, video: VideoReport | None
    ) -> tuple[float, float]:
        work = encoder_work(self.adapter, self._steps, method, video, (GRID, GRID))
        if work not in self._encoder:
            self._encoder[work] = encoder_flops(self.adapter, work)
        return self._encoder[work]

    @property
    def _steps(self) -> int:
        """Frames as the engine counts them."""
        return len(self.pixels) // self.arch.step_frames

    def _llm_flops(self, work: tuple[LayerWork, ...]) -> float:
        if work not in self._llm:
            self._llm[work] = llm_flops(self.model, self.adapter, work)
        return self._llm[work]

    # ------------------------------------------------------------------ forward passes
    def _ask_all(self, pixels: Tensor, rows: Sequence[Sequence[int]]) -> Tensor:
        """Logits ``[questions, vocabulary]`` for questions of one length, as whole prompts."""
        prefix = self.arch.prefix_ids(len(pixels))
        ids = torch.tensor([[*prefix, *row] for row in rows], device=self.device)
        inputs = self.arch.inputs(pixels[None].expand(len(rows), -1, -1, -1, -1), ids)
        logits: Tensor = self.model(**inputs, use_cache=False, logits_to_keep=1).logits
        return logits[:, -1]

    def _ask_shared(self, method: Method | None) -> Reply:
        """Read the video once; every question continues from the cache."""
        ids = torch.tensor([self.arch.prefix_ids(len(self.pixels))], device=self.device)
        inputs = self.arch.inputs(self.pixels[None], ids)
        cache = self.model(**inputs, use_cache=True, logits_to_keep=1).past_key_values
        report = None if method is None else last_report(self.model)
        columns = ids.shape[1]
        if report is not None and report.prompt_columns is not None:
            columns = report.prompt_columns[1]
        cache.batch_repeat_interleave(len(self.rows))
        ends = torch.tensor([len(row) for row in self.rows], device=self.device) - 1
        width = int(ends.max()) + 1
        padded = [[*row, *[PAD_ID] * (width - len(row))] for row in self.rows]
        more = self.arch.more(len(self.pixels), torch.tensor(padded, device=self.device))
        # padding is on the right: no real token sees it
        logits = self.model(**more, past_key_values=cache, use_cache=True).logits
        chosen = logits[torch.arange(len(self.rows), device=self.device), ends]
        works = [prompt_work(self.adapter, columns + len(row)) for row in self.rows]
        return Reply(chosen, works, report, 1.0 if report is None else report.llm_retention)

    def _ask_whole(self, method: Method | None) -> Reply:
        """Whole prompts for methods that look at the question; the video is encoded once."""
        logits: dict[int, Tensor] = {}
        works: dict[int, tuple[LayerWork, ...]] = {}
        report: Report | None = None
        retained = 0.0
        with _encode_once(self.adapter):
            for group in _by_length(self.rows):
                found = self._ask_all(self.pixels, [self.rows[i] for i in group])
                report = last_report(self.model)
                assert report is not None
                assert report.prompt_columns is not None
                retained += report.llm_retention * len(group) / len(self.rows)
                work = prompt_work(self.adapter, report.prompt_columns[1], method, report)
                for place, i in enumerate(group):
                    logits[i], works[i] = found[place], work
        order = range(len(self.rows))
        stacked = torch.stack([logits[i] for i in order])
        return Reply(stacked, [works[i] for i in order], report, retained)


def _asks_inside(method: Method | None, depth: int) -> bool:
    """Whether a method acts inside the language model, where it may look at the question."""
    if method is None:
        return False
    return bool(method.inner_points(depth)) or method.decode_layer(depth) is not None


def _by_length(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Numbers of the questions, grouped by their length."""
    groups: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(len(row), []).append(i)
    return list(groups.values())


def _mark(clip: SuiteClip, logits: Tensor) -> tuple[list[int], list[int]]:
    """Whether the best candidate, and the best word, answer each question."""
    correct, opened = [], []
    best = logits.argmax(-1).tolist()
    for question, row, word in zip(clip.questions, logits, best, strict=True):
        options = [encode(c)[0] for c in question.candidates]
        correct.append(int(_chosen(question, row[options]) == question.answer))
        opened.append(int(word in {encode(a)[0] for a in clip.accepted(question)}))
    return correct, opened


def _chosen(question: Question, scores: Tensor) -> str:
    return question.candidates[int(scores.argmax())]


# ---------------------------------------------------------------------- stand-ins and meters
@contextmanager
def _instead(module: Any, function: Any) -> Iterator[None]:
    """Let ``function`` stand in for ``module.get_video_features`` inside the block."""
    override = Override(module, "get_video_features", function)
    try:
        yield
    finally:
        override.remove()


@contextmanager
def _encode_once(adapter: Any) -> Iterator[None]:
    """Encode the first video of the first call only; all others are the same video."""
    original = adapter.inner.get_video_features
    seen: list[Any] = []

    def features(*args: Any, **kwargs: Any) -> Any:
        # the name of the argument depends on the version of transformers
        name = next((k for k in _PIXELS if k in kwargs), None)
        pixels, rest = (args[0], args[1:]) if name is None else (kwargs[name], args)
        grids: Any = kwargs.get(_GRIDS, rest[0] if adapter.packed and rest else None)
        count = len(pixels if grids is None else grids)
        if not seen:
            one = pixels[: len(pixels) // count]  # all videos are of one size
            if _GRIDS in kwargs:
                kwargs = {**kwargs, _GRIDS: grids[:1]}
            elif grids is not None:
                rest = (grids[:1], *rest[1:])
            if name is None:
                seen.append(original(one, *rest, **kwargs))
            else:
                seen.append(original(*rest, **{**kwargs, name: one}))
        rows = adapter.read_features(seen[0], [pixels.shape[1]])
        return adapter.write_features(copy.copy(seen[0]), list(rows) * count)

    with _instead(adapter.inner, features):
        yield


class _Clock:
    """Seconds spent in ``get_video_features`` of a model."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.seconds = 0.0

    @contextmanager
    def on(self) -> Iterator[None]:
        """Measure inside the block."""
        original = self.inner.get_video_features

        def features(*args: Any, **kwargs: Any) -> Any:
            start = perf_counter()
            output = original(*args, **kwargs)
            self.seconds += perf_counter() - start
            return output

        with _instead(self.inner, features):
            yield
