"""Stage 2: the language model learns to answer on the tokens of a finished tower.

Vision stays frozen.  The loss is that of the answer word and ``<eos>``, plus the auxiliary
losses of :mod:`earlytom.tiny.auxiliary`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from earlytom.tiny.architecture import TEXT_WIDTH, architecture
from earlytom.tiny.auxiliary import AuxiliaryHeads
from earlytom.tiny.bank import Footage, load_scenery
from earlytom.tiny.config import TrainConfig
from earlytom.tiny.optim import MatrixOptimizer, schedule
from earlytom.tiny.packed_lm import PackedLanguageModel
from earlytom.tiny.packing import DrawClips, PackedBatch, make_clips, pack
from earlytom.tiny.stream import stream
from earlytom.tiny.world import CELLS

HARD = {"motion": 2.0, "rel": 2.0, "after": 2.0, "shots": 1.5, "moment": 1.5, "count": 1.5}
VIDEO_LAYER = 2  # hidden states after this layer carry the video targets
NAMED_LAYER = 3  # ... and after this one the targets of naming tokens
_EOS_WEIGHT = 0.1


class LanguageStage:
    """Model parts, heads, optimiser, data and step count of stage 2."""

    def __init__(
        self, config: TrainConfig, model: Any, footage: Footage, val: Footage, device: torch.device
    ) -> None:
        self.config, self.device, self.footage = config, device, footage
        self.arch = arch = architecture(config.arch)
        self.lm = PackedLanguageModel(arch, model, compiled=config.compiled)
        arch.freeze_vision(model)
        torch.manual_seed(config.seed + 2)
        self.heads = AuxiliaryHeads(arch).to(device, torch.bfloat16)
        named = [(f"lm.{n}", p) for n, p in self.lm.named_parameters()]
        named += [(f"head.{n}", p) for n, p in self.heads.named_parameters()]
        self.optimizer = MatrixOptimizer(config.language_lr, config.language_adam_lr).add(named)
        self.draw = DrawClips(
            seed=config.seed,
            scenery=footage.scenery,
            phases=config.phases,
            short_every=config.short_every,
            long_every=config.long_every,
            slots=config.questions_per_clip,
            hard=tuple(HARD.items()),
            intervals=tuple(arch.intervals),
        )
        self.val = self._validation(val)
        self.step = 0

    def _validation(self, footage: Footage) -> dict[int, list[tuple[PackedBatch, Tensor]]]:
        """Fixed validation batches with tokens per clip length; training never sees their shots."""
        scenery = load_scenery(footage.scenery)
        slots = self.config.questions_per_clip
        batches: dict[int, list[tuple[PackedBatch, Tensor]]] = {}
        for phase in self.config.phases:
            rng = np.random.default_rng((self.config.seed, 6, phase.frames))
            batches[phase.frames] = []
            for _ in range(max(1, self.config.val_clips // phase.batch)):
                clips = make_clips(rng, scenery, phase.frames, phase.batch, slots)
                batch = pack(clips, scenery.items, slots, {})
                tokens = footage.tokens(batch)
                batch.pixels = None
                batches[phase.frames].append((batch, tokens))
        return batches

    def batches(self) -> Iterator[PackedBatch]:
        """The remaining training batches."""
        last = self.config.language_steps
        return stream(self.draw, self.step, last, self.config.workers)

    def _run(self, batch: PackedBatch, tokens: Tensor) -> tuple[list[Tensor], Tensor]:
        """Hidden states of all layers and the ids, for a batch and its visual tokens."""
        ids = torch.from_numpy(batch.ids).to(self.device)
        return self.lm(tokens.to(self.device), ids, batch.interval), ids

    def losses(self, batch: PackedBatch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Weighted losses ``answer``, ``eos``, ``video``, ``named``; accuracies of the heads."""
        video_tokens = self.footage.tokens(batch)
        states, ids = self._run(batch, video_tokens)
        size, slots, block = ids.shape
        asked = states[-1][:, -slots * block :].reshape(size, slots, block, -1)
        target = torch.from_numpy(batch.target).to(self.device)
        at = target >= 0
        logits = self.lm.logits(asked[at])
        each = functional.cross_entropy(logits, target[at], reduction="none")
        is_eos = torch.zeros_like(at)
        is_eos[..., 1:] = at[..., :-1] & at[..., 1:]
        ends = is_eos[at]
        weight = torch.from_numpy(batch.weight).to(self.device)
        weight = weight[weight > 0]
        losses = {
            "answer": (each[~ends] * weight).sum() / weight.sum(),
            "eos": each[ends].mean() * _EOS_WEIGHT,
        }
        first, count = len(self.arch.before), video_tokens.shape[1]
        seen = states[VIDEO_LAYER][:, first : first + count].reshape(size, -1, CELLS, TEXT_WIDTH)
        video, right = self.heads.video_losses(seen, batch.video)
        losses["video"] = torch.stack(list(video.values())).mean()
        blocks = states[NAMED_LAYER][:, -slots * block :].reshape(size, slots, block, -1)
        b, j, k = torch.from_numpy(batch.named_at).to(self.device).T
        named, named_right = self.heads.named_losses(blocks[b, j, k], batch.named)
        losses["named"] = torch.stack(list(named.values())).mean()
        scores = {f"video_{k}": v for k, v in right.items()}
        scores |= {f"video_{k}_loss": v.detach() for k, v in video.items() if k not in right}
        scores |= {f"named_{k}": v for k, v in named_right.items()}
        scores |= {f"named_{k}_loss": v.detach() for k, v in named.items() if k not in named_right}
        return losses, scores

    def train_step(self, batch: PackedBatch) -> dict[str, float]:
        """One update; returns losses and accuracies of the auxiliary heads."""
        losses, scores = self.losses(batch)
        scale = schedule(self.step, self.config.language_schedule, warmup=30)
        fade = self.config.auxiliary_weight * max(0.25, scale)
        total = losses["answer"] + losses["eos"] + fade * (losses["video"] + losses["named"])
        total.backward()
        self.optimizer.step(scale)
        self.step += 1
        return {k: float(v.detach()) for k, v in {**losses, **scores}.items()}

    @torch.no_grad()
    def evaluate(self, frames: int) -> dict[str, float]:
        """Accuracy by question type over the four candidates, on the validation clips."""
        right: dict[str, list[int]] = {}
        for batch, tokens in self.val[frames]:
            states, ids = self._run(batch, tokens)
            size, slots, block = ids.shape
            asked = states[-1][:, -slots * block :].reshape(size, slots, block, -1)
            for b, j, kind, options, answer in batch.choices:
                place = int((batch.target[b, j] >= 0).argmax())
                scores = self.lm.logits(asked[b, j, place])[options]
                right.setdefault(kind, []).append(int(int(scores.argmax()) == answer))
        return {kind: sum(v) / len(v) for kind, v in sorted(right.items())}

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue exactly."""
        return {"step": self.step, "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict` (weights come with the optimiser's master copies)."""
        self.step = int(state["step"])
        self.optimizer.load_state_dict(state["optimizer"])
