"""``Stream``: frames in as they come, answers out at any time."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from earlytom.checks import check_choice, check_count
from earlytom.errors import ConfigError, UnsupportedModelError, VideoError
from earlytom.hf.context import share_of_video, video_room
from earlytom.hf.engine import CONTROLLER
from earlytom.hf.positions import positions_of
from earlytom.method import Method
from earlytom.methods import EarlyTom
from earlytom.models import find_adapter
from earlytom.models.base import Adapter
from earlytom.models.llava_onevision import LlavaOnevision
from earlytom.pipeline.qa import VideoQA
from earlytom.pipeline.timing import TokenClock, now
from earlytom.preprocess import FrameConfig, Pixels, Preprocessor, preprocess_video
from earlytom.stream.cache import PromptCache
from earlytom.stream.input import frames_of, times_of
from earlytom.stream.report import LatencyLog, StreamAnswer, StreamReport
from earlytom.stream.segments import SegmentEncoder
from earlytom.stream.segmentwise import causal, is_causal
from earlytom.stream.tokens import Part, TokenMemory
from earlytom.stream.windows import WindowEncoder

WINDOW = 4  # more accurate than 8, see docs/streaming.md
PREFILLS = ("push", "ask")
_BLOCK = 16  # frames that go through the encoder at a time


class Stream:
    """A video that goes on: compresses frames as they come and answers questions at any time.

    At every moment the answer is that of the offline method on all frames pushed so far, as long
    as nothing was evicted (``docs/streaming.md``). The model is not changed; while a method is on
    it, a stream refuses to work. One thread only.

    Args:
        model: a transformers model (LLaVA-OneVision), or a :class:`~earlytom.pipeline.VideoQA`.
        method: ``EarlyTom`` with policy ``official`` or ``paper`` works segment by segment (see
            :class:`~earlytom.stream.CausalEarlyTom`). Any other method, and any method with
            ``window``, sees windows of frames, each a clip of its own with its exact budget. None:
            all tokens.
        preprocessor: of the checkpoint; None: that of the ``VideoQA``, or read from where the model
            was loaded.
        window: frames of a window; 4 where one is needed.
        max_tokens: limit of the memory in visual tokens; None: half of the positions of the
            language model, at most 8192.
        evict: ``thin`` or ``drop``, see :class:`~earlytom.stream.tokens.TokenMemory`.
        prefill: whether the language model reads finished tokens in ``push`` already, or only in
            ``ask``.

    Raises:
        UnsupportedModelError: a family or layout that a stream cannot do; the message says why.
        ConfigError: a setting out of range, or a method that a stream cannot run.
    """

    def __init__(
        self,
        model: Any,
        method: Method | None = None,
        *,
        preprocessor: Preprocessor | None = None,
        window: int | None = None,
        max_tokens: int | None = None,
        evict: str = "thin",
        prefill: str = "push",
    ) -> None:
        check_choice("prefill", prefill, PREFILLS)
        if isinstance(model, VideoQA):
            preprocessor = preprocessor or model.preprocessor
            model = model.model
        self.model, self.method = model, method
        self.adapter = find_adapter(model)
        _check_family(self.adapter)
        self._check_bare()
        self._preprocessor, self._frame_config = _own_preprocessor(preprocessor, model)
        text = self.adapter.language_model.config
        renumber = squeezes = False
        if method is not None:
            _check_method(method, self.adapter)
            renumber = positions_of(self.adapter, method) == "renumber"
            squeezes = video_room(self.adapter, method, text) is not None
        limit = int(getattr(text, "max_position_embeddings", 0))
        self.encoder = self._encoder(window)
        room = max(1, share_of_video(limit) // self.adapter.tokens_per_frame)
        self._memory = TokenMemory(
            max_tokens=min(8192, max(1, limit // 2)) if max_tokens is None else max_tokens,
            evict=evict,
            max_span=room if limit and not renumber else None,
            squeezes=squeezes,
        )
        self._eager = prefill == "push"
        newline: Tensor = self.adapter.inner.image_newline.detach()  # type: ignore[operator]
        self._prefix = self._words("?")[0]
        self._cache = PromptCache(self.adapter, self._prefix, newline, renumber)
        self._state: Any = self.encoder.start()
        self._rest: list[Part] | None = None
        self._size: tuple[int, int] | None = None
        self._times: tuple[float, float] | None = None
        self._kept = self._finished = 0
        self._push, self._first_token = LatencyLog(), LatencyLog()

    def _encoder(self, window: int | None) -> SegmentEncoder | WindowEncoder:
        method = self.method
        if window is not None:
            check_count("window", window)
        elif isinstance(method, EarlyTom) and is_causal(method):
            return SegmentEncoder(self.adapter, causal(method))
        return WindowEncoder(self.model, self.adapter, method, WINDOW if window is None else window)

    # ------------------------------------------------------------------ frames
    @property
    def frames(self) -> int:
        """Frames pushed so far."""
        return int(self._state.frames)

    @property
    def time(self) -> float | None:
        """Time stamp of the last frame in seconds, None before the first."""
        return None if self._times is None else self._times[1]

    @property
    def parts(self) -> tuple[Part, ...]:
        """Finished segments or windows that are remembered, oldest first."""
        return self._memory.parts

    def open_parts(self) -> list[Part]:
        """Return what is not finished, as if the stream ended here.

        Its frames run through the layers that they still have in front of them; the result is
        kept until the next frame comes.
        """
        self._check_bare()
        if self._rest is None:
            with torch.inference_mode():
                self._rest = self.encoder.rest(self._state)
        return self._rest

    def push(self, frames: Any, timestamps: Any = None) -> None:
        """Take the next frame, or several.

        Args:
            frames: ``[H, W, 3]`` or ``[n, H, W, 3]`` uint8 RGB (tensor, array, or a list of such),
                all of a stream of one size.
            timestamps: seconds, one for every frame, going up; None: one second after each other.

        Raises:
            VideoError: another shape, dtype or size, time stamps that go back, or frames that the
                model turns into NaN. The stream is as it was before.
        """
        begin = perf_counter()
        self._check_bare()
        images = frames_of(frames, self._size)
        times = times_of(timestamps, len(images), self._times and self._times[1])
        parameter = next(self.adapter.tower.parameters())
        state, new = self._state, []
        with torch.inference_mode():
            for block in images.split(_BLOCK):
                pixels = preprocess_video(block, self._frame_config, dtype=parameter.dtype)
                state, parts = self.encoder.push(state, pixels[0].to(parameter.device))
                new += parts
            # nothing has changed up to here
            self._memory = self._memory.add(new, state.frames)
            self._state, self._rest = state, None
            self._size = (int(images.shape[1]), int(images.shape[2]))
            self._times = (times[0] if self._times is None else self._times[0], times[-1])
            self._kept += sum(map(len, new))
            self._finished = new[-1].stop if new else self._finished
            if new and self._eager:
                self._cache.sync(self._memory)
        seconds = now(parameter.device) - begin
        self._push.add(seconds / len(images), len(images))

    # ------------------------------------------------------------------ questions
    def ask(
        self,
        question: str,
        *,
        max_new_tokens: int = 64,
        stream: Callable[[str], None] | None = None,
    ) -> StreamAnswer:
        """Answer a question about what was pushed so far, greedily; nothing changes by it.

        Args:
            question: plain text.
            max_new_tokens: length limit of the answer, >= 1.
            stream: called with pieces of text as they are generated.

        Raises:
            VideoError: no frame was pushed yet.
            ConfigError: the question holds a placeholder, or a bad ``max_new_tokens``.
        """
        check_count("max_new_tokens", max_new_tokens)
        begin = perf_counter()
        tokens = TokenClock(self._preprocessor.tokenizer, stream)
        with self._asked(question) as inputs:
            ids = inputs["input_ids"]
            self.model.generate(
                **inputs,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=max_new_tokens,
                streamer=tokens,
            )
        assert self._times is not None
        first = tokens.times[0] - begin
        self._first_token.add(first)
        unfinished = sum(map(len, self.open_parts()))
        return StreamAnswer(
            text=self._preprocessor.decode(torch.tensor(tokens.ids)),
            token_ids=tokens.ids,
            time=self._times[1],
            frames=self.frames,
            tokens=len(self._memory) + unfinished,
            open_tokens=unfinished,
            first_token=first,
            total=perf_counter() - begin,
        )

    def next_logits(self, question: str) -> Tensor:
        """Return the logits ``[vocabulary]`` of the first token of an answer.

        Raises: see :meth:`ask`.
        """
        with self._asked(question) as inputs:
            ids = inputs.pop("input_ids")[:, -1:]
            logits: Tensor = self.model(input_ids=ids, use_cache=True, **inputs).logits[0, -1]
        return logits.clone()

    @contextmanager
    def _asked(self, question: str) -> Any:
        if self._times is None:
            raise VideoError("no frame was pushed yet, so there is nothing to ask about")
        prefix, suffix = self._words(question)
        if prefix != self._prefix:
            raise UnsupportedModelError(
                "the chat template writes the question in front of the video, so that nothing can "
                "be prefilled before it is known"
            )
        rest = self.open_parts()
        with torch.inference_mode():
            self._cache.sync(self._memory)
            with self._cache.asked(rest, self.frames, suffix) as inputs:
                yield inputs

    def _words(self, question: str) -> tuple[list[int], list[int]]:
        """Token ids in front of the video, and behind it."""
        blank = Pixels(torch.zeros(1, 1, 3, 1, 1))
        ids = self._preprocessor(blank, question)["input_ids"][0].tolist()
        video = self.adapter.video_token_id
        first = ids.index(video)
        last = len(ids) - ids[::-1].index(video)
        return ids[:first], ids[last:]

    # ------------------------------------------------------------------ state
    def report(self) -> StreamReport:
        """Return counts and latencies up to now."""
        size, memory = self.adapter.tokens_per_frame, self._memory
        tensors = self._state.tensors() + [x for p in memory.parts for x in p.tensors()]
        tensors += [x for p in self._rest or () for x in p.tensors()] + self._cache.tensors()
        return StreamReport(
            frames=self.frames,
            finished_frames=self._finished,
            seconds=0.0 if self._times is None else self._times[1] - self._times[0],
            parts=len(memory.parts),
            memory_tokens=len(memory),
            max_tokens=memory.max_tokens,
            kept_tokens=self._kept,
            retention=self._kept / (self._finished * size) if self._finished else None,
            evictions=memory.evictions,
            evicted_tokens=memory.evicted,
            cache_columns=self._cache.columns,
            prefilled_columns=self._cache.prefilled,
            state_bytes=sum(x.untyped_storage().nbytes() for x in tensors),
            push=self._push.summary(),
            first_token=self._first_token.summary(),
        )

    def _check_bare(self) -> None:
        controller = self.adapter.inner.__dict__.get(CONTROLLER)
        if controller is not None:
            raise ConfigError(
                f"{controller.method.name} is on the model; restore(model) first: a stream brings "
                "its own method"
            )


def _check_family(adapter: Adapter) -> None:
    """Raise UnsupportedModelError unless frames of ``adapter`` can be prefilled as they come."""
    one_axis = isinstance(adapter, LlavaOnevision) and adapter.position_axes == 1
    if one_axis and adapter.placeholder_count([7]) == 7 * adapter.tokens_per_frame + 1:
        return
    why = "its prompt is laid out in another way than frame behind frame"
    if adapter.position_axes > 1:
        why = "its frames are pairs of pictures, its positions (M-RoPE) and prompts say their time"
    elif one_axis:
        why = "newline tokens stand in between its tokens, and depend on the tokens kept"
    elif adapter.features_name != "get_video_features":
        why = "its frames are images with text in between"
    raise UnsupportedModelError(
        f"a stream does not run on {type(adapter.inner).__name__} ({type(adapter).__name__}): "
        f"{why}; supported: llava_onevision"
    )


def _check_method(method: Method, adapter: Adapter) -> None:
    depth = len(adapter.decoder_layers)
    if method.inner_points(depth) or method.decode_layer(depth) is not None:
        raise ConfigError(
            f"{method.name} acts inside the language model, where it looks at the question; a "
            "stream reads the video before there is one (leave out inner_merge_layer, or use a "
            "method that acts in front of the language model)"
        )


def _own_preprocessor(
    given: Preprocessor | None, model: Any
) -> tuple[Preprocessor, FrameConfig | None]:
    """Return a preprocessor that takes frames one by one, and its settings."""
    if given is None or not isinstance(given.frame_config, FrameConfig):
        given = Preprocessor.from_pretrained(model.config.name_or_path, official=False)
    config = given.frame_config
    return given, config if isinstance(config, FrameConfig) else None
