"""What to type or paste to ask a server."""

from __future__ import annotations

import json
import shlex

from earlytom.serve.client import chat_body

CLIP, QUESTION = "clip.mp4", "what color is the circle?"
_MARK = "@VIDEO@"

_PYTHON = """\
import base64, json, urllib.request

video = base64.b64encode(open({clip!r}, "rb").read()).decode()
body = {{
    "model": {name!r},
    "messages": [{{"role": "user", "content": [
        {{"type": "video_url", "video_url": {{"url": "data:video/mp4;base64," + video}}}},
        {{"type": "text", "text": {question!r}}},
    ]}}],
    "max_tokens": 32,
    "temperature": 0,{ratio}
}}
request = urllib.request.Request(
    "{url}/v1/chat/completions",
    json.dumps(body).encode(),
    {{"Content-Type": "application/json"}},
)
answer = json.load(urllib.request.urlopen(request))
print(answer["choices"][0]["message"]["content"], answer["usage"])
"""


def curl_example(
    url: str,
    name: str,
    ratio: float | None = None,
    clip: str = CLIP,
    question: str = QUESTION,
) -> str:
    """Return shell commands that ask about a video file, which may be large.

    Args:
        url: of the server.
        name: of the model.
        ratio: retention ratio of the request; None: that of the server.
        clip: video file.
        question: about it.
    """
    body = chat_body(name, question, [f"data:video/mp4;base64,{_MARK}"], ratio)
    before, after = json.dumps(body).split(_MARK)
    parts = f"printf %s {shlex.quote(before)}; base64 < {shlex.quote(clip)} | tr -d '\\n'"
    return (
        f"{{ {parts}; printf %s {shlex.quote(after)}; }} |\n"
        f"  curl -s {url}/v1/chat/completions -H 'Content-Type: application/json' -d @-"
    )


def python_example(
    url: str,
    name: str,
    ratio: float | None = None,
    clip: str = CLIP,
    question: str = QUESTION,
) -> str:
    """Return a program that asks the same and needs nothing but Python."""
    line = ""
    if ratio is not None:
        line = f'\n    "mm_processor_kwargs": {{"retention_ratio": {ratio}}},'
    return _PYTHON.format(url=url, name=name, ratio=line, clip=clip, question=question)
