"""The whole training run: vision stage, feature bank, language stage, published model."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from earlytom.tiny.architecture import architecture, build_model, normalise
from earlytom.tiny.bank import Banked, DrawShot, Footage, Live, ShotSet, build_bank
from earlytom.tiny.checkpoint import load_checkpoint, save_checkpoint, save_json
from earlytom.tiny.config import TrainConfig
from earlytom.tiny.language_stage import LanguageStage
from earlytom.tiny.publish import publish
from earlytom.tiny.vision_stage import VisionStage, standardise_tokens

logger = logging.getLogger(__name__)

Report = Callable[[str, int, int, str], None]  # (stage, step, total, text)
_SAMPLE_SHOTS = 64  # shots that give the mean and scale of the projected tokens


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C during training, after the checkpoint has been written."""


@contextmanager
def keep_on_interrupt(save: Callable[[], None], folder: Path) -> Iterator[Callable[[], None]]:
    """Turn Ctrl-C into a saved checkpoint and :class:`TrainingInterrupted`.

    Yields a function to call between steps: the first Ctrl-C only takes effect there, so that the
    checkpoint is never of half a step.  A second Ctrl-C stops at once, without saving.
    """
    pressed: list[bool] = []

    def on_signal(number: int, frame: Any) -> None:
        if pressed:
            signal.default_int_handler(number, frame)
        pressed.append(True)
        logger.warning("stopping after this step")

    def check() -> None:
        if pressed:
            save()
            raise TrainingInterrupted(
                f"interrupted; the checkpoint is in {folder}, run the same command again to go on"
            )

    in_main = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGINT, on_signal) if in_main else None
    try:
        yield check
    finally:
        if in_main:
            signal.signal(signal.SIGINT, previous)


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {k: round(v, 4) for k, v in values.items()}


class _Checkpoint:
    """The checkpoint of a stage, loaded if asked for, and its log.

    It is saved by time, because steps take ten times as long on a busy machine.
    """

    def __init__(
        self,
        stage: VisionStage | LanguageStage,
        path: Path,
        recipe: dict[str, Any],
        config: TrainConfig,
    ) -> None:
        self.stage, self.path, self.recipe = stage, path, recipe
        self.log: list[dict[str, Any]] = []
        state = load_checkpoint(path, recipe) if config.resume else None
        if state is not None:
            stage.load_state_dict(state)
            self.log = state["log"]
        self._every, self._saved = config.save_seconds, time.monotonic()

    def save(self) -> None:
        """Save now."""
        state = {**self.stage.state_dict(), "recipe": self.recipe, "log": self.log}
        save_checkpoint(self.path, state)
        self._saved = time.monotonic()

    def save_if_due(self, last: bool) -> None:
        """Save after the last step, or if the last time is long ago."""
        if last or time.monotonic() - self._saved >= self._every:
            self.save()


def train_vision(config: TrainConfig, model: Any, device: torch.device, report: Report) -> None:
    """Run (or finish) stage 1 on ``model`` in place."""
    path = config.out / "checkpoints" / "vision.pt"
    recipe = config.vision_recipe()
    stage = VisionStage(config, model, device)
    checkpoint = _Checkpoint(stage, path, recipe, config)
    log = checkpoint.log

    smooth: dict[str, float] = {}
    with keep_on_interrupt(checkpoint.save, path.parent) as check_interrupt:
        for batch in stage.batches():
            for name, value in stage.train_step(batch).items():
                smooth[name] = 0.95 * smooth.get(name, value) + 0.05 * value
            total = sum(smooth.values())
            report("vision", stage.step, config.vision_steps, f"loss {total:.2f}")
            last = stage.step == config.vision_steps
            if stage.step % config.eval_every == 0 or last:
                entry = {"step": stage.step, **stage.evaluate()}
                entry |= {f"loss_{k}": v for k, v in smooth.items()}
                log.append(_rounded(entry))
                logger.info("vision %s", log[-1])
                save_json(config.out / "vision_curve.json", log)
            checkpoint.save_if_due(last)
            check_interrupt()


@torch.no_grad()
def prepare_footage(
    config: TrainConfig, model: Any, device: torch.device, report: Report
) -> tuple[Footage, Footage]:
    """Standardise visual tokens; return the shots for training and for validation.

    Where frames can be encoded apart, that is done here.  A finished bank is used again on resume.
    """
    arch = architecture(config.arch)
    plain = arch.encoder(model, compiled=False)
    draw = DrawShot(config.seed, 0)
    sample = [
        plain(normalise(draw(i)[1][::4], torch.bfloat16).to(device)).cpu()
        for i in range(min(_SAMPLE_SHOTS, config.bank_shots))
    ]
    standardise_tokens(arch.last_linear(model), torch.stack(sample))
    encoder = arch.encoder(model, compiled=config.compiled)
    if not arch.frames_apart:
        sizes = (config.bank_shots, config.val_shots)
        live = [Live(encoder, ShotSet(config.seed, i, n), device) for i, n in enumerate(sizes)]
        return live[0], live[1]
    folders = []
    recipe = {**config.vision_recipe(), "bank": config.bank_shots, "val": config.val_shots}
    for split, size in ((1, config.val_shots), (0, config.bank_shots)):
        name = ("bank", "validation bank")[split]
        folder = config.out / "checkpoints" / name.replace(" ", "_")
        folders.append(folder)
        done = folder / "done.pt"
        if config.resume and load_checkpoint(done, recipe) is not None:
            continue
        build_bank(
            encoder,
            folder,
            seed=config.seed,
            split=split,
            size=size,
            device=device,
            workers=config.workers,
            report=lambda n, name=name, size=size: report(name, n, size, ""),  # type: ignore[misc]
        )
        save_checkpoint(done, {"recipe": recipe})
    return Banked(folders[1]), Banked(folders[0])


def train_language(
    config: TrainConfig,
    model: Any,
    footage: tuple[Footage, Footage],
    device: torch.device,
    report: Report,
) -> None:
    """Run (or finish) stage 2 on ``model`` in place; publishes interim weights in its last part."""
    path = config.out / "checkpoints" / "language.pt"
    recipe = config.recipe()
    stage = LanguageStage(config, model, *footage, device)
    checkpoint = _Checkpoint(stage, path, recipe, config)
    log = checkpoint.log

    smooth: dict[str, float] = {}
    longest = max(p.frames for p in config.phases)
    with keep_on_interrupt(checkpoint.save, path.parent) as check_interrupt:
        for batch in stage.batches():
            for name, value in stage.train_step(batch).items():
                if value == value:  # a batch may have no example of an auxiliary target
                    smooth[name] = 0.98 * smooth.get(name, value) + 0.02 * value
            report("language", stage.step, config.language_steps, f"loss {smooth['answer']:.3f}")
            last = stage.step == config.language_steps
            if stage.step % config.eval_every == 0 or last:
                frames = longest if last else min(stage.draw.phase_at(stage.step).frames, longest)
                accuracy = stage.evaluate(frames)
                entry = {
                    "step": stage.step,
                    "frames": frames,
                    "loss": round(smooth["answer"], 4),
                    "accuracy": round(sum(accuracy.values()) / len(accuracy), 4),
                    "accuracy_by_type": _rounded(accuracy),
                    "auxiliary": _rounded({k: v for k, v in smooth.items() if k != "answer"}),
                }
                log.append(entry)
                logger.info("language %s", entry)
                save_json(config.out / "learning_curve.json", log)
                if frames == longest:
                    publish(model, config.out, recipe)
            checkpoint.save_if_due(last)
            check_interrupt()


def train(config: TrainConfig, report: Report = lambda *_: None) -> Path:
    """Train the tiny model and return the folder with the finished weights."""
    torch.set_num_threads(config.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build_model(config.seed, config.arch).to(device, torch.bfloat16)
    train_vision(config, model, device, report)
    footage = prepare_footage(config, model, device, report)
    train_language(config, model, footage, device, report)
    publish(model, config.out, config.recipe())
    return config.out
