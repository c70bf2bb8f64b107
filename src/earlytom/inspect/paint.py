"""The same pictures without a browser: overlays as pixels, PNG sheets, a video."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from earlytom.bench.report.plots import drawing
from earlytom.errors import VideoError
from earlytom.files import atomic_write
from earlytom.inspect.data import CellMap, Inspection, MethodRun
from earlytom.inspect.images import heat
from earlytom.inspect.states import DROPPED, FRESH, KEPT, LATER, MERGED, NAMES, REPLACED, REUSED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Pixels = NDArray[np.uint8]
COLOURS = {
    KEPT: "#FFB000",
    MERGED: "#0072B2",
    REPLACED: "#56B4E9",
    LATER: "#CC79A7",
    DROPPED: "#0C0F12",
    FRESH: "#FFB000",
    REUSED: "#0C0F12",
}
_VEIL = {MERGED: 0.5, REPLACED: 0.6, LATER: 0.5, DROPPED: 0.74, REUSED: 0.74}
_SIDE = 336  # pixels of the longer side of a frame in the video


def paint(picture: Pixels, drawn: CellMap, frame: int) -> Pixels:
    """Lay the states of a frame over its picture.

    Args:
        picture: ``[H, W, 3]`` uint8, at least a few pixels per cell.
        drawn: the states.
        frame: which frame.

    Returns:
        ``[H, W, 3]`` uint8: cells without a token of their own are veiled, others have an outline;
        white lines between the patches of different tokens.
    """
    height, width = picture.shape[:2]
    rows, columns = drawn.grid
    letters = np.array(list(drawn.states[frame])).reshape(drawn.grid)
    y = np.arange(height) * rows // height
    x = np.arange(width) * columns // width
    cell = letters[y[:, None], x[None]]
    out = picture.astype(np.float32)
    lines = drawn.borders[frame] if drawn.borders else []
    for letter, strength in _VEIL.items():
        mask = cell == letter
        if lines and letter == MERGED:  # the borders say what went together
            strength = 0.3
        out[mask] = (1 - strength) * out[mask] + strength * _rgb(letter)
    for letter in (KEPT, FRESH):
        inside = np.pad(cell == letter, 1)
        core = inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
        out[inside[1:-1, 1:-1] & ~core] = _rgb(letter)
    for a, b, right, down in lines:
        top, left = b * height // rows, a * width // columns
        bottom, end = (b + down) * height // rows, (a + right) * width // columns
        out[top : max(bottom, top + 1), left : max(end, left + 1)] = 255
    return out.round().astype(np.uint8)


def _rgb(letter: str) -> NDArray[np.float32]:
    colour = COLOURS[letter]
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)], np.float32)


def enlarged(picture: Pixels, side: int = _SIDE) -> Pixels:
    """Resize ``[H, W, 3]`` so that the longer side has ``side`` pixels (both even)."""
    import av

    scale = side / max(picture.shape[:2])
    height, width = (max(2, 2 * round(n * scale / 2)) for n in picture.shape[:2])
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
    frame = frame.reformat(width, height, interpolation="BICUBIC")
    done: Pixels = frame.to_ndarray(format="rgb24")
    return done


def write_pictures(found: Inspection, folder: Path) -> list[Path]:
    """Write a sheet of every map and of received attention of every method as PNG.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    written = []
    with drawing():
        for run in found.runs:
            sheets = [(m.title, _map_sheet(found, run, m)) for m in run.maps]
            if run.attention is not None:
                sheets.append(("Received attention", _heat_sheet(found, run)))
            for title, figure in sheets:
                path = folder / f"{_slug(run.label)}-{_slug(title)}.png"
                atomic_write(path, partial(figure.savefig, metadata={"Software": "earlytom"}))
                written.append(path)
    return written


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _map_sheet(found: Inspection, run: MethodRun, drawn: CellMap) -> Figure:
    cells = [
        (f"{i + 1}: {found.seconds[i]:.2f} s", paint(enlarged(p), drawn, i))
        for i, p in enumerate(found.pictures)
    ]
    letters = dict.fromkeys("".join(drawn.states))
    said = [(NAMES[k], COLOURS[k], k in (KEPT, FRESH)) for k in NAMES if k in letters]
    return _sheet(f"{run.label}: {drawn.title}", cells, said)


def _heat_sheet(found: Inspection, run: MethodRun) -> Figure:
    assert run.attention is not None
    cells = []
    for frame, colours in zip(run.report.first, heat(run.attention), strict=True):
        picture = enlarged(found.pictures[frame])
        rows, columns = colours.shape[:2]
        y = np.arange(picture.shape[0]) * rows // picture.shape[0]
        x = np.arange(picture.shape[1]) * columns // picture.shape[1]
        mixed = 0.2 * picture + 0.8 * colours[y[:, None], x[None]]
        cells.append((f"{frame + 1}: {found.seconds[frame]:.2f} s", mixed.astype(np.uint8)))
    return _sheet(
        f"{run.label}: received attention, 1/8 (blue) to 8 (yellow) times the mean", cells
    )


def _sheet(
    title: str, cells: list[tuple[str, Pixels]], legend: list[tuple[str, str, bool]] | None = None
) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    columns = min(8, len(cells))
    rows = -(-len(cells) // columns)
    shape = cells[0][1].shape
    high = 1.35 * shape[0] / shape[1] + 0.3
    figure = Figure(figsize=(1.4 * columns, rows * high + 0.8), layout="constrained")
    figure.suptitle(title, fontsize=11)
    for k, (name, picture) in enumerate(cells):
        axes = figure.add_subplot(rows, columns, k + 1)
        axes.imshow(picture)
        axes.set_axis_off()
        axes.set_title(name, fontsize=7)
    if legend:
        handles = [
            Patch(facecolor="none" if hollow else colour, edgecolor=colour, label=name)
            for name, colour, hollow in legend
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8)
    return figure


def write_overlay_video(found: Inspection, path: Path, hold: float = 0.5) -> None:
    """Write an H.264 video: every frame with the first map of every method, side by side.

    Args:
        found: what to show.
        path: file to write, replaced at the end.
        hold: seconds that a frame is shown.

    Raises:
        VideoError: the file cannot be written.
        MissingExtraError: matplotlib (for the labels) is not installed.
    """
    import av

    def write(temporary: Path) -> None:
        with av.open(str(temporary), "w", format="mp4") as out:
            rate = Fraction(1) / Fraction(hold).limit_denominator(1000)
            stream: Any = None
            for image in _video_frames(found):
                if stream is None:
                    stream = out.add_stream("libx264", rate=rate)
                    stream.height, stream.width = image.shape[:2]
                    stream.pix_fmt = "yuv420p"
                    stream.options = {"crf": "18", "preset": "veryfast", "threads": "1"}
                out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            out.mux(stream.encode(None))

    try:
        atomic_write(path, write)
    except OSError as e:
        raise VideoError(f"cannot write {path}: {e}") from e


def _video_frames(found: Inspection) -> Iterator[Pixels]:
    """Yield ``[H, W, 3]`` images, even in both directions."""
    labels = [_label(r.label, enlarged(found.pictures[0]).shape[1]) for r in found.runs]
    for i, picture in enumerate(found.pictures):
        large = enlarged(picture)
        columns = [
            np.concatenate([label, paint(large, run.maps[0], i)])
            for label, run in zip(labels, found.runs, strict=True)
        ]
        yield np.ascontiguousarray(np.concatenate(columns, 1))


def _label(text: str, width: int) -> Pixels:
    with drawing():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(width / 100, 0.28), dpi=100)
        figure.text(0.02, 0.5, text, va="center", fontsize=9)
        buffer = BytesIO()
        figure.savefig(buffer, format="rgba", dpi=100)
    pixels = np.frombuffer(buffer.getvalue(), np.uint8).reshape(28, width, 4)
    return np.ascontiguousarray(pixels[..., :3])
