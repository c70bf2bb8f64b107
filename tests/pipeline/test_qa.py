import json

import pytest
import torch
from torch import nn

import earlytom.clock
import earlytom.pipeline.qa
import earlytom.pipeline.timing
from earlytom import EarlyTom, compress, restore
from earlytom.errors import ConfigError, EarlyTomError, UnsupportedModelError, VideoError
from earlytom.models import use_llava_video_layout
from earlytom.pipeline import VideoQA
from earlytom.pipeline.timing import StageClock
from earlytom.preprocess import Preprocessor
from earlytom.video import load_video

QUESTION = "what colour is the circle"


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_answer_equals_plain_generate(qa, folder, clip):
    answer = qa.ask(clip, QUESTION, frames=8, max_new_tokens=6)
    inputs = Preprocessor.from_pretrained(folder)(load_video(clip, 8), QUESTION)
    out = qa.model.generate(**inputs, do_sample=False, max_new_tokens=6)
    assert answer.token_ids == out[0, inputs["input_ids"].shape[1] :].tolist()
    assert answer.text == qa.preprocessor.decode(torch.tensor(answer.token_ids))
    assert (answer.frames_in, answer.frames_out) == (8, 8)
    assert (answer.tokens_in, answer.tokens_out) == (32, 32)
    assert answer.prompt_in == answer.prompt_out == inputs["input_ids"].shape[1]
    assert answer.report is None


def test_with_method(qa, clip):
    before = hooks(qa.model)
    method = EarlyTom(retention_ratio=0.25)
    answer = qa.ask(clip, QUESTION, method, frames=16, max_new_tokens=6)
    assert hooks(qa.model) == before
    assert answer.frames_in == 16
    assert answer.frames_out < 16
    assert (answer.tokens_in, answer.tokens_out) == (64, 16)
    assert answer.prompt_in - answer.prompt_out == 48  # measured where the prompt enters
    data = json.loads(json.dumps(answer.to_dict()))
    assert data["retention"] == 0.25
    assert data["method"]["method"] == "earlytom"
    inputs = qa.preprocessor(load_video(clip, 16), QUESTION)
    with method(qa.model):
        out = qa.model.generate(**inputs, do_sample=False, max_new_tokens=6)
    assert answer.token_ids == out[0, inputs["input_ids"].shape[1] :].tolist()


def test_timings_add_up(qa, clip):
    t = qa.ask(clip, QUESTION, EarlyTom(), frames=8, max_new_tokens=5).timings
    assert all(v > 0 for v in t.to_dict().values())
    assert t.preprocess + t.vision + t.tokens + t.prefill <= t.ttft
    assert t.decode + t.ttft <= t.total
    again = qa.ask(load_video(clip, 8), QUESTION, max_new_tokens=1).timings
    assert again.decode is None
    assert again.decode_tokens_per_s is None


def test_stages_are_measured_where_they_happen(qa, clip, monkeypatch):
    """On a clock that only one part moves, that part takes all the time and no other any."""
    clock = [0.0]
    for module in (earlytom.clock, earlytom.pipeline.timing, earlytom.pipeline.qa):
        monkeypatch.setattr(module, "perf_counter", lambda: clock[0])

    def tick(*_):
        clock[0] += 1.0

    inner = qa.adapter.inner
    parts = {
        "vision": qa.adapter.layers[0],
        "tokens": inner.multi_modal_projector,
        "prefill": inner.language_model.layers[0],
    }
    video = load_video(clip, 4)
    for name, module in parts.items():
        handle = module.register_forward_pre_hook(tick)
        t = qa.ask(video, QUESTION, max_new_tokens=1).timings.to_dict()
        handle.remove()
        assert {part: t[part] for part in parts} == {part: float(part == name) for part in parts}
        assert t["ttft"] == 1.0


def test_streams_text(qa, clip):
    pieces = []
    answer = qa.ask(clip, QUESTION, frames=4, max_new_tokens=5, stream=pieces.append)
    assert "".join(pieces).split() == answer.text.split()
    assert len(pieces) > 1


def test_hooks_are_gone_after_an_error(qa, clip):
    before = hooks(qa.model)

    def broken(text):
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        qa.ask(clip, QUESTION, EarlyTom(), frames=4, stream=broken)
    assert hooks(qa.model) == before
    plain = qa.ask(clip, QUESTION, frames=4, max_new_tokens=3)
    assert plain.prompt_in == plain.prompt_out


def test_permanently_compressed_model(qa, clip):
    compress(qa.model, EarlyTom(retention_ratio=0.5))
    try:
        answer = qa.ask(clip, QUESTION, frames=8, max_new_tokens=2)
    finally:
        restore(qa.model)
    assert (answer.tokens_in, answer.tokens_out) == (32, 16)
    assert answer.prompt_in - answer.prompt_out == 16


def test_bad_arguments(qa, clip):
    with pytest.raises(ConfigError, match="max_new_tokens"):
        qa.ask(clip, QUESTION, max_new_tokens=0)
    with pytest.raises(VideoError, match="no such video"):
        qa.ask("none.mp4", QUESTION)
    with pytest.raises(VideoError, match="not both"):
        qa.ask(clip, QUESTION, frames=4, fps=1)


def test_models_that_cannot_be_loaded(tmp_path, folder):
    def refused(source, match, kind=EarlyTomError, **kwargs):
        with pytest.raises(kind, match=match) as caught:
            VideoQA.load(source, **kwargs)
        assert "\n" not in str(caught.value)

    refused(tmp_path / "none", "no such model folder")
    refused("./none", "no such model folder")
    refused("/none/at/all", "no such model folder")
    refused(tmp_path, "no config.json")
    (tmp_path / "config.json").write_text("{")
    refused(tmp_path, "not valid JSON")
    refused(tmp_path / "config.json", "this is a file")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    refused(tmp_path, "'bert' is not supported", UnsupportedModelError)
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    refused(tmp_path, "cannot load the model in")
    (tmp_path / "model.safetensors").unlink()
    refused(tmp_path, "cannot load the model in")
    refused(folder, "unknown device", ConfigError, device="quantum")
    refused(folder, "dtype must be one of", ConfigError, dtype="int3")
    if not torch.cuda.is_available():
        refused(folder, "no CUDA device", ConfigError, device="cuda")


def test_hub_id_without_network(monkeypatch):
    import transformers.utils.hub as hub

    def offline(*args, **kwargs):
        raise OSError("We couldn't connect to the Hub\nsecond line")

    monkeypatch.setattr(hub, "cached_file", offline)
    with pytest.raises(EarlyTomError, match="cannot be fetched from the Hugging Face Hub") as e:
        VideoQA.load("some-org/some-model")
    assert "\n" not in str(e.value)


def test_clock_refuses_other_models():
    with pytest.raises(UnsupportedModelError):
        StageClock(nn.Linear(2, 2))


def test_dtype(folder, clip):
    qa = VideoQA.load(folder, device="cpu", dtype="bfloat16")
    assert qa.model.dtype == torch.bfloat16
    assert qa.ask(clip, QUESTION, EarlyTom(), frames=4, max_new_tokens=2).token_ids


def test_llava_video_layout(folder, clip):
    model = VideoQA.load(folder).model
    use_llava_video_layout(model)
    qa = VideoQA(model, Preprocessor.from_pretrained(folder, official=False))
    answer = qa.ask(clip, QUESTION, EarlyTom(retention_ratio=0.5), frames=8, max_new_tokens=2)
    assert answer.tokens_in == 8 * qa.adapter.tokens_per_frame
    assert answer.tokens_out == answer.tokens_in / 2


def test_urls_need_permission(qa):
    with pytest.raises(VideoError, match="allow_http"):
        qa.ask("http://localhost:1/clip.mp4", QUESTION)
    with pytest.raises(VideoError, match="localhost"):  # nothing listens there
        qa.ask("http://localhost:1/clip.mp4", QUESTION, allow_http=True)
