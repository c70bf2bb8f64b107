"""Training code: equality with the model, resume, interrupts, optimiser."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from earlytom.errors import ConfigError
from earlytom.files import atomic_write
from earlytom.tiny import Phase, TrainConfig, TrainingInterrupted, train
from earlytom.tiny.architecture import FrameEncoder, build_model, pool_tokens
from earlytom.tiny.checkpoint import load_checkpoint
from earlytom.tiny.clips import plan_clip
from earlytom.tiny.optim import MatrixOptimizer, orthogonalise
from earlytom.tiny.packed_lm import PackedLanguageModel
from earlytom.tiny.packing import DrawClips, video_targets
from earlytom.tiny.render import render
from earlytom.tiny.stream import stream
from earlytom.tiny.vocabulary import USER_ID, VIDEO_ID
from earlytom.tiny.world import CELLS


def smoke(out: Path, **changes: object) -> TrainConfig:
    """A run of a few seconds."""
    base = TrainConfig(
        out=out,
        vision_steps=3,
        vision_shallow=2,
        vision_schedule=((0, 1.0), (3, 0.1)),
        vision_batch=2,
        language_schedule=((0, 1.0), (4, 0.1)),
        seed=4,  # six shots of this seed cover every number of shapes
        bank_shots=6,
        val_shots=6,
        val_frames=4,
        phases=(Phase(4, 1, 2), Phase(8, 1, 2)),
        save_every=1,
        eval_every=2,
        val_clips=1,
        compiled=False,
        workers=0,
        threads=1,
    )
    return replace(base, **changes)


class Stop:
    """Reports that press Ctrl-C at one step of one stage."""

    def __init__(self, stage: str, step: int) -> None:
        self.at = (stage, step)

    def __call__(self, stage: str, step: int, total: int, text: str) -> None:
        if (stage, step) == self.at:
            signal.raise_signal(signal.SIGINT)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("straight")
    return train(smoke(out))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_interrupted_run_resumes_to_the_same_weights(tmp_path: Path, straight: Path) -> None:
    for stop, name in ((Stop("vision", 2), "vision.pt"), (Stop("language", 3), "language.pt")):
        with pytest.raises(TrainingInterrupted, match="checkpoint is in"):
            train(smoke(tmp_path), stop)
        assert (tmp_path / "checkpoints" / name).is_file()
    train(smoke(tmp_path))
    want, got = weights(straight), weights(tmp_path)
    assert want.keys() == got.keys()
    for name in want:
        assert torch.equal(want[name], got[name]), name


def test_run_leaves_model_curve_and_recipe(straight: Path) -> None:
    names = {p.name for p in straight.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= names
    assert {"learning_curve.json", "vision_curve.json", "training.json"} <= names


def test_checkpoint_of_other_settings_is_refused(straight: Path) -> None:
    with pytest.raises(ConfigError, match="vision_lr"):
        train(smoke(straight, vision_lr=0.5))


def test_bad_settings(tmp_path: Path) -> None:
    for bad in ({"phases": ()}, {"phases": (Phase(5, 1, 1),)}, {"vision_steps": 0}):
        with pytest.raises(ConfigError):
            smoke(tmp_path, **bad)
    with pytest.raises(ConfigError):
        smoke(tmp_path).scaled(0)


def test_packed_pass_equals_the_model() -> None:
    model = build_model(1).eval()
    packed = PackedLanguageModel(model, compiled=False)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(1, 2, 3, 112, 112, generator=generator)
    ids = torch.randint(7, 90, (1, 3, 9), generator=generator)
    with torch.no_grad():
        video = FrameEncoder(model, compiled=False)(pixels[0]).view(1, 2 * CELLS, -1)
        hidden = packed(video, ids)[-1][:, -27:].reshape(1, 3, 9, -1)
        got = packed.logits(hidden)
        for j in range(3):
            prefix = torch.tensor([USER_ID] + [VIDEO_ID] * (2 * CELLS + 1))
            whole = torch.cat([prefix, ids[0, j]])[None]
            want = model(input_ids=whole, pixel_values_videos=pixels).logits[0, -9:]
            assert torch.allclose(got[0, j], want, atol=1e-4)


def test_pooling_equals_the_model() -> None:
    model = build_model(0)
    features = torch.randn(2, 196, 256)
    assert torch.allclose(pool_tokens(features), model.model.apply_pooling(features), atol=1e-5)


def test_orthogonalise() -> None:
    for shape in ((3, 20, 50), (3, 50, 20)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
        assert float(values.min()) > 0.4
        assert float(values.max()) < 1.4


def test_optimizer_lowers_a_loss() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(16, 16).bfloat16()
    goal = torch.randn(16, 16) * 0.3
    optimizer = MatrixOptimizer(0.02, 0.01).add(layer.named_parameters())
    x = torch.randn(64, 16)
    losses = []
    for _ in range(60):
        loss = (layer(x.bfloat16()).float() - x @ goal).pow(2).mean()
        loss.backward()
        optimizer.step(1.0)
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.2 * losses[0]


def test_video_targets_do_not_look_ahead() -> None:
    """Cutting the end of a clip off leaves the targets of the other frames as they are."""
    segments, _ = plan_clip(5, shots=3)
    items = np.stack([render(s.shot)[1].item for s in segments]).astype(np.int8)  # type: ignore[union-attr]
    numbered = [replace(s, index=i) for i, s in enumerate(segments)]
    whole = video_targets(numbered, items)
    short = video_targets(numbered[:2], items)
    frames = sum(len(s.frames) for s in numbered[:2])
    for name, value in short.items():
        assert np.array_equal(value, whole[name][:frames]), name


def test_lengths_of_the_curriculum() -> None:
    phases = (Phase(4, 4, 3), Phase(8, 3, 3), Phase(16, 2, 12))
    draw = DrawClips(0, Path("-"), phases, 4, 12, 14, ())
    shapes = [draw.shape(step) for step in range(18)]
    assert shapes[:6] == [(4, 4)] * 3 + [(8, 3)] * 3
    assert shapes[7] == (8, 3)
    assert shapes[11] == (32, 1)


def double(step: int) -> int:
    """Picklable source for the stream test."""
    return 2 * step


def test_stream_is_in_order_for_any_number_of_workers() -> None:
    assert list(stream(double, 3, 9, 0)) == list(stream(double, 3, 9, 2)) == [6, 8, 10, 12, 14, 16]


def test_atomic_write_leaves_the_old_file_when_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        atomic_write(path, fail)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]
    assert load_checkpoint(tmp_path / "none.pt", {}) is None
