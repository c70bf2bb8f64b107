import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from earlytom.app import desk as module
from earlytom.app.desk import MOST_TEXT, Desk
from earlytom.errors import ConfigError, EarlyTomError, VideoError
from earlytom.hf.api import active_method
from tests.app.bad_files import SAID

QUESTION = "what colour is the circle"
ASKED = [
    (number, f"{QUESTION} {number}", method, ratio)
    for number, (method, ratio) in enumerate(
        [("afterimage", 0.5), ("tome", 0.25), ("evs", 0.1), ("earlytom", 0.75), ("fastv", 0.5)]
    )
]


def ask(desk, number, question, method, ratio):
    return desk.ask(desk.sample(number).video, question, method, ratio)


def essence(found):
    """What has to be the same whoever else asks, and differs from call to call."""
    (run,) = found.runs
    return (
        found.question,
        found.pictures.tobytes(),
        found.full.token_ids,
        run.label,
        run.answer.token_ids,
        run.answer.tokens_out,
        [(m.title, m.states) for m in run.maps],
    )


def test_methods_are_ready_to_use(desk):
    names = [e.name for e in desk.methods]
    assert {"afterimage", "earlytom", "holitom", "fastv"} < set(names)
    assert "compose" not in names  # needs settings
    assert all(e.summary for e in desk.methods)


def test_answers_of_several_users_do_not_mix(desk):
    alone = [essence(ask(desk, *a)) for a in ASKED]
    assert len({repr(x[-1]) for x in alone}) == len(alone)
    with ThreadPoolExecutor(len(ASKED)) as pool:
        together = list(pool.map(lambda a: essence(ask(desk, *a)), ASKED * 2))
    assert together == alone * 2
    assert active_method(desk.qa.model) is None


def test_one_call_at_a_time(desk, monkeypatch):
    running, most = [], []
    real = module.inspect_video

    def watched(*args, **kwargs):
        running.append(threading.get_ident())
        most.append(len(running))
        time.sleep(0.02)
        try:
            return real(*args, **kwargs)
        finally:
            running.remove(threading.get_ident())

    monkeypatch.setattr(module, "inspect_video", watched)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda a: ask(desk, *a), ASKED[:3]))
    assert most == [1, 1, 1]


@pytest.mark.parametrize(
    ("question", "method", "ratio", "message"),
    [
        ("", "evs", 0.5, "type a question, or choose one"),
        (" \n\t", "evs", 0.5, "type a question, or choose one"),
        (None, "evs", 0.5, "type a question, or choose one"),
        ("x" * (MOST_TEXT + 1), "evs", 0.5, "the question has 1001 characters; at most 1000"),
        ("<video> what", "evs", 0.5, "placeholder"),
        (QUESTION, "evs", 0, r"retention_ratio must be a number in \(0, 1\], got 0"),
        (QUESTION, "evs", -1, "retention_ratio must be"),
        (QUESTION, "evs", 1.01, "retention_ratio must be"),
        (QUESTION, "evs", float("nan"), "retention_ratio must be"),
        (QUESTION, "evs", None, "retention_ratio must be"),
        (QUESTION, "evs", "half", "retention_ratio must be"),
        (QUESTION, "none", 0.5, "unknown method 'none'"),
        (QUESTION, "compose", 0.5, "."),
    ],
)
def test_bad_requests(desk, question, method, ratio, message):
    with pytest.raises(EarlyTomError, match=message):
        ask(desk, 0, question, method, ratio)
    assert essence(ask(desk, *ASKED[1]))  # the model is free and as it was
    assert active_method(desk.qa.model) is None


def test_a_failure_gives_the_turn_away(desk, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as m:
        m.setattr(module, "inspect_video", broken)
        with pytest.raises(RuntimeError):
            ask(desk, *ASKED[0])
    assert ask(desk, *ASKED[0])


def test_upload(desk, clip, bad, tmp_path):
    found = desk.ask(desk.upload(clip), QUESTION, "tome", 0.5)
    assert found.source == "clip.mp4"
    assert found.pictures.shape == (8, 48, 64, 3)
    with pytest.raises(VideoError, match="the uploaded video is not here any more"):
        desk.upload(tmp_path / "gone.mp4")
    assert not any(tmp_path.iterdir())
    with pytest.raises(VideoError) as e:
        desk.upload(bad["text"])
    assert str(e.value) == SAID["text"]


@pytest.mark.parametrize("number", [-1, 8])
def test_there_is_no_such_clip(desk, number):
    with pytest.raises(VideoError, match=f"there is no clip {number + 1}; choose 1 to 8"):
        desk.sample(number)


def test_settings(desk):
    with pytest.raises(VideoError, match="frames must be an integer >= 1, got 0"):
        Desk(desk.qa, frames=0)
    assert Desk(desk.qa).frames == desk.qa.frames
    with pytest.raises(ConfigError):
        Desk(desk.qa, 4, max_new_tokens=0).ask(desk.sample(0).video, QUESTION, "evs", 0.5)
