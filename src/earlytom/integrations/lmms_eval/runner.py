"""Answering lmms-eval's requests with this package's own pipeline; knows nothing of lmms-eval."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from earlytom.errors import ConfigError, VideoError
from earlytom.hf.api import compress, last_report
from earlytom.integrations.lmms_eval.media import MediaLoader, Prompt, Ready, batches
from earlytom.integrations.lmms_eval.options import Options
from earlytom.integrations.lmms_eval.retained import Retained
from earlytom.models import use_llava_video_layout
from earlytom.pipeline import VideoQA
from earlytom.pipeline.loading import load_model, shipped_model
from earlytom.pipeline.timing import TokenClock, now
from earlytom.preprocess import Preprocessor

logger = logging.getLogger(__name__)

MAX_NEW_TOKENS = 1024


@dataclass(frozen=True)
class Reply:
    """One generated answer.

    Attributes:
        text: the answer, cut at the first stop string.
        new_tokens: generated tokens.
        prompt_tokens: columns that entered the language model; None if several prompts shared a
            batch, whose width says nothing about one of them.
    """

    text: str
    new_tokens: int
    prompt_tokens: int | None = None


class Runner:
    """A loaded model with its method on, for good.

    Args:
        options: see :class:`Options`.

    Raises:
        EarlyTomError: no such checkpoint, or it cannot be loaded.
        ConfigError: the method does not fit the model.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.qa = _load(options)
        self.retained = Retained()
        if options.method is not None:
            compress(self.qa.model, options.method)
        self._media = MediaLoader(options, options.frames or self.qa.frames)

    def generate(self, prompts: Sequence[Prompt], settings: Mapping[str, Any]) -> list[Reply]:
        """Answer ``prompts`` in order, as many at once as their videos allow.

        Args:
            prompts: any number, decoded together: pass no more than ``batch_size``.
            settings: of the task: ``max_new_tokens``, ``until``, ``temperature``, ``top_p``,
                ``top_k``, ``num_beams``, ``do_sample``; others are ignored. Temperature 0 or none
                means greedy.

        Returns:
            One reply per prompt; an empty one for an unreadable video under ``skip_unreadable``.

        Raises:
            VideoError: a video cannot be used.
            ConfigError: a visual of another kind, or images where only the official processor
                (torchvision) can prepare them.
        """
        arguments, stops = _generation(settings)
        found = self._media.load(prompts)
        for error in (f for f in found if isinstance(f, VideoError)):
            self._skip(error)
        calls = batches([f for f in found if isinstance(f, Ready)])
        replies = iter([a for c in calls for a in self._answer(c, arguments, stops)])
        return [next(replies) if isinstance(f, Ready) else Reply("", 0) for f in found]

    def losses(self, prompt: Prompt, continuations: Sequence[str]) -> list[tuple[float, bool]]:
        """Score continuations of one prompt, which is encoded once.

        Returns:
            For each the mean negative log-likelihood per token in nats, and whether it is what
            greedy decoding says.

        Raises:
            VideoError: a video cannot be used.
        """
        (ready,) = self._media.load([prompt])
        if isinstance(ready, VideoError):
            raise ready
        begin = now(self.qa.device)
        with torch.inference_mode():
            inputs = self._inputs([ready])
            out = self.qa.model(**inputs, use_cache=True, logits_to_keep=1)
            self._record([ready], begin, None, 0)
            return [self._loss(out, text) for text in continuations]

    # ------------------------------------------------------------------ inside
    def _skip(self, error: VideoError) -> None:
        if not self.options.skip_unreadable:
            raise error
        logger.error("answered with nothing: %s", error)
        self.retained.unreadable += 1

    def _answer(
        self, batch: list[Ready], arguments: dict[str, Any], stops: list[str]
    ) -> list[Reply]:
        tokenizer = self.qa.preprocessor.tokenizer
        clock = TokenClock(tokenizer) if len(batch) == arguments["num_beams"] == 1 else None
        begin = now(self.qa.device)
        with torch.inference_mode():
            inputs = self._inputs(batch)
            output = self.qa.model.generate(**inputs, **arguments, streamer=clock)
        end_ids = _end_ids(self.qa.model, tokenizer)
        rows = [_until_end(row, end_ids) for row in output[:, inputs["input_ids"].shape[1] :]]
        first = clock.times[0] - begin if clock and clock.times else None
        self._record(batch, begin, first, sum(len(r) for r in rows))
        columns = None if len(batch) > 1 else self._columns(batch[0], inputs)
        texts = [self.qa.preprocessor.decode(row) for row in rows]
        return [
            Reply(_cut(text, stops), len(row), columns)
            for text, row in zip(texts, rows, strict=True)
        ]

    def _columns(self, prompt: Ready, inputs: dict[str, Tensor]) -> int:
        report = last_report(self.qa.model) if self.options.method and prompt.videos else None
        if report is not None and report.prompt_columns is not None:
            return report.prompt_columns[1]
        return int(inputs["input_ids"].shape[1])

    def _record(
        self, batch: list[Ready], begin: float, first: float | None, new_tokens: int
    ) -> None:
        seconds = now(self.qa.device) - begin
        self.retained.add_call(len(batch), seconds, first, new_tokens)
        videos = [v for p in batch for v in p.videos]
        if not videos:
            return
        if self.options.method is None:
            size = self.qa.adapter.tokens_per_frame
            self.retained.add_full([len(v) for v in videos], size)
        else:
            report = last_report(self.qa.model)
            assert report is not None  # a method is on and there was a video
            self.retained.add_report(report)

    def _inputs(self, batch: list[Ready]) -> dict[str, Tensor]:
        images = batch[0].images or None
        return self.qa.preprocessor(
            [p.videos for p in batch] if len(batch) > 1 else batch[0].videos,
            [p.text for p in batch] if len(batch) > 1 else batch[0].text,
            images=images,
            device=self.qa.device,
            dtype=self.qa.model.dtype,
        )

    def _loss(self, prefill: Any, text: str) -> tuple[float, bool]:
        # the chat prompt ends with its own boundary, so the blank that lmms-eval puts first goes
        ids = self.qa.preprocessor.tokenizer(text.lstrip(), add_special_tokens=False)["input_ids"]
        if not ids:
            raise ConfigError(f"a continuation without tokens: {text!r}")
        target = torch.tensor(ids, device=self.qa.device)
        logits = prefill.logits[0, -1:]
        if len(ids) > 1:
            more = self.qa.model(
                input_ids=target[None, :-1],
                past_key_values=copy.deepcopy(prefill.past_key_values),
                use_cache=True,
            )
            logits = torch.cat([logits, more.logits[0]])
        log_probs = logits.float().log_softmax(-1)
        loss = -log_probs.gather(1, target[:, None]).mean()
        return loss.item(), bool((logits.argmax(-1) == target).all())


def _load(o: Options) -> VideoQA:
    if o.layout == "hf":
        return VideoQA.load(
            o.pretrained,
            device=o.device,
            dtype=o.dtype,
            attn_implementation=o.attn_implementation,
        )
    source = shipped_model() if o.pretrained is None else o.pretrained
    model = load_model(source, o.device, o.dtype, o.attn_implementation)
    use_llava_video_layout(model)
    # the official processor knows no such layout
    return VideoQA(model, Preprocessor.from_pretrained(source, official=False))


def _generation(settings: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return keyword arguments of ``generate`` and the stop strings of a task."""
    temperature = settings.get("temperature") or 0
    sample = bool(settings.get("do_sample", temperature > 0)) and temperature > 0
    arguments: dict[str, Any] = {
        "max_new_tokens": int(settings.get("max_new_tokens") or MAX_NEW_TOKENS),
        "num_beams": int(settings.get("num_beams") or 1),
        "do_sample": sample,
    }
    if sample:
        names = ("temperature", "top_p", "top_k")
        arguments |= {n: settings[n] for n in names if settings.get(n) is not None}
    until = settings.get("until") or []
    return arguments, [until] if isinstance(until, str) else list(until)


def _end_ids(model: Any, tokenizer: Any) -> set[int]:
    ids = model.generation_config.eos_token_id
    ends = {ids} if isinstance(ids, int) else set(ids or ())
    return ends | {i for i in (tokenizer.eos_token_id, tokenizer.pad_token_id) if i is not None}


def _until_end(row: Tensor, end_ids: set[int]) -> Tensor:
    """Cut padding behind the first end token, which itself stays."""
    for n, token in enumerate(row.tolist()):
        if token in end_ids:
            return row[: n + 1]
    return row


def _cut(text: str, stops: list[str]) -> str:
    for stop in stops:
        if stop:
            text = text.split(stop)[0]
    return text.strip()
