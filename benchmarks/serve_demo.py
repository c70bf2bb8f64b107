"""Serve the shipped model with ``earlytom serve`` and ask it about a generated video over HTTP.

Run by ``make serve-demo``. Ends with an error unless the answer is right and the counts are exact.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import typer

from earlytom.errors import EarlyTomError
from earlytom.serve import ask, chat_body, counters, data_url
from earlytom.tiny import write_video

SEED, KIND, RATIO, TOKENS = 7, "color", 0.25, 16 * 49
TAIL = 20  # lines of the log to show if it does not start


@contextlib.contextmanager
def serving(log: Path, *options: str) -> Iterator[dict[str, str]]:
    """Run ``earlytom serve`` on a free port; yield its ready line."""
    command = [sys.executable, "-m", "earlytom", "serve", "--port", "0", "--json"]
    command += ["--log-file", str(log), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            ready = json.loads(child.stdout.readline() or "{}")
            if "url" not in ready:
                child.wait()
                tail = log.read_text().splitlines()[-TAIL:] if log.exists() else []
                raise EarlyTomError("\n".join(["the server did not start", *tail]))
            yield ready
        finally:
            child.send_signal(signal.SIGINT)
    if child.returncode != 0:
        raise EarlyTomError(f"the server ended with exit code {child.returncode}")


def main() -> None:
    """Start, ask with all tokens and with a quarter of them, show the counters, stop."""
    with tempfile.TemporaryDirectory(prefix="earlytom-serve-demo-") as name:
        folder = Path(name)
        clip = folder / "clip.mp4"
        listing = json.loads(write_video(clip, SEED).read_text(encoding="utf-8"))
        found = next(q for q in listing["questions"] if q["type"] == KIND)
        question, expected = found["question"], found["answer"]
        with serving(folder / "log", "--retention-ratio", str(RATIO)) as ready:
            url, model = ready["url"], ready["model"]
            typer.echo(f"{url} serves {model}: method {ready['method']}, {RATIO:.0%} of the tokens")
            typer.echo(f"{question}  (right: {expected})")
            replies = {}
            for ratio in (1, RATIO):
                body = chat_body(model, question, [data_url(clip)], ratio)
                reply = replies[ratio] = ask(url, body)
                prompt = reply.usage.get("prompt_tokens")
                typer.echo(
                    f"  {ratio:4.0%} of the tokens: {reply.text.strip()!r}, "
                    f"prompt of {prompt} tokens, {reply.video_tokens} of the video"
                )
            typer.echo("counters at /metrics:")
            shown = counters(url)
            for key, value in shown.items():
                if not key.endswith("_created"):
                    typer.echo(f"  {key} {value:g}")
    wrong = [r.text for r in replies.values() if r.text.strip() != expected]
    kept = int(RATIO * TOKENS)
    counts = [replies[1].video_tokens, replies[RATIO].video_tokens]
    if wrong or counts != [TOKENS + 1, kept + 1]:  # a newline token behind the video
        raise EarlyTomError(f"expected {expected} and {kept + 1} tokens: {wrong}, {counts}")
    if shown.get("earlytom_visual_tokens_after_total") != kept:
        raise EarlyTomError(f"the counters are wrong: {shown}")
    typer.echo("the server has stopped; all as expected")


if __name__ == "__main__":
    try:
        main()
    except EarlyTomError as e:
        sys.exit(f"error: {e}")
