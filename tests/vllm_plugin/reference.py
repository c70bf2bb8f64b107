"""Our transformers engine on the same requests, one forward of the whole prompt per token."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from earlytom.method import Method
from tests.vllm_plugin.engine import TOKENS, Answer

TOLERANCE = 1e-4  # of log probabilities in float32
SEEN: dict[str, float] = {}  # largest difference of every test


class Reference:
    """A checkpoint in transformers.

    Videos are encoded one by one, so they may differ in length; their features, in which a method
    has marked what is gone, are put into the embeddings of the prompt.
    """

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.processor = AutoProcessor.from_pretrained(folder)
        self.model: Any = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=torch.float32
        ).eval()

    # ------------------------------------------------------------------ of a family
    def video_rows(self, video: Any) -> Tensor:
        """Features of a video ``[placeholders, dim]``."""
        raise NotImplementedError

    def image_rows(self, image: Any) -> Tensor:
        """Features of an image ``[placeholders, dim]``."""
        raise NotImplementedError

    def positions(self, ids: Tensor, videos: Sequence[Any], images: Sequence[Any]) -> Tensor | None:
        """Positions of a prompt of ``ids [L]``; None: as the model counts."""
        return None

    # ------------------------------------------------------------------ answers
    @torch.no_grad()
    def ask(
        self,
        prompt: str | list[int],
        videos: Sequence[Any] = (),
        images: Sequence[Any] = (),
        method: Method | None = None,
        tokens: int = TOKENS,
    ) -> Answer:
        """Answer greedily, compressed by ``method``."""
        ids = self.processor.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        with contextlib.nullcontext() if method is None else method(self.model):
            rows = {
                self.video_token: [self.video_rows(v) for v in videos],
                self.image_token: [self.image_rows(i) for i in images],
            }
            wide: list[int] = []
            for token in ids:
                wide += [token] * (len(rows[token].pop(0)) if rows.get(token) else 1)
            return self._greedy(wide, videos, images, tokens)

    def _greedy(
        self, ids: list[int], videos: Sequence[Any], images: Sequence[Any], tokens: int
    ) -> Answer:
        found: list[int] = []
        logprobs = []
        prompt = torch.tensor(ids)
        visual = {
            self.video_token: torch.cat([self.video_rows(v) for v in videos] or [torch.zeros(0)]),
            self.image_token: torch.cat([self.image_rows(i) for i in images] or [torch.zeros(0)]),
        }
        base = self.positions(prompt, videos, images)
        for _ in range(tokens):
            now = torch.tensor(ids + found)
            embedded = self.model.get_input_embeddings()(now)
            for token, rows in visual.items():
                if len(rows):
                    embedded[: len(ids)][prompt == token] = rows.to(embedded)
            given: dict[str, Any] = {"inputs_embeds": embedded[None], "use_cache": False}
            if base is not None:
                more = base[:, -1:].max() + 1 + torch.arange(len(found))
                whole = torch.cat([base, more.expand(base.shape[0], -1)], 1)
                given["position_ids"] = whole[:, None]
            logits = self.model(**given).logits[0, -1].float().log_softmax(-1)
            best = logits.topk(5)
            logprobs.append(dict(zip(best.indices.tolist(), best.values.tolist(), strict=True)))
            found.append(int(best.indices[0]))
        return Answer(tuple(found), tuple(logprobs), tuple(ids), 0)


class LlavaReference(Reference):
    """The shipped model."""

    video_token, image_token = 6, 5

    def video_rows(self, video: Any) -> Tensor:
        frames = self.processor.video_processor(video, return_tensors="pt")
        features = self.model.model.get_video_features(frames["pixel_values_videos"])
        rows = features if isinstance(features, Tensor) else features.pooler_output
        rows = rows[0]
        missing = len(video) * 49 + 1 - len(rows)  # older versions leave out the newline
        newline = self.model.model.image_newline[None]
        return torch.cat([rows, newline]) if missing else rows

    def image_rows(self, image: Any) -> Tensor:
        done = self.processor.image_processor(image, return_tensors="pt")
        features = self.model.model.get_image_features(done["pixel_values"], done["image_sizes"])
        rows = features if isinstance(features, tuple | list) else features.pooler_output
        return torch.cat(list(rows))


class QwenReference(Reference):
    """A Qwen2.5-VL; positions as that model was trained with.

    Text behind a video goes on behind the largest position of the video. transformers 5 counts on
    from the larger side of a frame instead, so that text behind a long video would stand inside it.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        config = self.model.config
        self.video_token, self.image_token = config.video_token_id, config.image_token_id

    def _video(self, video: Any) -> dict[str, Tensor]:
        from transformers.video_utils import VideoMetadata

        frames, when = video
        known = VideoMetadata(**{k: v for k, v in when.items() if k != "do_sample_frames"})
        text = self.processor.tokenizer.decode([self.video_token])
        done: dict[str, Tensor] = self.processor(
            text=[text],
            videos=[np.asarray(frames)],
            video_metadata=[known],
            do_sample_frames=False,
            return_tensors="pt",
        )
        return done

    def video_rows(self, video: Any) -> Tensor:
        done = self._video(video)
        features = self.model.model.get_video_features(
            done["pixel_values_videos"], done["video_grid_thw"]
        )
        rows = features if isinstance(features, tuple | list) else features.pooler_output
        return torch.cat(list(rows))

    def image_rows(self, image: Any) -> Tensor:
        done = self.processor.image_processor(image, return_tensors="pt")
        features = self.model.model.get_image_features(done["pixel_values"], done["image_grid_thw"])
        rows = features if isinstance(features, tuple | list) else features.pooler_output
        return torch.cat(list(rows))

    def positions(self, ids: Tensor, videos: Sequence[Any], images: Sequence[Any]) -> Tensor:
        grids = {self.video_token: [], self.image_token: []}
        for video in videos:
            done = self._video(video)
            interval = 2 * torch.as_tensor(done["second_per_grid_ts"]).float()
            grids[self.video_token].append((done["video_grid_thw"][0].tolist(), interval))
        for image in images:
            done = self.processor.image_processor(image, return_tensors="pt")
            grids[self.image_token].append((done["image_grid_thw"][0].tolist(), torch.ones(1)))
        found, place, i = [], 0, 0
        while i < len(ids):
            waiting = grids.get(int(ids[i]))
            if not waiting:
                found.append(torch.full((3, 1), place))
                place, i = place + 1, i + 1
                continue
            (t, h, w), interval = waiting.pop(0)
            sides = (torch.arange(t) * interval).long(), torch.arange(h // 2), torch.arange(w // 2)
            own = torch.stack(torch.meshgrid(*sides, indexing="ij")).flatten(1)
            found.append(own + place)
            place, i = place + int(own.max()) + 1, i + own.shape[1]
        return torch.cat(found, 1)


def difference(a: Answer, b: Answer, least: float = -math.inf) -> float:
    """Largest difference of log probabilities of tokens that both have among their best.

    Args:
        a: an answer.
        b: another one.
        least: log probability in ``b`` of tokens that count.
    """
    pairs = [
        abs(x[token] - y[token])
        for x, y in zip(a.logprobs, b.logprobs, strict=True)
        for token in x.keys() & y.keys()
        if y[token] >= least
    ]
    return max(pairs)


def same(got: Answer, expected: Answer) -> None:
    """Compare greedy tokens and their log probabilities; the largest difference is noted."""
    test = os.environ["PYTEST_CURRENT_TEST"].rpartition(" ")[0]
    assert got.tokens == expected.tokens
    SEEN[test] = max(SEEN.get(test, 0.0), difference(got, expected))
    assert SEEN[test] < TOLERANCE
