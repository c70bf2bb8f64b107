"""Draw the pictures of ``docs/how-it-works.md``: ``python -m tests.docs.pictures``.

SVG files come in a light and a dark form, which the site and GitHub choose from by the end of the
link (``#gh-light-mode-only``). Counts in them are read off reports of the shipped model.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

import earlytom
from earlytom.files import atomic_write, write_text
from earlytom.inspect import inspect_video
from earlytom.inspect.paint import enlarged, paint
from earlytom.pipeline import VideoQA
from earlytom.report import Report
from earlytom.tiny import make_clip
from earlytom.video import Video

ASSETS = Path(__file__).parents[2] / "docs" / "assets"
SEED, QUESTION, RATIO = 7, "how many shots are there?", 0.25
FLOWS = ("afterimage", "earlytom", "tome", "holitom", "fastv")
SHOWN = (0, 2, 3, 8, 9, 13)  # frames in the strips
WIDTH = 440  # readable at the width of a phone

THEMES = {
    "light": {
        "text": "#1f2328",
        "quiet": "#59636e",
        "line": "#8c959f",
        "box": "#f2f4f7",
        "gone": "#e3e6ea",
        "vision": "#0072b2",
        "tokens": "#00795a",
        "language": "#9a4f79",
    },
    "dark": {
        "text": "#e6edf3",
        "quiet": "#a5adb7",
        "line": "#6e7681",
        "box": "#262c36",
        "gone": "#343b46",
        "vision": "#56b4e9",
        "tokens": "#2fc79a",
        "language": "#e39bc3",
    },
}
Theme = dict[str, str]


@dataclass(frozen=True)
class Flow:
    """What a method leaves, layer by layer, as shares of the full model."""

    name: str
    encoder: list[float]
    language: list[float]
    note: str


def flow(name: str, report: Report, layers: int, decoders: int, patches: int) -> Flow:
    """Read a flow off a report.

    Args:
        name: of the method.
        report: of a call with one video.
        layers: encoder layers.
        decoders: layers of the language model.
        patches: of a frame.
    """
    video = report.videos[0]
    total = video.frames_in * patches
    encoder, notes = [1.0] * layers, []
    for layer, frames in zip(video.merge_layers, video.frames_per_merge_point, strict=True):
        encoder[layer + 1 :] = [frames / video.frames_in] * (layers - layer - 1)
    if video.merge_layers:
        steps = (video.frames_in, *video.frames_per_merge_point)
        notes.append(" to ".join(map(str, steps)) + " frames")
    for layer, left in video.patch_reductions:
        encoder[layer + 1 :] = [left / patches] * (layers - layer - 1)
    if video.patch_reductions:
        notes.append(f"{patches} to {video.patch_reductions[-1][1]} patches a frame")
    if video.reuse is not None:
        first, fresh, _ = video.reuse
        encoder[first:] = [fresh / total] * (layers - first)
        notes.append(f"{total} to {fresh} patches")
    tokens = list(report.layer_tokens) or [video.tokens_out] * decoders
    notes.append(f"{video.tokens_in} to {tokens[-1]} tokens")
    return Flow(name, encoder, [t / video.tokens_in for t in tokens], ", ".join(notes))


def draw_flows(flows: list[Flow], theme: Theme) -> str:
    """Return a panel of bars per method, one bar per layer."""
    panel, step, high = 78, 21, 40
    body, said = [], []
    for k, one in enumerate(flows):
        top = 26 + k * panel
        body.append(_text(0, top + 12, one.name, theme["text"], weight="bold"))
        body.append(_text(WIDTH, top + 12, one.note, theme["quiet"], size=12, anchor="end"))
        said.append(f"{one.name}: {one.note}")
        bars = [(i * step, v, "vision") for i, v in enumerate(one.encoder)]
        offset = len(one.encoder) * step + 30
        bars += [(offset + i * step, v, "language") for i, v in enumerate(one.language)]
        for x, share, kind in bars:
            y = top + 20
            body.append(_rect(x, y, step - 4, high, theme["gone"]))
            filled = max(1.0, round(high * share, 1))
            body.append(_rect(x, y + high - filled, step - 4, filled, theme[kind]))
    body.insert(0, _text(0, 14, "layers of the vision encoder", theme["vision"], size=13))
    body.insert(1, _text(WIDTH, 14, "of the language model", theme["language"], 13, "end"))
    title = "Share of patches and tokens that every layer still computes"
    return _svg(26 + len(flows) * panel, title, "; ".join(said), body)


STAGES = (
    ("video", "text", ("frames, cut into patches",)),
    (
        "vision encoder",
        "vision",
        ("I  fewer frames: merge those alike", "    fewer patches: reuse or join"),
    ),
    ("projector", "tokens", ("II  fewer tokens: choose, and give", "    those left a weight")),
    (
        "language model",
        "language",
        ("III  fewer tokens once more, while", "    it reads the prompt"),
    ),
    ("answer", "text", ("IV  fewer tokens looked at, while", "    it writes")),
)


def draw_stages(theme: Theme) -> str:
    """Return the way from video to answer, with the four stages beside it."""
    high, gap, box = 52, 26, 150
    body, said = [], []
    for k, (name, colour, lines) in enumerate(STAGES):
        top = k * (high + gap) + 2
        said.append(f"{name}: {' '.join(' '.join(lines).split())}")
        body.append(
            f'<rect x="1" y="{top}" width="{box}" height="{high}" rx="8" fill="{theme["box"]}" '
            f'stroke="{theme[colour]}" stroke-width="2"/>'
        )
        body.append(_text(1 + box / 2, top + high / 2 + 5, name, theme["text"], 15, "middle"))
        for i, line in enumerate(lines):
            indent = 24 if line.startswith(" ") else 0
            y = top + high / 2 + 5 + (i - (len(lines) - 1) / 2) * 20
            body.append(_text(box + 22 + indent, y, line.strip(), theme[colour], 14))
        if k + 1 < len(STAGES):
            x, y = 1 + box / 2, top + high
            body.append(
                f'<path d="M{x} {y + 2}v{gap - 8}m-5 -6l5 6l5 -6" fill="none" '
                f'stroke="{theme["line"]}" stroke-width="2"/>'
            )
    title = "Four places where tokens can be saved"
    return _svg(len(STAGES) * (high + gap) - gap + 4, title, "; ".join(said), body)


def _svg(height: float, title: str, description: str, body: list[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" '
        f'font-family="Helvetica, Arial, sans-serif" role="img" aria-labelledby="t d">\n'
        f'<title id="t">{escape(title)}</title>\n<desc id="d">{escape(description)}</desc>'
    )
    return "\n".join([head, *body, "</svg>\n"])


def _text(
    x: float,
    y: float,
    text: str,
    colour: str,
    size: int = 14,
    anchor: str = "start",
    weight: str = "normal",
) -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" fill="{colour}" font-size="{size}" text-anchor="{anchor}" '
        f'font-weight="{weight}">{escape(text)}</text>'
    )


def _rect(x: float, y: float, width: float, height: float, colour: str) -> str:
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="1" fill="{colour}"/>'
    )


# ---------------------------------------------------------------------- from the model
def measured_flows(qa: VideoQA) -> list[Flow]:
    """Return the flows of ``FLOWS`` on a generated clip."""
    frames = torch.from_numpy(make_clip(SEED).frames)
    layers, decoders = qa.adapter.usable_layers, len(qa.adapter.decoder_layers)
    found = []
    for name in FLOWS:
        method = earlytom.load_method(name, retention_ratio=RATIO)
        answer = qa.ask(frames, QUESTION, method, max_new_tokens=1)
        assert answer.report is not None
        found.append(flow(name, answer.report, layers, decoders, qa.adapter.patch_count))
    return found


def svg_files(flows: list[Flow]) -> dict[str, str]:
    """Return the text of every SVG file by its name."""
    files = {}
    for name, theme in THEMES.items():
        files[f"stages-{name}.svg"] = draw_stages(theme)
        files[f"flow-{name}.svg"] = draw_flows(flows, theme)
    return files


def strips(qa: VideoQA) -> dict[str, np.ndarray[Any, Any]]:
    """Return rows of frames of the clip, plain and as methods left them."""
    frames = torch.from_numpy(make_clip(SEED).frames)
    index = torch.arange(len(frames))
    video = Video(frames, index.double() / 4, 4.0, len(frames) / 4, index)
    names = ("afterimage", "earlytom", "tome")
    methods = {n: earlytom.load_method(n, retention_ratio=RATIO) for n in names}
    found = inspect_video(qa, video, QUESTION, methods, max_new_tokens=1)
    large = [enlarged(found.pictures[i], 144) for i in SHOWN]
    gap = np.full((large[0].shape[0], 8, 3), 128, np.uint8)

    def row(pictures: list[Any]) -> np.ndarray[Any, Any]:
        parts = [x for p in pictures for x in (p, gap)]
        return np.concatenate(parts[:-1], 1)

    rows = {"clip": row(large)}
    for run in found.runs:
        for i, drawn in enumerate(run.maps):
            painted = [paint(p, drawn, f) for p, f in zip(large, SHOWN, strict=True)]
            rows[f"clip-{run.label}" + (f"-{i + 1}" if i else "")] = row(painted)
    return rows


def main() -> None:
    """Write all pictures."""
    from PIL import Image

    qa = VideoQA.load(device="cpu")
    for name, text in svg_files(measured_flows(qa)).items():
        write_text(ASSETS / name, text)
    for name, pixels in strips(qa).items():
        buffer = BytesIO()
        Image.fromarray(pixels).save(buffer, "webp", quality=85, method=6)
        data = buffer.getvalue()
        atomic_write(ASSETS / f"{name}.webp", lambda path, data=data: path.write_bytes(data))


if __name__ == "__main__":
    main()
