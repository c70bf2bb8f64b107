"""The page over HTTP, without a browser."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from html import unescape
from threading import Barrier

import pytest

from earlytom.app.server import FOLDER_VARIABLE, check_extra
from earlytom.errors import MissingExtraError
from earlytom.registry import list_methods
from tests.app.bad_files import SAID

try:
    check_extra()
except MissingExtraError as e:
    pytest.skip(f"{e} (make test-app does)", allow_module_level=True)

from tests.app.running import User, file_data, serving
from tests.pipeline import checkpoint

QUESTION = "what colour is the circle"


@pytest.fixture(scope="module")
def contacted():
    """Addresses other than this machine's that were looked up or connected to."""
    found = []
    with pytest.MonkeyPatch.context() as m:
        connect, look_up = socket.socket.connect, socket.getaddrinfo

        def watched_connect(self, address):
            if isinstance(address, tuple) and not str(address[0]).startswith(("127.", "::1")):
                found.append(address)
            return connect(self, address)

        def watched_look_up(host, *args, **kwargs):
            if host not in (None, "localhost", "127.0.0.1", "::1"):
                found.append(host)
            return look_up(host, *args, **kwargs)

        m.setattr(socket.socket, "connect", watched_connect)
        m.setattr(socket, "getaddrinfo", watched_look_up)
        yield found


@pytest.fixture(scope="module")
def served(desk, contacted):
    with serving(desk) as place:
        yield place


@pytest.fixture
def user(served):
    return User(served[0])


def text(html):
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", html)).split())


def pick(user, number):
    picked = user.send("clips", "select", [], {"index": number, "value": None})
    assert picked is not None
    return picked


def pictures(html):
    return re.findall(r'src="(data:[^"]*)"', html)


def test_ask(user, desk):
    html = user.ask(QUESTION, "tome", 0.5)
    assert f"Question: {QUESTION}" in text(html)
    assert "tome, 50 %" in text(html)
    assert len(pictures(html)) >= 16


def test_pick_a_clip(user, desk):
    _, upload, preview, known, question = pick(user, 3)
    sample = desk.sample(3)
    assert upload is None
    assert f"{sample.title}, 8 frames" in text(preview)
    assert question == sample.questions[0].question
    assert [c[0] for c in known["choices"]] == [q.question for q in sample.questions]
    asked = sample.questions[-1]
    assert f"Right answer: {asked.answer}" in text(user.ask(asked.question, "evs", 0.5))
    assert "Right answer" not in text(user.ask("what is this", "evs", 0.5))


def test_users_at_once(served, desk):
    """Everybody gets the pictures of their own clip, and their own question and method."""
    jobs = [
        (i, f"{QUESTION} {i}", method, 0.25 + i / 20)
        for i, method in enumerate(("afterimage", "tome", "evs", "holitom", "resize", "random"))
    ]
    start = Barrier(len(jobs))

    def work(job):
        number, *asked = job
        user = User(served[0])
        pick(user, number)
        start.wait(60)
        return user.ask(*asked)

    with ThreadPoolExecutor(len(jobs)) as pool:
        found = list(pool.map(work, jobs))
    first = []
    for (number, question, method, ratio), html in zip(jobs, found, strict=True):
        assert f"Question: {question}" in text(html)
        assert f"{method}, {100 * ratio:g} %" in text(html)
        alone = User(served[0])
        pick(alone, number)
        assert pictures(alone.ask(question, method, ratio)) == pictures(html)
        first.append(pictures(html)[0])
    assert len(set(first)) == len(jobs)


def test_upload_and_ask(user, clip):
    file = user.upload(clip)
    _, _, preview, known, _ = user.send("upload", "upload", [None, file])
    assert "clip.mp4, 8 frames" in text(preview)
    assert known["visible"] is False
    assert f"Question: {QUESTION}" in text(user.ask(QUESTION, "earlytom", 0.5, file))
    os.unlink(file["path"])  # as if its time was over
    gone = "the uploaded video is not here any more; upload it again"
    assert text(user.ask(QUESTION, "earlytom", 0.5, file)) == gone
    _, preview, *_ = user.send("upload", "clear", [None])
    assert "Clip 1" in text(preview)


@pytest.mark.parametrize("what", SAID)
def test_bad_upload(user, bad, what):
    file = user.upload(bad[what])
    upload, _, message, *_ = user.send("upload", "upload", [None, file])
    assert upload is None
    assert text(message) == SAID[what]
    assert 'role="alert"' in message
    assert not os.path.exists(file["path"])
    assert "Question" in text(user.ask(QUESTION, "tome", 0.5))  # the clip is still there


def test_upload_that_is_too_large(user, tmp_path, served):
    large = tmp_path / "large.mp4"
    large.write_bytes(bytes(1_100_000))
    with large.open("rb") as file:
        answer = user.http.post("/gradio_api/upload", files={"files": ("large.mp4", file)})
    assert answer.status_code == 413
    assert not list(served[1].rglob("large.mp4"))
    assert "Question" in text(user.ask(QUESTION, "tome", 0.5))


@pytest.mark.parametrize(
    ("question", "method", "ratio", "message"),
    [
        ("", "tome", 0.5, "type a question, or choose one"),
        (None, "tome", 0.5, "type a question, or choose one"),
        ("y" * 5000, "tome", 0.5, "the question has 5000 characters; at most 1000 are allowed"),
        (QUESTION, "tome", 7, "retention_ratio must be a number in (0, 1], got 7"),
        (QUESTION, "tome", 0, "retention_ratio must be a number in (0, 1], got 0"),
        (QUESTION, "tome", None, "retention_ratio must be a number in (0, 1], got None"),
        (QUESTION, "fastv", 0.01, "fastv, 1 %: fastv keeps at least 0.333 of the visual tokens"),
    ],
)
def test_bad_requests(user, question, method, ratio, message):
    assert text(user.ask(question, method, ratio)).startswith(message)


def test_requests_that_the_page_cannot_send(user):
    assert user.ask(QUESTION, "no-such-method", 0.5) == ""
    assert text(user.ask({"a": [1]}, ["tome"], {})).startswith("Something went wrong here")
    message = pick(user, 99)[2]
    assert text(message) == "there is no clip 100; choose 1 to 8"
    assert "Question" in text(user.ask(QUESTION, "tome", 0.5))


def test_a_defect_is_logged_and_the_page_lives(user, desk, monkeypatch, caplog):
    def broken(*args):
        raise RuntimeError("secret")

    with monkeypatch.context() as m:
        m.setattr(desk, "ask", broken)
        said = text(user.ask(QUESTION, "tome", 0.5))
    assert said == "Something went wrong here; the log of the server says what."
    assert "secret" in caplog.text
    assert "Question" in text(user.ask(QUESTION, "tome", 0.5))


def test_only_what_the_page_needs(user):
    for path in ("/docs", "/openapi.json", "/gradio_api/info", "/monitoring", "/gradio_api/runs",
                 "/gradio_api/proxy=http://127.0.0.1/", "/gradio_api/file=http://example.com/a.mp4",
                 "/gradio_api/file=file:///etc/passwd"):  # fmt: skip
        assert user.http.get(path).status_code == 404, path
    assert user.http.post("/gradio_api/vibe-edit", json={}).status_code == 404
    assert user.http.get("/gradio_api/file=/etc/passwd").status_code == 403
    assert user.http.post("/gradio_api/queue/join", content=b"x" * 2**21).status_code == 413
    policy = user.http.get("/").headers["content-security-policy"]
    assert "connect-src 'self'" in policy


@pytest.mark.parametrize("path", ["queue/join", "upload"])
def test_bodies_without_an_end_are_refused(served, path):
    """A length and chunks: the server reads chunks then, whatever the length says."""
    host, port = served[0].removeprefix("http://").split(":")
    head = (
        f"POST /gradio_api/{path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    with socket.create_connection((host, int(port)), timeout=30) as raw:
        raw.sendall(head.encode())
        assert raw.recv(1024).split(b" ", 2)[1] == b"413"


def test_an_upload_of_many_parts_is_refused(user):
    """Gradio's own limit counts every part for itself."""
    parts = [("files", (f"{i}.mp4", bytes(900_000))) for i in range(3)]
    assert user.http.post("/gradio_api/upload", files=parts).status_code == 413


def test_other_files_and_addresses_are_no_uploads(user, clip, contacted, served):
    before = sorted(served[1].rglob("*.mp4"))
    up = f"{served[1]}/../../{clip}"
    for place in (
        str(clip),
        up,
        "/etc/passwd",
        "http://192.0.2.1/a.mp4",
        "https://example.com/a.mp4",
    ):
        assert user.send("upload", "upload", [None, file_data(place)]) is None
        assert user.ask(file_data(place), "tome", 0.5) == ""
    assert contacted == []
    assert sorted(served[1].rglob("*.mp4")) == before
    assert not list(served[1].rglob("passwd"))


def test_an_upload_cannot_run_scripts(user, tmp_path):
    picture = tmp_path / "picture.svg"
    picture.write_text('<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>')
    file = user.upload(picture)
    user.ask(QUESTION, "tome", 0.5, file)
    headers = user.http.get(f"/gradio_api/file={file['path']}").headers
    assert headers["content-security-policy"] == "sandbox; default-src 'none'"


def test_nothing_else_was_contacted(user, contacted):
    page = user.http.get("/").text
    assert not re.search(r'<(script|link)[^>]*(src|href)="(https?:)?//', page)
    assert "fonts.g" not in page + user.http.get("/theme.css").text
    config = user.http.get("/config").json()
    assert config["analytics_enabled"] is False
    assert contacted == []


def test_uploads_are_deleted_at_the_end(desk, clip):
    before = os.environ.get(FOLDER_VARIABLE)
    with serving(desk) as (address, folder):
        file = User(address).upload(clip)
        assert os.path.exists(file["path"])
        assert folder in type(folder)(file["path"]).parents
    assert not folder.exists()
    assert os.environ.get(FOLDER_VARIABLE) == before


def test_all_methods_can_be_chosen(served, desk):
    config = User(served[0]).http.get("/config").json()
    (menu,) = (c for c in config["components"] if c["props"].get("elem_id") == "method")
    assert [c[0] for c in menu["props"]["choices"]] == [m for m in list_methods() if m != "compose"]


@pytest.mark.slow
def test_command(tmp_path):
    """`earlytom app` says where it is, answers, and leaves nothing behind when it is stopped."""
    folder = checkpoint.build(tmp_path / "model")
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    words = ("app", "--port", "0", "--json", "--model", str(folder), "--frames", "4")
    with subprocess.Popen(
        [sys.executable, "-m", "earlytom.cli", *words],
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(temporary)},
    ) as process:
        try:
            lines = iter(lambda: process.stdout.readline().decode(), "")
            said = "".join(itertools.takewhile(lambda x: x != "}\n", lines)) + "}"
            user = User(json.loads(said)["address"])
            assert "Question" in text(user.ask(QUESTION, "tome", 0.5))
            assert [p.name[:13] for p in temporary.glob("earlytom*")] == ["earlytom-app-"]
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 128 + signal.SIGTERM
        finally:
            process.kill()
    assert not list(temporary.glob("earlytom*"))
