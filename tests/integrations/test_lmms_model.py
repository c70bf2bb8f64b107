"""The lmms-eval plugin's model on the shipped weights, with a stub in place of lmms-eval."""

from importlib import import_module

import pytest

from earlytom.errors import ConfigError, EarlyTomError, VideoError
from earlytom.integrations.lmms_eval import manifest
from earlytom.integrations.lmms_eval.media import Prompt
from earlytom.integrations.lmms_eval.options import Options, parse_options
from earlytom.integrations.lmms_eval.runner import Runner, _cut, _generation
from earlytom.pipeline import VideoQA
from earlytom.tiny import write_lmms_task
from earlytom.video import load_video
from tests.integrations import stub_lmms_eval as stub

GREEDY = {"max_new_tokens": 8, "temperature": 0}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("task")
    return write_lmms_task(folder, 2, questions=2, seed=3, num_frames=4)


@pytest.fixture
def logged():
    return []


@pytest.fixture
def build(monkeypatch, logged, rows):
    """Build the model that lmms-eval would, with the rows as its data."""
    stub.install(monkeypatch, logged)

    def make(**arguments):
        path = manifest().simple_class_path
        module, _, name = path.rpartition(".")
        model = getattr(import_module(module), name)(device="cpu", **arguments)
        model.task_dict["tiny"] = {"test": rows}
        return model

    return make


def visual(row):
    return [row["video"]]


def generate_requests(rows, settings=GREEDY):
    place = ("tiny", "test")
    return [
        stub.Instance((r["question"], dict(settings), visual, i, *place))
        for i, r in enumerate(rows)
    ]


def test_manifest(monkeypatch):
    stub.install(monkeypatch, [])
    found = manifest()
    assert found.model_id == "earlytom"
    assert found.chat_class_path is None


def test_same_answers_as_video_qa(build, rows, logged):
    model = build(retention_ratio=0.5, frames=4)
    results = model.generate_until(generate_requests(rows))
    qa = VideoQA.load(device="cpu")
    expected = [
        qa.ask(r["video"], r["question"], model.options.method, frames=4, max_new_tokens=8)
        for r in rows
    ]
    assert [r.text for r in results] == [a.text for a in expected]
    assert [r.token_counts.input_tokens for r in results] == [a.prompt_out for a in expected]
    assert [r.token_counts.output_tokens for r in results] == [len(a.token_ids) for a in expected]
    assert len(model.cache_hook.seen) == len(rows)
    (record,) = logged
    kept = record["additional_metrics"]
    assert kept["retention"] == kept["llm_retention"] == 0.5
    assert (kept["frames_in_per_video"], kept["tokens_in_per_video"]) == (4, 4 * 49)
    assert kept["tokens_out_per_video"] == 2 * 49
    assert kept["total_requests"] == len(rows)
    assert kept["time_to_first_token"] > 0
    assert record["total_gen_tokens"] == sum(len(a.token_ids) for a in expected)


def test_without_method(build, rows, logged):
    model = build(method="none", frames=4)
    results = model.generate_until(generate_requests(rows))
    right = [r.text == row["answer"] for r, row in zip(results, rows, strict=True)]
    assert sum(right) >= len(rows) - 1
    assert logged[0]["additional_metrics"]["retention"] == 1


def test_batches_give_the_same_answers(build, rows, logged):
    single = build(retention_ratio=0.5, frames=4).generate_until(generate_requests(rows))
    model = build(retention_ratio=0.5, frames=4, batch_size=4)
    batched = model.generate_until(generate_requests(rows))
    assert [r.text for r in batched] == [r.text for r in single]
    assert [r.token_counts.output_tokens for r in batched] == [
        r.token_counts.output_tokens for r in single
    ]
    one, many = (record["additional_metrics"] for record in logged)
    assert "time_to_first_token" not in many
    shared = one.keys() & many.keys()
    assert {k: one[k] for k in shared} == {k: many[k] for k in shared}


def test_settings_of_generation(build, rows):
    model = build(retention_ratio=0.5, frames=4, batch_size=8)
    few = generate_requests(rows[:1], {"max_new_tokens": 1})
    answer = rows[0]["answer"]
    stopped = generate_requests(rows[:1], {**GREEDY, "until": [answer[1:]]})
    beams = generate_requests(rows[:1], {**GREEDY, "num_beams": 2})
    one, cut, beam = model.generate_until([*few, *stopped, *beams])
    assert one.token_counts.output_tokens == 1
    assert cut.text == answer[0]
    assert beam.text == answer


def test_choices(build, rows, logged):
    model = build(retention_ratio=0.5, frames=4)
    requests = [
        stub.Instance((r["question"], f" {c}", visual, i, "tiny", "test"))
        for i, r in enumerate(rows)
        for c in r["candidates"]
    ]
    pairs = [result.text for result in model.loglikelihood(requests)]
    assert logged[0]["additional_metrics"]["total_requests"] == len(rows)  # one prefill each
    spoken = [r.text for r in model.generate_until(generate_requests(rows))]
    for i, (row, said) in enumerate(zip(rows, spoken, strict=True)):
        losses, greedy = zip(*pairs[4 * i : 4 * i + 4], strict=True)
        assert all(v > 0 for v in losses)
        best = min(range(4), key=losses.__getitem__)
        assert row["candidates"][best] == said
        assert [c for c, g in zip(row["candidates"], greedy, strict=True) if g] == [said]


def test_target_may_be_a_function(build, rows):
    model = build(retention_ratio=0.5, frames=4)
    by_text = stub.Instance((rows[0]["question"], rows[0]["answer"], visual, 0, "tiny", "test"))
    by_call = stub.Instance(
        (rows[0]["question"], lambda row: row["answer"], visual, 0, "tiny", "test")
    )
    a, b = model.loglikelihood([by_text, by_call])
    assert a.text == b.text


def test_longer_continuations_equal_one_forward_pass(rows):
    import torch

    runner = Runner(parse_options(method="none", frames=4, device="cpu"))
    prompt = Prompt(rows[0]["question"], (rows[0]["video"],))
    text = "red ring left"
    ((loss, _),) = runner.losses(prompt, [f" {text}"])
    inputs = runner.qa.preprocessor(load_video(rows[0]["video"], 4), prompt.text)
    ids = runner.qa.preprocessor.tokenizer(text, add_special_tokens=False, return_tensors="pt")
    whole = torch.cat([inputs["input_ids"], ids["input_ids"]], 1)
    labels = whole.clone()
    labels[:, : inputs["input_ids"].shape[1]] = -100
    pixels = inputs["pixel_values_videos"]
    with torch.no_grad():
        out = runner.qa.model(input_ids=whole, pixel_values_videos=pixels, labels=labels)
    assert loss == pytest.approx(out.loss.item(), rel=1e-4)


def test_clean_frees_the_model_and_it_comes_back(build, rows):
    model = build(retention_ratio=0.5, frames=4)
    first = model.generate_until(generate_requests(rows[:1]))
    model.clean()
    assert model._runner is None
    assert str(model.device) == "cpu"
    assert model.generate_until(generate_requests(rows[:1])) == first


def test_frames_of_a_video_as_images(rows):
    from PIL import Image

    options = {"frames": 4, "device": "cpu", "retention_ratio": 0.5}
    frames = load_video(rows[0]["video"], 4).frames
    images = [Image.fromarray(f.numpy()) for f in frames]
    prompt = Prompt(rows[0]["question"], tuple(images))
    as_video = Runner(parse_options(images_as_video=True, **options))
    file = Runner(parse_options(**options))
    expected = file.generate([Prompt(prompt.text, (rows[0]["video"],))], GREEDY)
    assert as_video.generate([prompt], GREEDY) == expected
    assert as_video.retained.tokens_out == file.retained.tokens_out
    with pytest.raises(VideoError, match="frames must be"):
        as_video.generate([Prompt("x", (images[0], images[1].resize((8, 8))))], GREEDY)


def test_images_need_the_official_processor(rows):
    from PIL import Image

    runner = Runner(parse_options(frames=4, device="cpu"))
    if runner.qa.preprocessor.official is not None:
        pytest.skip("the official processor is here")
    with pytest.raises(ConfigError, match="torchvision"):
        runner.generate([Prompt("what is it", (Image.new("RGB", (8, 8)),))], GREEDY)


@pytest.mark.parametrize(
    ("visuals", "message"),
    [(("none.mp4",), "no such video file"), (({"array": 1},), "a visual must be the path")],
)
def test_bad_visuals(visuals, message):
    runner = Runner(parse_options(frames=4, device="cpu"))
    with pytest.raises(EarlyTomError, match=message):
        runner.generate([Prompt("what is it", visuals)], GREEDY)


def test_skip_unreadable(build, rows, logged):
    model = build(retention_ratio=0.5, frames=4, batch_size=4, skip_unreadable=True)
    model.task_dict["tiny"]["test"] = [rows[0], {**rows[1], "video": "none.mp4"}, rows[2]]
    results = model.generate_until(generate_requests(rows[:3]))
    assert [bool(r.text) for r in results] == [True, False, True]
    assert results[1].token_counts.output_tokens == 0
    assert logged[0]["additional_metrics"]["unreadable"] == 1
    with pytest.raises(VideoError, match="no such video file"):
        model.loglikelihood([stub.Instance(("x", "red", visual, 1, "tiny", "test"))])


def test_inside_the_language_model(rows):
    options = parse_options(
        frames=4, device="cpu", retention_ratio=0.5, inner_merge_layer=2, inner_ratio=0.5
    )
    runner = Runner(options)
    runner.generate([Prompt(rows[0]["question"], (rows[0]["video"],))], GREEDY)
    kept = runner.retained.metrics()
    assert kept["retention"] == 0.5
    assert 0.25 < kept["llm_retention"] < 0.5


def test_text_only_and_two_videos(rows):
    runner = Runner(parse_options(frames=4, device="cpu", retention_ratio=0.5))
    videos = (rows[0]["video"], rows[-1]["video"])
    prompts = [Prompt("what color is the ring?"), Prompt("what color is the ring?", videos)]
    text, both = runner.generate(prompts, GREEDY)
    assert text.prompt_tokens < 20
    assert both.prompt_tokens - text.prompt_tokens == 2 * (2 * 49 + 1)
    assert runner.retained.videos == 2


def test_llava_video_layout(rows):
    options = parse_options(layout="llava_video", frames=4, device="cpu", retention_ratio=0.5)
    runner = Runner(options)
    (reply,) = runner.generate([Prompt("what color is the ring?", (rows[0]["video"],))], GREEDY)
    assert runner.retained.tokens_out * 2 == runner.retained.tokens_in
    assert reply.prompt_tokens > runner.retained.tokens_out  # newlines and text


def test_a_video_is_decoded_once_for_questions_in_a_row(monkeypatch, rows):
    runner = Runner(Options(frames=4, device="cpu"))
    calls = []

    def counted(path, *args, **kwargs):
        calls.append(path)
        return load_video(path, *args, **kwargs)

    monkeypatch.setattr("earlytom.integrations.lmms_eval.media.load_video", counted)
    for row in rows:
        runner.generate([Prompt(row["question"], (row["video"],))], {"max_new_tokens": 1})
    assert len(calls) == len({r["video"] for r in rows}) == 2


def test_generation_settings():
    assert _generation({}) == ({"max_new_tokens": 1024, "num_beams": 1, "do_sample": False}, [])
    arguments, stops = _generation(
        {"temperature": 0.7, "top_p": 0.9, "top_k": None, "until": "\n\n", "image_sizes": 1}
    )
    assert arguments == {
        "max_new_tokens": 1024, "num_beams": 1, "do_sample": True, "temperature": 0.7, "top_p": 0.9,
    }  # fmt: skip
    assert stops == ["\n\n"]
    assert _generation({"temperature": 0, "do_sample": True})[0]["do_sample"] is False
    assert _generation({"temperature": 0.7, "do_sample": False})[0]["do_sample"] is False


def test_cut():
    assert _cut("a. b. c", ["."]) == "a"
    assert _cut(" a b ", ["", "x"]) == "a b"
