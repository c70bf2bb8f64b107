"""A server as a child process, with a small program in the place of vLLM's."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from earlytom.errors import EarlyTomError
from earlytom.network import listen
from earlytom.serve import (
    Launch,
    Server,
    ask,
    ask_streaming,
    chat_body,
    counters,
    curl_example,
    posted,
    python_example,
)
from tests.serve.fake import launch


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_ready_stopped_and_tidied() -> None:
    before = signal.getsignal(signal.SIGINT)
    waits: list[float] = []
    with Server(launch("fine"), subprocess.DEVNULL) as server, server.forwarding():
        assert server.wait_ready(waits.append, timeout=30)
        folder = Path(Path("folder").read_text())
        assert folder.is_dir()
        assert server.code is None
        os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C: passed on, does not raise here
        assert server.wait() == 5
        assert server.stopping
    assert not folder.exists()
    assert signal.getsignal(signal.SIGINT) is before
    assert "PROMETHEUS_MULTIPROC_DIR" not in os.environ
    assert waits == sorted(waits)


def test_one_that_ends_before_it_is_ready() -> None:
    with Path("log").open("wb") as log, Server(launch("broken"), log) as server:
        assert not server.wait_ready(timeout=30)
        assert server.code == 3
    assert "no memory" in Path("log").read_text()


def test_the_second_signal_kills() -> None:
    with Server(launch("deaf"), subprocess.DEVNULL) as server:
        assert server.wait_ready(timeout=30)
        server.stop(signal.SIGINT)
        time.sleep(0.2)
        assert server.code is None
        server.stop(signal.SIGINT)
        assert server.wait() == 128 + signal.SIGKILL


def test_an_error_takes_the_server_down() -> None:
    server = Server(launch("fine"), subprocess.DEVNULL)
    with contextlib.suppress(RuntimeError), server:
        server.wait_ready(timeout=30)
        raise RuntimeError("ours")
    assert server.code == 128 + signal.SIGTERM


def test_not_ready_in_time_and_not_there() -> None:
    sleeping = (sys.executable, "-c", "import time; time.sleep(60)")
    slow = Launch(sleeping, {}, "127.0.0.1", 9, "x", "none", 1)
    with (
        Server(slow, subprocess.DEVNULL) as server,
        pytest.raises(EarlyTomError, match=r"not ready after 0\.3 s"),
    ):
        server.wait_ready(timeout=0.3)
    missing = Launch(("/no/such/program",), {}, "127.0.0.1", 9, "x", "none", 1)
    with pytest.raises(EarlyTomError, match="cannot start"), Server(missing):
        pass


PIECES = [
    {"choices": [{"delta": {"role": "assistant", "content": ""}}]},
    {"choices": [{"delta": {"content": " red"}}]},
    {"choices": [{"delta": {"content": " star"}}]},
    {"choices": [], "usage": {"prompt_tokens_details": {"multimodal_tokens": {"video": 80}}}},
]
METRICS = """# HELP earlytom_videos_total x
earlytom_videos_total{method="a"} 2.0
earlytom_videos_total{method="b"} 3.0
earlytom_encode_seconds_bucket{le="1.0",method="a"} 9.0
vllm:other{x="y"} 4.0
"""


class Handler(http.server.BaseHTTPRequestHandler):
    """Speaks as vLLM does."""

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.answer(200, METRICS)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)  # type: ignore[attr-defined]
        if body["model"] == "other":
            self.answer(404, '{"error": "no such model"}')
        elif body["model"] == "dies":
            self.answer(200, 'data: {"error": "gone"}\n\n')
        elif body.get("stream"):
            lines = [f"data: {json.dumps(x)}\n\n" for x in PIECES]
            self.answer(200, "".join(lines) + "data: [DONE]\n\n")
        else:
            message = {"choices": [{"message": {"content": " red"}}], "usage": {}}
            self.answer(200, json.dumps(message))

    def answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())


@pytest.fixture
def fake() -> Iterator[Any]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.bodies = []  # type: ignore[attr-defined]
        threading.Thread(target=lambda: server.serve_forever(0.02), daemon=True).start()
        yield server
        server.shutdown()


def url(server: Any) -> str:
    return f"http://127.0.0.1:{server.server_port}"


def test_client(fake: Any) -> None:
    reply = ask(url(fake), chat_body("m", "what?", ["data:x"], 0.1, max_tokens=3, seed=1))
    assert (reply.status, reply.text, reply.video_tokens, reply.first) == (200, " red", 0, None)
    (body,) = fake.bodies
    assert body["mm_processor_kwargs"] == {"retention_ratio": 0.1}
    assert (body["max_tokens"], body["seed"]) == (3, 1)
    streamed = ask_streaming(url(fake), chat_body("m", "what?", []))
    assert (streamed.text, streamed.video_tokens) == (" red star", 80)
    assert streamed.first is not None
    assert "mm_processor_kwargs" not in fake.bodies[-1]
    for way in (ask, ask_streaming):
        assert way(url(fake), chat_body("other", "what?", [])).status == 404
    with pytest.raises(EarlyTomError, match="gone"):
        ask_streaming(url(fake), chat_body("dies", "what?", []))
    assert counters(url(fake)) == {"earlytom_videos_total": 5}


def test_client_without_a_server() -> None:
    with listen("127.0.0.1", 0) as taken:
        nowhere = f"http://127.0.0.1:{taken.getsockname()[1]}"
    with pytest.raises(EarlyTomError, match="does not answer"), posted(nowhere, {}, 5):
        pass
    with pytest.raises(EarlyTomError, match="does not answer"):
        counters(nowhere)


@pytest.mark.parametrize("make", [curl_example, python_example])
@pytest.mark.parametrize("ratio", [None, 0.1])
def test_examples_run_as_printed(fake: Any, make: Any, ratio: float | None) -> None:
    """With a video larger than a command line may be, and words that a shell would read."""
    Path("my clip.mp4").write_bytes(bytes(range(256)) * 2000)
    asked = 'what\'s "it" worth: $HOME?'
    text = make(url(fake), "m", ratio, "my clip.mp4", asked)
    shell = ["bash", "-c"] if make is curl_example else [sys.executable, "-c"]
    done = subprocess.run([*shell, text], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert " red" in done.stdout
    (body,) = fake.bodies
    video, words = body["messages"][0]["content"]
    assert words["text"] == asked
    assert len(video["video_url"]["url"]) > 4 * 256 * 2000 // 3
    assert body.get("mm_processor_kwargs") == (ratio and {"retention_ratio": ratio})
