"""A server of the shipped model over real HTTP: answers, proper errors, and it stays alive."""

from __future__ import annotations

import base64
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from earlytom.serve import (
    Reply,
    ask,
    ask_streaming,
    chat_body,
    counters,
    curl_example,
    data_url,
    posted,
    python_example,
)
from earlytom.tiny import write_video

pytestmark = pytest.mark.vllm
START, STOP = 300, 60  # seconds
SIZE, FRAMES, RATIO = 49, 16, 0.25
KEPT = FRAMES * SIZE // 4


@dataclass(frozen=True)
class Site:
    """A running server, and a folder that it may read."""

    url: str
    model: str
    folder: Path
    questions: list[dict[str, Any]]

    @property
    def clip(self) -> Path:
        return self.folder / "clip.mp4"

    def ask(self, *videos: str, question: str = "", **more: Any) -> Reply:
        question = question or self.question("color")["question"]
        return ask(self.url, chat_body(self.model, question, videos, **more))

    def question(self, kind: str) -> dict[str, Any]:
        return next(q for q in self.questions if q["type"] == kind)

    def alive(self) -> None:
        reply = self.ask(data_url(self.clip))
        assert (reply.status, reply.text.strip()) == (200, self.question("color")["answer"])

    def running(self) -> float:
        with urllib.request.urlopen(self.url + "/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        return sum(
            float(x.rsplit(" ", 1)[1]) for x in lines if x.startswith("vllm:num_requests_running{")
        )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """`earlytom serve` with defaults; at the end it must stop by itself when interrupted."""
    folder = tmp_path_factory.mktemp("media")
    listing = json.loads(write_video(folder / "clip.mp4", 7).read_text())
    log = folder / "log"
    command = [sys.executable, "-m", "earlytom", "serve", "--port", "0", "--json"]
    command += ["--retention-ratio", str(RATIO), "--log-file", str(log)]
    command += ["--", "--allowed-local-media-path", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            line = child.stdout.readline()
            assert line, log.read_text()[-3000:]
            ready = json.loads(line)
            assert (ready["method"], ready["retention_ratio"]) == ("earlytom", RATIO)
            yield Site(ready["url"], ready["model"], folder, listing["questions"])
        finally:
            child.send_signal(signal.SIGINT)
            try:
                code = child.wait(STOP)
            except subprocess.TimeoutExpired:
                child.kill()
                raise
    assert code == 0
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(ready["url"] + "/health", timeout=5)


@pytest.mark.parametrize("kind", ["color", "shape", "motion", "change"])
def test_answers_about_a_file_and_about_its_bytes(site: Site, kind: str) -> None:
    asked = site.question(kind)
    for address in (data_url(site.clip), site.clip.as_uri()):
        reply = site.ask(address, question=asked["question"])
        assert (reply.status, reply.text.strip()) == (200, asked["answer"])
        assert reply.video_tokens == KEPT + 1  # and a newline token


@pytest.mark.parametrize(("ratio", "tokens"), [(0.1, 79), (0.3, 236), (1, FRAMES * SIZE)])
def test_a_request_chooses_its_ratio_and_usage_shows_it(
    site: Site, ratio: float, tokens: int
) -> None:
    before = counters(site.url)
    usual, asked = site.ask(data_url(site.clip)), site.ask(data_url(site.clip), ratio=ratio)
    assert asked.video_tokens == tokens + 1
    words = usual.usage["prompt_tokens"] - usual.video_tokens
    assert asked.usage["prompt_tokens"] == tokens + 1 + words
    after = counters(site.url)
    grown = {k: after[k] - before.get(k, 0) for k in after}
    compressed = ratio != 1  # all other videos take vLLM's own way
    assert grown["earlytom_videos_total"] == compressed
    assert grown["earlytom_visual_tokens_before_total"] == FRAMES * SIZE * compressed
    assert grown["earlytom_visual_tokens_after_total"] == tokens * compressed
    assert grown["earlytom_frames_before_total"] == FRAMES * compressed
    assert 0 <= grown["earlytom_frames_after_total"] <= FRAMES * compressed
    assert grown["earlytom_encode_seconds_count"] == compressed
    assert "earlytom_failed_videos_total" not in grown


def test_two_videos(site: Site) -> None:
    reply = site.ask(data_url(site.clip), site.clip.as_uri())
    assert (reply.status, reply.video_tokens) == (200, 2 * (KEPT + 1))


def test_streaming(site: Site) -> None:
    asked = site.question("color")
    body = chat_body(site.model, asked["question"], [data_url(site.clip)])
    reply = ask_streaming(site.url, body)
    assert (reply.status, reply.text.strip()) == (200, asked["answer"])
    assert reply.video_tokens == KEPT + 1
    assert reply.first is not None
    assert 0 < reply.first <= reply.seconds


@pytest.mark.parametrize("make", [curl_example, python_example])
def test_printed_examples_run(site: Site, make: Any) -> None:
    asked = site.question("color")
    text = make(site.url, site.model, 0.1, str(site.clip), asked["question"])
    shell = ["bash", "-c"] if make is curl_example else [sys.executable, "-c"]
    done = subprocess.run([*shell, text], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert asked["answer"] in done.stdout
    assert "80" in done.stdout  # tokens of the video


def base64_of(data: bytes) -> str:
    return "data:video/mp4;base64," + base64.b64encode(data).decode()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("noise", "video"),
        ("half", "video"),
        ("nothing", ""),
        ("no base64", "base64"),
        ("elsewhere", "allowed-local-media-path"),
    ],
)
def test_bad_videos_are_errors_of_the_request(site: Site, name: str, words: str) -> None:
    address = {
        "noise": lambda: base64_of(bytes(range(256)) * 40),
        "half": lambda: base64_of(site.clip.read_bytes()[:60000]),
        "nothing": lambda: base64_of(b""),
        "no base64": lambda: "data:video/mp4;base64,@@@@",
        "elsewhere": lambda: Path("/etc/passwd").as_uri(),
    }[name]()
    reply = site.ask(address)
    assert reply.status == 400
    assert words in reply.text
    site.alive()


@pytest.mark.parametrize("ratio", [0, -1, 3, "much", [0.5], True, 1e-300])
def test_bad_ratios(site: Site, ratio: Any) -> None:
    reply = site.ask(data_url(site.clip), ratio=ratio)
    assert reply.status == 400
    assert "retention_ratio must" in reply.text
    site.alive()


@pytest.mark.parametrize(
    "more", [{"size": {"height": 56, "width": 56}}, {"nothing": 1}, {"do_resize": False}]
)
def test_requests_set_nothing_else_of_the_processor(site: Site, more: Any) -> None:
    """Another picture size ended the engine."""
    reply = site.ask(data_url(site.clip), mm_processor_kwargs={"retention_ratio": 0.5, **more})
    assert reply.status == 400
    assert f"may set retention_ratio only in mm_processor_kwargs, got {next(iter(more))}" in (
        reply.text
    )
    site.alive()


def test_a_video_that_is_damaged_in_the_middle(site: Site) -> None:
    """What can be decoded of it is answered."""
    damaged = bytearray(site.clip.read_bytes())
    damaged[20000:120000] = bytes(100000)
    reply = site.ask(base64_of(bytes(damaged)))
    assert reply.status in (200, 400)
    site.alive()


def test_requests_that_are_too_large(site: Site) -> None:
    videos = [data_url(site.clip)] * 8
    too_many = site.ask(*videos, ratio=1)
    assert (too_many.status, "maximum context length" in too_many.text) == (400, True)
    too_long = site.ask(data_url(site.clip), question="what color is the circle? " * 3000)
    assert (too_long.status, "maximum context length" in too_long.text) == (400, True)
    assert site.ask(*videos).status == 200  # compressed they fit
    site.alive()


def test_clients_that_hang_up(site: Site) -> None:
    body = chat_body(
        site.model, "what color is the circle?", [data_url(site.clip)], 1,
        max_tokens=1400, ignore_eos=True,
    )  # fmt: skip
    with posted(site.url, {**body, "stream": True}) as response:
        assert response.status == 200
        response.readline()  # and no more
        assert site.running() == 1
    host, port = site.url.removeprefix("http://").split(":")
    data = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    for sent in (data, data[: len(data) // 2]):  # before the answer; in the middle of the question
        with socket.create_connection((host, int(port)), timeout=10) as client:
            client.sendall(head.encode() + sent)
    deadline = time.monotonic() + 30
    while site.running() and time.monotonic() < deadline:
        time.sleep(0.25)
    assert site.running() == 0  # nobody computes 1400 tokens for nobody
    site.alive()
