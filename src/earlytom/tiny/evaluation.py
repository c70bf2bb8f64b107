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

from earlytom.tiny.architecture import normalise
from earlytom.tiny.clips import render_segments
from earlytom.tiny.facts import Segment
from earlytom.tiny.held_out import blind_accuracy, evaluation_set
from earlytom.tiny.questions import TYPES, Question
from earlytom.tiny.vocabulary import ASSISTANT_ID, USER_ID, VIDEO_ID, encode
from earlytom.tiny.world import CELLS


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


class _Asker:
    """Runs one model on clips."""

    def __init__(self, model: Any) -> None:
        self.model = model
        first = next(model.parameters())
        self.device, self.dtype = first.device, first.dtype

    def watch(self, segments: list[Segment]) -> Any:
        """The cache after ``<user>`` and the video."""
        pixels = normalise(render_segments(segments)).to(self.device, self.dtype)
        ids = [USER_ID] + [VIDEO_ID] * (CELLS * len(pixels) + 1)
        out = self.model(
            input_ids=torch.tensor([ids], device=self.device),
            pixel_values_videos=pixels[None],
            use_cache=True,
            logits_to_keep=1,
        )
        return out.past_key_values

    def ask(self, cache: Any, question: Question) -> bool:
        """Whether the likeliest candidate is the answer; leaves ``cache`` as it is."""
        ids = [*encode(question.question), ASSISTANT_ID]
        out = self.model(
            input_ids=torch.tensor([ids], device=self.device),
            past_key_values=copy.deepcopy(cache),
            use_cache=True,
            logits_to_keep=1,
        )
        return _best(out.logits[0, -1], question) == question.answer

    def ask_whole(self, segments: list[Segment], question: Question) -> bool:
        """The same with video and question in one forward pass."""
        pixels = normalise(render_segments(segments)).to(self.device, self.dtype)
        video = [VIDEO_ID] * (CELLS * len(pixels) + 1)
        ids = [USER_ID, *video, *encode(question.question), ASSISTANT_ID]
        out = self.model(
            input_ids=torch.tensor([ids], device=self.device),
            pixel_values_videos=pixels[None],
            logits_to_keep=1,
        )
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
    previous: Any = None
    was_training = model.training
    model.eval()
    with context():
        for done, plan in enumerate(plans):
            cache = None if whole_prompt else asker.watch(plan.segments)
            for question in plan.questions:
                asked[question.type] += 1
                right[question.type] += (
                    asker.ask_whole(plan.segments, question)
                    if whole_prompt
                    else asker.ask(cache, question)
                )
                if previous is not None and wrong_asked < control:
                    wrong_asked += 1
                    wrong_right += (
                        asker.ask_whole(previous, question)
                        if whole_prompt
                        else asker.ask(previous, question)
                    )
            previous = plan.segments if whole_prompt else cache
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
