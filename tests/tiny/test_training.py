"""Training code: equality with the model, resume, interrupts, optimiser."""

from __future__ import annotations

import hashlib
import json
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from earlytom.errors import ConfigError
from earlytom.files import atomic_write
from earlytom.tiny import Phase, TrainConfig, TrainingInterrupted, train, training, weights_path
from earlytom.tiny.architecture import architecture, build_model
from earlytom.tiny.checkpoint import load_checkpoint
from earlytom.tiny.clips import plan_clip
from earlytom.tiny.config import ARCHITECTURES
from earlytom.tiny.llava_onevision import pool_tokens
from earlytom.tiny.optim import MatrixOptimizer, orthogonalise
from earlytom.tiny.packed_lm import PackedLanguageModel
from earlytom.tiny.packing import DrawClips, video_targets
from earlytom.tiny.render import frame_batch, pair_up, render
from earlytom.tiny.stream import stream

FAMILIES = pytest.mark.parametrize("arch", ARCHITECTURES)
# of the checkpoints that the first family had before there was a second one
SLOTS = {"vision.pt": "6096f5289284c339", "language.pt": "559cff7edc24e736"}


def smoke(out: Path, arch: str = ARCHITECTURES[0], **changes: object) -> TrainConfig:
    """A run of a few seconds."""
    base = TrainConfig(
        out=out,
        arch=arch,
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
        save_seconds=0,
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


@pytest.fixture(scope="module", params=ARCHITECTURES)
def arch(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def straight(arch: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("straight")
    return train(smoke(out, arch))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_interrupted_run_resumes_to_the_same_weights(
    tmp_path: Path, straight: Path, arch: str
) -> None:
    for stop, name in ((Stop("vision", 2), "vision.pt"), (Stop("language", 3), "language.pt")):
        with pytest.raises(TrainingInterrupted, match="checkpoint is in"):
            train(smoke(tmp_path, arch), stop)
        assert (tmp_path / "checkpoints" / name).is_file()
    train(smoke(tmp_path, arch))
    want, got = weights(straight), weights(tmp_path)
    assert want.keys() == got.keys()
    for name in want:
        assert torch.equal(want[name], got[name]), name


def test_run_leaves_model_curve_and_recipe(straight: Path) -> None:
    names = {p.name for p in straight.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= names
    assert {"learning_curve.json", "vision_curve.json", "training.json"} <= names


def test_checkpoint_of_other_settings_is_refused(straight: Path, arch: str) -> None:
    with pytest.raises(ConfigError, match="vision_lr"):
        train(smoke(straight, arch, vision_lr=0.5))
    other = next(a for a in ARCHITECTURES if a != arch)
    with pytest.raises(ConfigError, match="arch"):
        train(smoke(straight, other))


def test_older_checkpoints_of_the_first_family_still_fit(straight: Path, arch: str) -> None:
    """Names and shapes in them are what they were before there was a second family."""
    if arch != ARCHITECTURES[0]:
        pytest.skip("there are none")
    for name, digest in SLOTS.items():
        state = torch.load(straight / "checkpoints" / name, weights_only=True)
        assert state.keys() == {"step", "optimizer", "recipe", "log"}
        slots = state["optimizer"]["slots"].items()
        shapes = sorted((k, *(tuple(t.shape) for t in v if t is not None)) for k, v in slots)
        assert hashlib.sha256(json.dumps(shapes).encode()).hexdigest()[:16] == digest, name


def test_recipe_of_the_first_family_is_what_it_was(tmp_path: Path) -> None:
    """Checkpoints are compared by it; the one of the shipped weights is older than the second."""
    shipped = json.loads((weights_path() / "training.json").read_text())
    config = TrainConfig(tmp_path)
    assert json.loads(json.dumps(config.recipe())) == shipped
    vision = {k: v for k, v in shipped.items() if k == "seed" or k.startswith("vision_")}
    assert json.loads(json.dumps(config.vision_recipe())) == vision
    assert TrainConfig.of(ARCHITECTURES[0], tmp_path) == config
    second = TrainConfig.of("qwen2_5_vl", tmp_path)
    assert second.recipe()["arch"] == second.vision_recipe()["arch"] == "qwen2_5_vl"


def test_checkpoints_are_written_by_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(training.time, "monotonic", lambda: now)
    saved = []
    monkeypatch.setattr(training, "save_checkpoint", lambda path, state: saved.append(now))

    class Stage:
        def state_dict(self) -> dict[str, object]:
            return {}

    config = smoke(tmp_path, save_seconds=120)
    checkpoint = training._Checkpoint(Stage(), tmp_path / "x.pt", {}, config)  # type: ignore[arg-type]
    for step in range(10):
        now += 50
        checkpoint.save_if_due(last=step == 9)
    assert saved == [150, 300, 450, 500]


def test_bad_settings(tmp_path: Path) -> None:
    bad: dict[str, object]
    for bad in ({"phases": ()}, {"phases": (Phase(5, 1, 1),)}, {"vision_steps": 0},
                {"arch": "qwen9"}, {"save_seconds": -1}):  # fmt: skip
        with pytest.raises(ConfigError):
            smoke(tmp_path, **bad)  # type: ignore[arg-type]
    with pytest.raises(ConfigError):
        smoke(tmp_path).scaled(0)


@FAMILIES
def test_packed_pass_equals_the_model(arch: str) -> None:
    """Questions beside each other, in one prompt each, and behind a cached video."""
    family = architecture(arch)
    model = family.build_model(1).eval()
    packed = PackedLanguageModel(family, model, compiled=False)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(1, 4, 3, 112, 112, generator=generator)
    ids = torch.randint(7, 90, (1, 3, 9), generator=generator)
    prefix = family.prefix_ids(4)
    with torch.no_grad():
        video = family.encoder(model, compiled=False)(pixels[0]).view(1, -1, 256)
        hidden = packed(video, ids)[-1][:, -27:].reshape(1, 3, 9, -1)
        got = packed.logits(hidden)
        for j, row in enumerate(ids[0]):
            whole = torch.tensor([[*prefix, *row.tolist()]])
            want = model(**family.inputs(pixels, whole)).logits[0, -9:]
            assert torch.allclose(got[0, j], want, atol=1e-4)
        first = family.inputs(pixels, torch.tensor([prefix]))
        cache = model(**first, use_cache=True).past_key_values
        behind = model(**family.more(4, row[None]), past_key_values=cache, use_cache=True)
        assert torch.allclose(behind.logits[0], want, atol=1e-4)


def test_pairs_are_shots_and_cuts() -> None:
    """Both frames of a pair are seen together, in any order, and some pairs have a cut."""
    rng = np.random.default_rng(0)
    batch = frame_batch(rng, 64)
    pairs = pair_up(rng, batch)
    assert sorted(pairs.base.sum(1)) == sorted(batch.base.sum(1))
    cut = (pairs.base[::2] != pairs.base[1::2]).any(1)
    assert 1 < cut.sum() < 16
    at = [next(i for i, p in enumerate(batch.pixels) if np.array_equal(p, q)) for q in pairs.pixels]
    assert np.array_equal(pairs.labels.item, batch.labels.item[at])
    assert np.array_equal(pairs.labels.centre, batch.labels.centre[at])
    assert 4 < sum(a > b for a, b in zip(at[::2], at[1::2], strict=True)) < 28


def test_pooling_equals_the_model() -> None:
    model = build_model(0)
    features = torch.randn(2, 196, 256)
    assert torch.allclose(pool_tokens(features), model.model.apply_pooling(features), atol=1e-5)


def test_orthogonalise() -> None:
    for shape in ((3, 20, 50), (3, 50, 20)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
        assert float(values.min()) > 0.4
        assert float(values.max()) < 1.4


def test_stacked_matrices_are_orthogonalised_one_by_one() -> None:
    torch.manual_seed(0)
    start, grads = torch.randn(3, 8, 8), torch.randn(3, 8, 8)
    stacked = torch.nn.Parameter(start.flatten(0, 1).clone())
    single = [torch.nn.Parameter(x.clone()) for x in start]
    stacked.grad = grads.flatten(0, 1).clone()
    for param, grad in zip(single, grads, strict=True):
        param.grad = grad.clone()
    MatrixOptimizer(0.02, 0.01).add([("attn.qkv.weight", stacked)]).step(1.0)
    MatrixOptimizer(0.02, 0.01).add([(f"{i}.weight", p) for i, p in enumerate(single)]).step(1.0)
    assert torch.allclose(stacked, torch.cat(single), atol=1e-6)


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
    items = [render(s.shot, s.frames)[1].item.astype(np.int8) for s in segments]  # type: ignore[union-attr]
    whole = video_targets(segments, items)
    short = video_targets(segments[:2], items[:2])
    frames = sum(len(s.frames) for s in segments[:2])
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
