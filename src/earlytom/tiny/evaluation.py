"""Accuracy of a model on held-out clips, through its ordinary forward pass.

The video of a clip is encoded once, with ``model.forward(pixel_values_videos=...)``, and every
question continues from a copy of the resulting cache.  Running :func:`evaluate` inside a
compression context therefore measures the compressed model.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from earlytom.tiny.architecture import architecture_of, normalise
from earlytom.tiny.clips import render_segments
from earlytom.tiny.facts import Segment
from earlytom.tiny.held_out import blind_accuracy, evaluation_set
from earlytom.tiny.questions import TYPES, Question
from earlytom.tiny.vocabulary import ASSISTANT_ID, encode


@dataclass(frozen=True)
class EvalResult:
    """Accuracies in 0..1; ``accuracy`` is the mean over all questions (types are balanced).

    ``blind_accuracy_by_type`` is that of a guesser that sees the question but no video: the
    candidate that was the answer most often for this text in other clips.
    ``wrong_video_accuracy`` is the model's on the video of another clip.
    """

    accuracy: float
    accuracy_by_type: dict[str, float]
    blind_accuracy_by_type: dict[str, float]
    wrong_video_accuracy: float
    questions: int
    questions_by_type: dict[str, int]
    clips: int
    frames: int
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return asdict(self)


@dataclass(frozen=True)
class _Watched:
    """What a model keeps of a video."""

    cache: Any
    frames: int


class _Asker:
    """Runs one model on clips."""

    def __init__(self, model: Any) -> None:
        self.model, self.arch = model, architecture_of(model)
        first = next(model.parameters())
        self.device, self.dtype = first.device, first.dtype

    def pixels(self, segments: list[Segment]) -> Tensor:
        """What the model is shown ``[T, 3, H, W]``."""
        return normalise(render_segments(segments)).to(self.device, self.dtype)

    def watch(self, segments: list[Segment]) -> _Watched:
        """The cache after the video."""
        pixels = self.pixels(segments)
        ids = torch.tensor([self.arch.prefix_ids(len(pixels))], device=self.device)
        out = self.model(**self.arch.inputs(pixels[None], ids), use_cache=True, logits_to_keep=1)
        return _Watched(out.past_key_values, len(pixels))

    def ask(self, video: _Watched | Tensor, question: Question) -> bool:
        """Whether the likeliest candidate is the answer.

        The question follows a cached video, which stays as it is, or goes with the video into one
        forward pass.
        """
        if not isinstance(video, _Watched):
            return self._ask_whole(video, question)
        ids = torch.tensor([[*encode(question.question), ASSISTANT_ID]], device=self.device)
        out = self.model(
            **self.arch.more(video.frames, ids),
            past_key_values=copy.deepcopy(video.cache),
            use_cache=True,
            logits_to_keep=1,
        )
        return _best(out.logits[0, -1], question) == question.answer

    def _ask_whole(self, pixels: Tensor, question: Question) -> bool:
        row = [*self.arch.prefix_ids(len(pixels)), *encode(question.question), ASSISTANT_ID]
        ids = torch.tensor([row], device=self.device)
        out = self.model(**self.arch.inputs(pixels[None], ids), logits_to_keep=1)
        return _best(out.logits[0, -1], question) == question.answer


def _best(logits: Tensor, question: Question) -> str:
    """The candidate with the largest logit."""
    options = [encode(c)[0] for c in question.candidates]
    return question.candidates[int(logits[options].argmax())]


@torch.no_grad()
def evaluate(
    model: Any,
    questions: int = 2000,
    seed: int = 1,
    frames: int = 16,
    *,
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    whole_prompt: bool = False,
    control: int = 480,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> EvalResult:
    """Measure ``model`` on at least ``questions`` questions about held-out clips.

    Args:
        model: The tiny model, or any model with its tokens and interface.
        questions: Rounded up to the same number for each of the twelve types.
        seed: Chooses the clips; no seed ever coincides with training data.
        frames: 4, 8, 16 or 32 per clip.
        context: Called once; the evaluation runs inside the context manager that it returns.
        whole_prompt: One forward pass per question instead of one per clip, for methods that
            look at the question while they read the video.  Slower.
        control: How many questions also get the video of another clip.
        progress: Called with the number of finished and of all clips.
    """
    plans = evaluation_set(questions, seed, frames)
    asker = _Asker(model)
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    wrong_right = wrong_asked = 0
    previous: _Watched | Tensor | None = None
    was_training = model.training
    model.eval()
    with context():
        for done, plan in enumerate(plans):
            video = (asker.pixels if whole_prompt else asker.watch)(plan.segments)
            for question in plan.questions:
                asked[question.type] += 1
                right[question.type] += asker.ask(video, question)
                if previous is not None and wrong_asked < control:
                    wrong_asked += 1
                    wrong_right += asker.ask(previous, question)
            previous = video
            progress(done + 1, len(plans))
    model.train(was_training)
    return EvalResult(
        accuracy=sum(right.values()) / sum(asked.values()),
        accuracy_by_type={t: right[t] / asked[t] for t in TYPES},
        blind_accuracy_by_type=blind_accuracy(plans, frames),
        wrong_video_accuracy=wrong_right / max(1, wrong_asked),
        questions=sum(asked.values()),
        questions_by_type=dict(asked),
        clips=len(plans),
        frames=frames,
        seed=seed,
    )
