"""Settings of a training run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from earlytom.checks import check_choice
from earlytom.errors import ConfigError

ARCHITECTURES = ("llava_onevision", "qwen2_5_vl")
DEFAULT_ARCH = "llava_onevision"


@dataclass(frozen=True)
class Phase:
    """A share of the language stage: ``steps`` batches of ``batch`` clips of ``frames`` frames."""

    frames: int
    batch: int
    steps: int


def _phases() -> tuple[Phase, ...]:
    return (Phase(4, 12, 450), Phase(8, 8, 300), Phase(16, 6, 1400))


@dataclass(frozen=True)
class TrainConfig:
    """Everything that determines a training run, except the machine; see also :meth:`of`.

    ``arch`` is the model type.  ``vision_*`` describe the dense per-frame pretraining
    (``vision_shallow`` is the number of steps with every second layer off, ``vision_schedule`` and
    ``language_schedule`` give (step, learning-rate factor) knots), ``bank_shots`` / ``val_shots``
    how many shots the language stage has, ``phases`` its curriculum.  In the last phase one batch
    in ``short_every`` has clips of half the frames and one in ``long_every`` of twice the frames.
    ``compiled`` and ``workers`` change speed only (``workers=0`` draws data in the training
    process); checkpoints are written every ``save_seconds``.
    """

    out: Path
    seed: int = 0
    resume: bool = True
    vision_steps: int = 1200
    vision_shallow: int = 864
    vision_schedule: tuple[tuple[int, float], ...] = (
        (0, 1.0),
        (576, 1.0),
        (1000, 0.51),
        (1200, 0.01),
    )
    vision_batch: int = 32
    vision_lr: float = 0.02
    vision_adam_lr: float = 2e-3
    val_frames: int = 192
    bank_shots: int = 1800
    val_shots: int = 160
    phases: tuple[Phase, ...] = field(default_factory=_phases)
    short_every: int = 4
    long_every: int = 12
    language_lr: float = 0.007
    language_adam_lr: float = 1.5e-3
    language_schedule: tuple[tuple[int, float], ...] = ((0, 1.0), (400, 0.875), (2150, 0.01))
    auxiliary_weight: float = 2.0
    questions_per_clip: int = 14
    save_seconds: float = 120.0
    eval_every: int = 200
    val_clips: int = 96
    compiled: bool = True
    workers: int = 1
    threads: int = 2
    arch: str = DEFAULT_ARCH

    @classmethod
    def of(cls, arch: str, out: Path, **changes: Any) -> TrainConfig:
        """The settings that were found for a family, with ``changes``."""
        from earlytom.tiny.architecture import architecture  # needs torch

        return cls(out=out, arch=arch, **{**architecture(arch).settings, **changes})

    def __post_init__(self) -> None:
        check_choice("arch", self.arch, ARCHITECTURES)
        if not self.phases:
            raise ConfigError("phases must not be empty")
        for phase in self.phases:
            if phase.frames not in (4, 8, 16, 32) or phase.batch < 1 or phase.steps < 1:
                raise ConfigError(f"phase {phase} needs frames in 4, 8, 16, 32 and steps >= 1")
        for name in ("vision_steps", "vision_batch", "val_clips", "eval_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.bank_shots < 4 or self.val_shots < 4:
            raise ConfigError("bank_shots and val_shots must be at least 4")
        if not self.save_seconds >= 0:
            raise ConfigError(f"save_seconds must not be negative, got {self.save_seconds}")

    @property
    def language_steps(self) -> int:
        """Steps of the language stage, all phases together."""
        return sum(p.steps for p in self.phases)

    def scaled(self, factor: float) -> TrainConfig:
        """The same run with all step counts and bank sizes multiplied by ``factor``."""
        if not 0 < factor <= 10:
            raise ConfigError(f"scale must be in (0, 10], got {factor}")
        return replace(
            self,
            vision_steps=max(1, round(self.vision_steps * factor)),
            vision_shallow=round(self.vision_shallow * factor),
            vision_schedule=tuple((round(s * factor), f) for s, f in self.vision_schedule),
            bank_shots=max(32, round(self.bank_shots * factor)),
            val_shots=max(32, round(self.val_shots * min(1.0, factor))),
            val_clips=max(12, round(self.val_clips * min(1.0, factor))),
            language_schedule=tuple((round(s * factor), f) for s, f in self.language_schedule),
            phases=tuple(replace(p, steps=max(1, round(p.steps * factor))) for p in self.phases),
        )

    def vision_recipe(self) -> dict[str, Any]:
        """The settings that determine stage 1, as plain data."""
        data = self.recipe()
        return {k: v for k, v in data.items() if k in ("seed", "arch") or k.startswith("vision_")}

    def recipe(self) -> dict[str, Any]:
        """The settings that determine the weights, as plain JSON data.

        Checkpoints are compared by it, so the default family is not named: there was no other.
        """
        data = asdict(self)
        names = ("out", "resume", "compiled", "workers", "threads", "save_seconds", "val_frames")
        for name in names:
            data.pop(name)
        data["phases"] = [asdict(p) for p in self.phases]
        if self.arch == DEFAULT_ARCH:
            data.pop("arch")
        return data
