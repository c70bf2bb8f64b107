"""Stage 1: dense pretraining of the vision tower and projector.

Every visual token has to tell what its cell shows (shape, colour, digit, letter), where the cell
is, where the object's centre is, and the colours around it, through linear heads that are thrown
away; for every frame that shares the token.  The tower starts with every second layer switched off
(they start as exact identities) and uses all of them for the rest of the stage, which saves a third
of the time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from earlytom.tiny.architecture import TEXT_WIDTH, Architecture, architecture, normalise
from earlytom.tiny.config import TrainConfig
from earlytom.tiny.optim import MatrixOptimizer, schedule
from earlytom.tiny.readout import ReadOut
from earlytom.tiny.render import FrameBatch, frame_batch, pair_up
from earlytom.tiny.stream import stream
from earlytom.tiny.world import CELL, CELLS, COLORS, GRID, IMAGE_SIZE, LETTERS, SHAPES

CLASSES = {"shape": len(SHAPES), "color": len(COLORS), "digit": 10, "letter": len(LETTERS)}
_REGRESSIONS = {"offset": 2, "centre": 2, "cell": 2, "mean": 3, "base": 3}
_ABSOLUTE = ("centre", "cell")  # only where the tower can know where a token is
_BACKGROUND_WEIGHT = 0.3


@dataclass(frozen=True)
class DrawFrames:
    """Picklable source of training batches: ``draw(step)`` depends on seed and step only.

    ``batch`` counts steps of ``frames`` frames each.
    """

    seed: int
    batch: int
    frames: int = 1

    def __call__(self, step: int) -> FrameBatch:
        """The batch of ``step``."""
        return draw_frames(np.random.default_rng((self.seed, 1, step)), self.batch, self.frames)


def draw_frames(rng: np.random.Generator, steps: int, frames: int) -> FrameBatch:
    """Unrelated frames, or steps of two frames that are seen together."""
    batch = frame_batch(rng, steps * frames)
    return batch if frames == 1 else pair_up(rng, batch)


class DenseHeads(ReadOut):
    """Read-outs of the tokens ``[steps, 49, D]``, for every frame of a step."""

    def __init__(self, arch: Architecture) -> None:
        known = {k: n for k, n in _REGRESSIONS.items() if arch.places_seen or k not in _ABSOLUTE}
        sizes = {k: n + 1 for k, n in CLASSES.items()} | known | {"texture": 3, "is_centre": 2}
        super().__init__(sizes, nn.LayerNorm(TEXT_WIDTH), arch.step_frames)


def targets(batch: FrameBatch) -> dict[str, Tensor]:
    """Training targets ``[B, 49, ...]`` of a batch, in units of about one."""
    labels = batch.labels
    size = len(batch.base)
    cells = torch.arange(CELLS)
    grid = torch.stack([cells % GRID, cells // GRID], 1).float()  # (x, y) of every cell
    centre = torch.from_numpy(labels.centre)
    offset = centre / CELL - (grid + 0.5)
    covered = torch.from_numpy(labels.item) >= 0
    classes = torch.from_numpy(labels.classes)
    out = {name: classes[..., i] for i, name in enumerate(CLASSES)}
    return out | {
        "covered": covered,
        "offset": offset,
        "centre": (centre / IMAGE_SIZE - 0.5) * 4,
        "cell": (grid - (GRID - 1) / 2).expand(size, -1, -1) / 2,
        "mean": torch.from_numpy(labels.mean) / 127.5 - 1,
        "base": (torch.from_numpy(batch.base) / 127.5 - 1)[:, None].expand(-1, CELLS, -1) * 2,
        "texture": torch.from_numpy(batch.texture)[:, None].expand(-1, CELLS),
        "is_centre": (covered & (offset.abs().amax(-1) <= 0.5)).long(),
    }


def dense_losses(out: dict[str, Tensor], want: dict[str, Tensor]) -> dict[str, Tensor]:
    """One scalar loss per head."""
    losses: dict[str, Tensor] = {}
    for name, count in CLASSES.items():
        weight = torch.ones(count + 1, device=out[name].device)
        weight[0] = _BACKGROUND_WEIGHT
        losses[name] = functional.cross_entropy(
            out[name].flatten(0, 1), want[name].flatten(), weight=weight
        )
    for name in ("texture", "is_centre"):
        losses[name] = 0.5 * functional.cross_entropy(out[name].flatten(0, 1), want[name].flatten())
    covered = want["covered"][..., None]
    for name in (k for k in _REGRESSIONS if k in out):
        error = (out[name] - want[name]).abs()
        if name in ("offset", "centre"):
            losses[name] = (error * covered).sum() / covered.sum().clamp(min=1)
        else:
            losses[name] = error.mean()
    return losses


class VisionStage:
    """Model parts, heads, optimiser and step count of stage 1."""

    def __init__(self, config: TrainConfig, model: Any, device: torch.device) -> None:
        self.config, self.device = config, device
        self.arch = arch = architecture(config.arch)
        self.encoder = arch.encoder(model, compiled=config.compiled)
        switch_off_odd_layers(arch, model)
        torch.manual_seed(config.seed + 1)
        self.heads = DenseHeads(arch).to(device, torch.bfloat16)
        unused = arch.unused_parameters(model)
        if unused is not None:
            unused.requires_grad_(False)
        named = [(f"vision.{n}", p) for n, p in self.encoder.named_parameters()]
        named += [(f"head.{n}", p) for n, p in self.heads.named_parameters()]
        self.optimizer = MatrixOptimizer(config.vision_lr, config.vision_adam_lr).add(named)
        self.step = 0

    def batches(self) -> Any:
        """The remaining training batches."""
        draw = DrawFrames(self.config.seed, self.config.vision_batch, self.arch.step_frames)
        return stream(draw, self.step, self.config.vision_steps, self.config.workers)

    def forward(self, batch: FrameBatch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Outputs of all heads and their targets."""
        self.encoder.stride = 2 if self.step < self.config.vision_shallow else 1
        pixels = normalise(batch.pixels, torch.bfloat16).to(self.device)
        want = {k: v.to(self.device) for k, v in targets(batch).items()}
        return self.heads(self.encoder(pixels)), want

    def train_step(self, batch: FrameBatch) -> dict[str, float]:
        """One update; returns the losses."""
        losses = dense_losses(*self.forward(batch))
        torch.stack(list(losses.values())).sum().backward()
        self.optimizer.step(schedule(self.step, self.config.vision_schedule, warmup=20))
        self.step += 1
        return {k: float(v.detach()) for k, v in losses.items()}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Accuracy on covered cells per class and mean centre error in pixels."""
        rng, frames = np.random.default_rng((self.config.seed, 2, 0)), self.arch.step_frames
        out, want = self.forward(draw_frames(rng, self.config.val_frames // frames, frames))
        covered = want["covered"]
        result = {}
        for name in CLASSES:
            own = want[name] > 0
            result[name] = float((out[name].argmax(-1) == want[name])[own].float().mean())
        if self.arch.places_seen:
            error = (out["centre"] - want["centre"]).abs()[covered].mean()
            result["centre_px"] = float(error) * IMAGE_SIZE / 4
            result["cell"] = float((out["cell"] - want["cell"]).abs().mean()) * 2
        else:
            error = (out["offset"] - want["offset"]).abs()[covered].mean()
            result["offset_px"] = float(error) * CELL
        result["base"] = float((out["base"] - want["base"]).abs().mean()) * 127.5 / 2
        return result

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue exactly."""
        return {"step": self.step, "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict` (weights come with the optimiser's master copies)."""
        self.step = int(state["step"])
        self.optimizer.load_state_dict(state["optimizer"])


def switch_off_odd_layers(arch: Architecture, model: Any) -> None:
    """Zero the output matrices of every second tower layer, which makes them identities."""
    for linears in arch.layer_outputs(model)[1::2]:
        for linear in linears:
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)


@torch.no_grad()
def standardise_tokens(last: nn.Linear, tokens: Tensor) -> None:
    """Fold mean and scale of sample ``tokens [..., D]`` into the layer that makes them.

    Raw tokens share a large common part; without it they are far apart in direction, which helps
    the language model and any method that compares tokens by cosine.
    """
    flat = tokens.reshape(-1, tokens.shape[-1]).float()
    mean = flat.mean(0)
    scale = (flat - mean).pow(2).mean().rsqrt()
    last.bias.copy_((last.bias.float() - mean) * scale)
    last.weight.copy_(last.weight.float() * scale)
