"""The tiny model with M-RoPE: tower, positions, published folder, everything that runs on it."""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from earlytom.bench.answering import Examiner
from earlytom.bench.contenders import contenders, entry
from earlytom.bench.records import Task, save_unreachable
from earlytom.bench.suite import SuiteClip
from earlytom.cli import app
from earlytom.errors import UnsupportedModelError
from earlytom.pipeline import VideoQA
from earlytom.registry import load_method
from earlytom.tiny import evaluate, make_clip
from earlytom.tiny.architecture import architecture, architecture_of, build_model, normalise
from earlytom.tiny.bank import Live, ShotSet, load_scenery
from earlytom.tiny.clips import plan_clip
from earlytom.tiny.config import Phase, TrainConfig
from earlytom.tiny.language_stage import LanguageStage
from earlytom.tiny.packing import DrawClips, make_clips, pack
from earlytom.tiny.publish import publish
from earlytom.tiny.qwen2_5_vl import END_ID, START_ID, patches
from earlytom.tiny.vision_stage import VisionStage, draw_frames
from earlytom.tiny.vocabulary import ASSISTANT_ID, USER_ID, VIDEO_ID, encode
from earlytom.video import Video

ARCH = architecture("qwen2_5_vl")


@pytest.fixture(scope="module")
def model() -> Any:
    return build_model(2, "qwen2_5_vl").eval()


@pytest.fixture(scope="module")
def folder(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("published")
    publish(model, out, {"seed": 2, "arch": "qwen2_5_vl"})
    return out


def prompt(frames: int) -> torch.Tensor:
    question = encode("how many shots are there?")
    return torch.tensor([[*ARCH.prefix_ids(frames), *question, ASSISTANT_ID]])


@torch.no_grad()
def test_encoder_equals_the_model(model: Any) -> None:
    """More pairs than are encoded at once, and clips of several."""
    pixels = torch.randn(2, 10, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    inputs = ARCH.inputs(pixels, prompt(10).repeat(2, 1))
    out = model.model.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"])
    want = torch.cat(list(getattr(out, "pooler_output", out)))
    got = ARCH.encoder(model, compiled=False)(pixels.flatten(0, 1))
    assert torch.allclose(got.flatten(0, 1), want, atol=1e-4)


@pytest.mark.parametrize("frames", [4, 16, 32])
def test_positions_are_those_of_the_model(model: Any, frames: int) -> None:
    """At whole numbers of seconds, which all versions of transformers read alike."""
    ids = prompt(frames)
    text = ids.shape[1] - len(ARCH.prefix_ids(frames))
    for seconds, interval in ((1.0, None), (2.0, 4.0), (0.0, 0.0)):
        want, _ = model.model.get_rope_index(
            ids,
            mm_token_type_ids=torch.where(ids == VIDEO_ID, 2, 0),
            video_grid_thw=torch.tensor([[frames // 2, 14, 14]]),
            second_per_grid_ts=torch.tensor([seconds]),
        )
        assert torch.equal(ARCH.positions(frames // 2, text, interval), want[:, 0])


def test_a_single_frame_reaches_its_pair() -> None:
    """Each frame of a pair has input values of its own."""
    frames = torch.zeros(4, 3, 112, 112)
    frames[1] = 1
    first, second = patches(frames)
    assert first.mean() == 0.5
    assert not second.any()


def test_training_batches_without_a_bank() -> None:
    phases = (Phase(4, 2, 1), Phase(8, 1, 30))
    draw = DrawClips(4, ShotSet(4, 0, 24), phases, 4, 12, 6, (), intervals=tuple(ARCH.intervals))
    scenery = load_scenery(draw.scenery)
    batch = draw(0)
    assert batch.pixels is not None
    assert batch.pixels.shape == (2, 4, 112, 112, 3)
    assert np.array_equal(batch.pixels, draw(0).pixels)  # type: ignore[arg-type]
    assert {draw(step).interval for step in range(2, 22)} == {None, 0.0, 1.0, 4.0}
    covered = batch.video["shape"] > 0
    for b in range(2):
        for t in range(4):
            shot = scenery.pool.shots[batch.shot[b, t]]
            visible = {k.shape + 1 for k in shot.things if k.visible[batch.frame[b, t]]}
            assert set(batch.video["shape"][b, t][covered[b, t]]) <= visible
    place = batch.video["place"]
    assert np.abs(place).max() < 2
    assert not place[~covered].any()


def test_a_bank_and_live_drawing_have_the_same_targets() -> None:
    from earlytom.tiny.bank import DrawShot

    scenery = load_scenery(ShotSet(4, 0, 24))
    clips = make_clips(np.random.default_rng(0), scenery, 8, 2, 6)
    items = np.stack([DrawShot(4, 0)(i)[2] for i in range(24)])
    banked, live = pack(clips, items, 6, {}), pack(clips, None, 6, {})
    assert banked.pixels is None
    for name, value in banked.video.items():
        assert np.array_equal(value, live.video[name]), name


@pytest.mark.slow
def test_both_stages_learn(model: Any, tmp_path: Path) -> None:
    """A few steps on the same data lower the losses."""
    cpu = torch.device("cpu")
    config = TrainConfig(
        tmp_path, arch="qwen2_5_vl", vision_batch=2, vision_shallow=0, phases=(Phase(4, 2, 1),),
        val_clips=2, questions_per_clip=6, compiled=False, workers=0,
    )  # fmt: skip
    network = copy.deepcopy(model).to(torch.bfloat16)
    vision = VisionStage(config, network, cpu)
    frames = draw_frames(np.random.default_rng(0), 2, 2)
    seen = [sum(vision.train_step(frames).values()) for _ in range(12)]
    assert seen[-1] < 0.6 * seen[0]
    footage = Live(ARCH.encoder(network, compiled=False), ShotSet(4, 0, 24), cpu)
    language = LanguageStage(config, network, footage, footage, cpu)
    clips = language.draw(0)
    read = [language.train_step(clips)["answer"] for _ in range(12)]
    assert read[-1] < 0.6 * read[0]


def test_published_folder(folder: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    loaded = AutoModelForImageTextToText.from_pretrained(folder)
    assert type(loaded).__name__ == "Qwen2_5_VLForConditionalGeneration"
    assert architecture_of(loaded).name == "qwen2_5_vl"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    content = [{"type": "video"}, {"type": "text", "text": "How many shots are there?"}]
    chat = [{"role": "user", "content": content}]
    text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(text.replace("<video>", "<video>" * 98)).input_ids
    assert ids == prompt(4)[0].tolist()
    assert ids[:2] == [USER_ID, START_ID]
    assert ids[100] == END_ID
    card = (folder / "README.md").read_text()
    assert "A `Qwen2_5_VLForConditionalGeneration` with 8.8 million parameters" in card
    assert '"arch": "qwen2_5_vl"' in card


def test_processor_files_match_the_model(folder: Path) -> None:
    vision = json.loads((folder / "config.json").read_text())["vision_config"]
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        data = json.loads((folder / name).read_text())
        assert data["patch_size"] == vision["patch_size"]
        assert data["merge_size"] == vision["spatial_merge_size"]
        assert data["temporal_patch_size"] == vision["temporal_patch_size"]
        assert data["size"] == {"shortest_edge": 112 * 112, "longest_edge": 112 * 112}


def test_video_qa_gives_the_model_what_training_did(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec("torchvision") is not None:
        pytest.skip("the official processor is used")
    qa = VideoQA.load(folder, device="cpu", dtype="float32")
    clip = make_clip(3, 8)
    at = torch.arange(8)
    video = Video(torch.from_numpy(clip.frames), at.double() / 2, 2.0, 4.0, at, total_frames=8)
    given = qa.preprocessor(video, "How many shots are there?")
    want = ARCH.inputs(normalise(clip.frames)[None], prompt(8))
    for name, value in want.items():
        assert torch.allclose(given[name].to(value.dtype), value, atol=1e-5), name
    for method in (None, load_method("evs", retention_ratio=0.25)):
        answer = qa.ask(video, "How many shots are there?", method, max_new_tokens=2)
        assert answer.tokens_in == 4 * 49
        assert answer.tokens_out == (49 if method else 4 * 49)


@pytest.mark.usefixtures("quick_guesser")
def test_evaluation_with_and_without_cache(model: Any) -> None:
    shared = evaluate(model, questions=12, seed=5, frames=4, control=12)
    whole = evaluate(model, questions=12, seed=5, frames=4, control=0, whole_prompt=True)
    assert shared.accuracy_by_type == whole.accuracy_by_type
    method = load_method("evs", retention_ratio=0.25)
    less = evaluate(model, questions=12, seed=5, frames=4, control=0, context=lambda: method(model))
    assert less.questions == 12


def test_benchmark_answers_as_in_plain_calls(model: Any) -> None:
    segments, questions = plan_clip(1, 8)
    examiner = Examiner(model)
    with examiner.replay:
        examiner.open(SuiteClip(1, segments, questions[:3]))
        full = examiner.run(None, examiner.time(None))
        assert full.frames_out == 4
        for label in ("earlytom-budget", "evs", "fastv", "uniform-frames"):
            made = entry(contenders((label,))[0], 0.25, "auto", model, 6)
            logits = examiner.ask(made.method).logits
            for i in range(3):
                assert torch.allclose(logits[i], examiner.plain(made.method, i), atol=2e-3), label
            less = examiner.run(made.method, None)
            assert min(less.retention, less.llm_retention) == pytest.approx(0.25, abs=0.02)
            assert sum(less.flops[:3]) < sum(full.flops[:3])


def test_records_say_that_positions_are_kept(model: Any, tmp_path: Path) -> None:
    """``auto`` is not the method's own default where positions have several axes."""
    about = {"name": "m", "sha256": "ab", "path": ".", "weights": "random", "parameters": 1}
    found = {}
    for positions in ("auto", "renumber", "keep"):
        made = entry(contenders(("evs",))[0], 0.25, positions, model, 6)
        task = Task(made, "standard", 16, 1, 12, about)
        save_unreachable(task, tmp_path, "", {})
        found[positions] = json.loads(task.path(tmp_path).read_text())["positions"]
    assert found == {"auto": "keep", "renumber": "renumber", "keep": "keep"}


def test_eval_command(folder: Path, tmp_path: Path) -> None:
    args = ["eval", "--model", str(folder), "--methods", "evs,tome", "--ratios", "0.25"]
    args += ["--tasks", "detail", "--limit", "6", "--out", str(tmp_path), "--json"]
    done = CliRunner().invoke(app, args)
    assert done.exit_code == 0, done.output
    data = json.loads(done.stdout)
    assert {r["label"] for r in data["runs"]} == {"full", "evs"}
    assert [u["label"] for u in data["unreachable"]] == ["tome"]
    record = json.loads(next(tmp_path.rglob("evs@0.25.json")).read_text())
    assert record["positions"] == "keep"
    assert record["model"]["name"] == "tiny-qwen2_5_vl-seed2"


def test_train_command_with_a_wrong_family(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["tiny", "train", "--arch", "qwen9", "--out", str(tmp_path)])
    assert done.exit_code == 1
    assert "arch must be one of llava_onevision, qwen2_5_vl" in done.output


def test_models_that_are_not_tiny() -> None:
    class Other:
        class config:
            model_type = "qwen2_vl"

    with pytest.raises(UnsupportedModelError, match="no tiny model of type 'qwen2_vl'"):
        architecture_of(Other())
