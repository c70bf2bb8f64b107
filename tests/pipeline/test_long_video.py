"""Long videos: frames in chunks by default, bounded memory, files of an hour."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

from earlytom import EarlyTom, active_method, compile, compress, restore
from earlytom.cli import app
from earlytom.errors import ConfigError
from earlytom.pipeline import VideoQA
from earlytom.pipeline.qa import CHUNK, LONG
from earlytom.video import Video, load_video
from tests.video import clips

QUESTION = "what colour is the circle"
BOUND = 720  # MiB on top of the loaded model, see docs/long-video.md


@pytest.fixture
def seen(qa: VideoQA):
    """Frames at a time in the MLP of the first encoder layer."""
    counts: list[int] = []
    mlp = qa.adapter.mlp(qa.adapter.layers[0])
    handle = mlp.register_forward_pre_hook(lambda module, args: counts.append(len(args[0])))
    yield counts
    handle.remove()


def still(frames: int) -> Video:
    return Video.from_frames(torch.zeros(frames, 28, 28, 3, dtype=torch.uint8))


def test_long_videos_are_cut_by_default(qa, seen):
    method = EarlyTom(retention_ratio=0.25)
    for m in (None, method):
        seen.clear()
        answer = qa.ask(still(LONG), QUESTION, m, max_new_tokens=1)
        assert seen == [LONG]
        seen.clear()
        answer = qa.ask(still(LONG + 1), QUESTION, m, max_new_tokens=1)
        assert max(seen) == CHUNK
        assert sum(seen) == LONG + 1
        assert (answer.method is None) == (m is None)
        assert (answer.report is None) == (m is None)
        assert answer.tokens_in == 4 * (LONG + 1)
    assert active_method(qa.model) is None


def test_a_number_of_frames_can_be_asked_for(qa, clip, seen):
    method = EarlyTom(retention_ratio=0.25)
    whole = qa.ask(clip, QUESTION, method, frames=8, frames_per_chunk=0, max_new_tokens=4)
    assert seen == [8]
    seen.clear()
    cut = qa.ask(clip, QUESTION, method, frames=8, frames_per_chunk=3, max_new_tokens=4)
    assert seen == [3, 3, 2]
    assert cut.token_ids == whole.token_ids
    assert cut.report.to_dict() == whole.report.to_dict()
    plain = qa.ask(clip, QUESTION, frames=8, frames_per_chunk=5, max_new_tokens=4)
    assert plain.report is None
    assert plain.token_ids == qa.ask(clip, QUESTION, frames=8, max_new_tokens=4).token_ids


@pytest.mark.parametrize("wrong", [-1, 1.5, True, "4"])
def test_bad_numbers(qa, clip, wrong):
    with pytest.raises(ConfigError, match="frames_per_chunk"):
        qa.ask(clip, QUESTION, frames_per_chunk=wrong)


def test_a_model_that_is_compressed_already_keeps_its_own_way(folder, clip):
    qa = VideoQA.load(folder, device="cpu")
    for put_on in (
        lambda: compress(qa.model, EarlyTom()),
        lambda: compile(qa.model, None, frames=8, backend="eager"),
    ):
        put_on()
        with pytest.raises(ConfigError, match="compressed or compiled already"):
            qa.ask(clip, QUESTION, frames=8, frames_per_chunk=4)
        assert qa.ask(clip, QUESTION, frames=8, max_new_tokens=1).token_ids
        restore(qa.model)


def test_on_the_command_line(clip, folder):
    from typer.testing import CliRunner

    args = ["ask", str(clip), QUESTION, "--model", str(folder), "--frames", "8", "--json"]
    args += ["--max-new-tokens", "3"]
    whole = CliRunner().invoke(app, [*args, "--frames-per-chunk", "0"])
    cut = CliRunner().invoke(app, [*args, "--frames-per-chunk", "3"])
    assert cut.exit_code == 0, cut.output
    assert json.loads(cut.stdout)["text"] == json.loads(whole.stdout)["text"]
    both = CliRunner().invoke(app, [*args, "--frames-per-chunk", "3", "--compare"])
    assert json.loads(both.stdout)["compressed"]["text"] == json.loads(cut.stdout)["text"]
    bad = CliRunner().invoke(app, [*args, "--frames-per-chunk", "-1"])
    assert bad.exit_code != 0


# ------------------------------------------------------------------ what it is for
def apart(code: str) -> dict[str, float]:
    """Run ``code`` in a process of its own, with ``before`` and ``used`` to measure memory."""
    head = """
        import json, torch
        torch.set_num_threads(1)
        from earlytom.bench.memory import forget_peak, peak_rss
        def before():
            forget_peak()
            return peak_rss()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(head) + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peaks start anew on Linux only")
@pytest.mark.parametrize("method", ["earlytom", "afterimage"])
def test_768_frames_stay_inside_the_stated_bound(method, tmp_path):
    path = clips.write(tmp_path / "long.mp4", 768, fps=1, gop=64, size=(112, 112))
    found = apart(
        f"""
        from earlytom import load_method
        from earlytom.pipeline import VideoQA
        qa = VideoQA.load(device="cpu", dtype="float32")
        ask = "how many shots are there?"
        m = load_method("{method}", retention_ratio=round(1024 / (768 * 49), 6))
        qa.ask("{path}", ask, m, frames=16, max_new_tokens=1)
        start = before()
        a = qa.ask("{path}", ask, m, frames=768, max_new_tokens=2)
        print(json.dumps({{"used": peak_rss() - start, "frames": a.frames_in,
                           "tokens": a.tokens_in, "left": a.tokens_out}}))
        """
    )
    assert found["frames"] == 768
    assert found["tokens"] == 768 * 49
    assert abs(found["left"] - 1024) <= 1
    assert found["used"] <= BOUND


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peaks start anew on Linux only")
def test_an_hour_is_decoded_in_the_memory_of_its_frames(tmp_path):
    """3600 numbered frames, of which 768 are read one by one: none of them is kept."""
    path = clips.write(tmp_path / "hour.mp4", 3600, fps=1, gop=250, size=(320, 240))
    found = apart(
        f"""
        from earlytom.video import stream_video
        from tests.video.clips import number
        for _ in stream_video("{path}", 4): pass
        start = before()
        seen = [(number(f.image.numpy()), f.timestamp) for f in stream_video("{path}", 768)]
        print(json.dumps({{"used": peak_rss() - start, "numbers": seen}}))
        """
    )
    wanted = [int(i) for i in torch.linspace(0, 3599, 768, dtype=torch.float64)]
    assert [n for n, _ in found["numbers"]] == wanted
    assert [t for _, t in found["numbers"]] == wanted  # one frame a second
    assert found["used"] < 60  # the frames are 169 MiB


@pytest.mark.slow
def test_768_frames_equal_those_of_all_at_once(tmp_path):
    path = clips.write(tmp_path / "long.mp4", 768, fps=1, gop=64, size=(112, 112))
    qa = VideoQA.load(device="cpu", dtype="float32")
    video, method = load_video(path, 768), EarlyTom(retention_ratio=0.027)
    ask = "how many shots are there?"
    whole = qa.ask(video, ask, method, frames_per_chunk=0, max_new_tokens=2)
    cut = qa.ask(video, ask, method, frames_per_chunk=100, max_new_tokens=2)
    assert cut.token_ids == whole.token_ids
    for a, b in zip(cut.report.videos, whole.report.videos, strict=True):
        assert (a.first, a.count) == (b.first, b.count)
        assert torch.equal(a.index, b.index)


def test_the_layers_are_modules_as_ever(qa):
    """Nothing is left on a model that answered a long video."""
    qa.ask(still(LONG + 1), QUESTION, max_new_tokens=1)
    assert not any("forward" in m.__dict__ for m in qa.model.modules() if isinstance(m, nn.Module))
