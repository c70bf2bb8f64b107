"""A small client of a server: questions about videos, and its counters."""

from __future__ import annotations

import base64
import http.client
import json
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from earlytom.errors import EarlyTomError
from earlytom.network import open_url

_CHAT = "/v1/chat/completions"
_DATA = "data:"
_PREFIX = "earlytom_"


@dataclass(frozen=True)
class Reply:
    """What a server said.

    Attributes:
        status: of HTTP.
        text: the answer, or the reason why there is none.
        usage: tokens, as the server counts them.
        first: seconds until the first piece of text, None if the answer was not streamed.
        seconds: until the end.
    """

    status: int
    text: str
    usage: dict[str, Any]
    first: float | None
    seconds: float

    @property
    def video_tokens(self) -> int:
        """Placeholders of videos in the prompt, newline tokens included."""
        details = self.usage.get("prompt_tokens_details") or {}
        return int((details.get("multimodal_tokens") or {}).get("video", 0))


def data_url(video: str | Path | bytes) -> str:
    """Return a video (a file, or what is in it) as an address that holds it."""
    data = video if isinstance(video, bytes) else Path(video).read_bytes()
    return "data:video/mp4;base64," + base64.b64encode(data).decode()


def chat_body(
    name: str,
    question: str,
    videos: Sequence[str],
    ratio: Any = None,
    max_tokens: int = 32,
    **more: Any,
) -> dict[str, Any]:
    """Return the body of a request.

    Args:
        name: of the model.
        question: about the videos.
        videos: their addresses (``data:``, ``file:`` or ``http:``).
        ratio: retention ratio; None: that of the server.
        max_tokens: of the answer.
        more: further members.
    """
    content: list[dict[str, Any]] = [
        {"type": "video_url", "video_url": {"url": address}} for address in videos
    ]
    content.append({"type": "text", "text": question})
    body = {
        "model": name,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": max_tokens,
        "temperature": 0,
        **more,
    }
    if ratio is not None:
        body["mm_processor_kwargs"] = {"retention_ratio": ratio}
    return body


@contextmanager
def posted(
    url: str, body: dict[str, Any], timeout: float = 120
) -> Iterator[http.client.HTTPResponse]:
    """Send a request; the connection closes when the context does.

    Raises:
        EarlyTomError: the server cannot be reached, or hangs up.
    """
    where = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=timeout)
    try:
        connection.request("POST", _CHAT, json.dumps(body), {"Content-Type": "application/json"})
        yield connection.getresponse()
    except (OSError, http.client.HTTPException) as e:
        raise EarlyTomError(f"{url} does not answer: {e}") from e
    finally:
        connection.close()


def ask(url: str, body: dict[str, Any], timeout: float = 120) -> Reply:
    """Return the answer to a request, or the error that came instead of it.

    Raises:
        EarlyTomError: the server cannot be reached, or hangs up.
    """
    start = time.perf_counter()
    with posted(url, body, timeout) as response:
        raw = response.read()
    seconds = time.perf_counter() - start
    if response.status != 200:
        return Reply(response.status, raw.decode(errors="replace"), {}, None, seconds)
    data = json.loads(raw)
    return Reply(200, data["choices"][0]["message"]["content"], data["usage"], None, seconds)


def ask_streaming(url: str, body: dict[str, Any], timeout: float = 120) -> Reply:
    """Return the same, with the time of the first piece.

    Raises:
        EarlyTomError: the server cannot be reached, hangs up, or fails on the way.
    """
    streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
    start = time.perf_counter()
    text, first = "", None
    usage: dict[str, Any] = {}
    with posted(url, streamed, timeout) as response:
        if response.status != 200:
            reason = response.read().decode(errors="replace")
            return Reply(response.status, reason, {}, None, time.perf_counter() - start)
        for line in response:
            found = line.decode().strip().removeprefix(_DATA).strip()
            if not found or found == "[DONE]":
                continue
            data = json.loads(found)
            if "error" in data:
                raise EarlyTomError(f"{url} failed on the way: {data['error']}")
            usage = data.get("usage") or usage
            for choice in data["choices"]:
                piece = choice["delta"].get("content") or ""
                if piece and first is None:
                    first = time.perf_counter() - start
                text += piece
    return Reply(200, text, usage, first, time.perf_counter() - start)


def counters(url: str) -> dict[str, float]:
    """Return what a server has compressed: the plugin's counters, summed over methods.

    Names are those of Prometheus, ``earlytom_videos_total`` and so on.

    Raises:
        EarlyTomError: the server cannot be reached.
    """
    try:
        with open_url(url + "/metrics", timeout=30) as response:
            lines = response.read().decode().splitlines()
    except OSError as e:
        raise EarlyTomError(f"{url} does not answer: {e}") from e
    found: dict[str, float] = {}
    for line in lines:
        name, _, rest = line.partition("{")
        if rest and name.startswith(_PREFIX) and not name.endswith("_bucket"):
            found[name] = found.get(name, 0.0) + float(rest.rpartition(" ")[2])
    return found
