"""Results, previews and messages as pieces of HTML; everything a user wrote is escaped."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from earlytom.inspect import Inspection
from earlytom.inspect.data import CellMap, MethodRun
from earlytom.inspect.images import address, jpeg
from earlytom.inspect.page import PARTS, answer_facts, time_parts
from earlytom.inspect.paint import COLOURS, enlarged, paint
from earlytom.inspect.states import FRESH, KEPT, MEANING, NAMES, count
from earlytom.templates import load_template
from earlytom.video import Video

SIDE, THUMB = 280, 112  # longer side of a frame of the result and of the preview, in pixels
TEMPLATE = "parts.html.j2"


def show_result(found: Inspection, right: str | None = None) -> str:
    """Return the answers, times and frames of all tokens and of the first method, side by side.

    Args:
        found: what was asked and what came of it.
        right: the right answer, where it is known.
    """
    run = found.runs[0]
    large = [enlarged(p, SIDE) for p in found.pictures]
    return _render(
        "result",
        question=found.question,
        right=right,
        sides=[_full(found, large, right), _method(found, run, large, right)],
        parts=[*(name for _, name in PARTS), "rest"],
    )


def show_preview(title: str, video: Video) -> str:
    """Return a strip of all frames of a video."""
    pictures = [address(jpeg(x.numpy(), THUMB), "jpeg") for x in video.frames]
    times = [f"{s:.2f} s" for s in video.timestamps.tolist()]
    return _render("preview", title=title, frames=list(zip(pictures, times, strict=True)))


def show_message(text: str) -> str:
    """Return a message about something that did not work."""
    return _render("message", text=text)


def style() -> str:
    """Return the style sheet of the page."""
    return files(__package__).joinpath("style.css").read_text("utf-8")


def _full(found: Inspection, large: list[NDArray[np.uint8]], right: str | None) -> dict[str, Any]:
    frames = [
        (address(jpeg(x, SIDE), "jpeg"), f"{s:.2f} s", "the whole frame")
        for x, s in zip(large, found.seconds, strict=True)
    ]
    maps = [{"title": "Every frame, whole", "frames": frames, "legend": []}]
    return _side("All tokens", found, found.full, maps, right)


def _method(
    found: Inspection, run: MethodRun, large: list[NDArray[np.uint8]], right: str | None
) -> dict[str, Any]:
    maps = [
        {"title": m.title, "frames": _painted(found, m, large), "legend": _legend(m)}
        for m in run.maps
    ]
    return _side(run.label, found, run.answer, maps, right)


def _painted(
    found: Inspection, drawn: CellMap, large: list[NDArray[np.uint8]]
) -> list[tuple[str, str, str]]:
    return [
        (
            address(jpeg(paint(x, drawn, i), SIDE), "jpeg"),
            f"{found.seconds[i]:.2f} s",
            ", ".join(f"{n} {name}" for name, n in count([drawn.states[i]]).items()),
        )
        for i, x in enumerate(large)
    ]


def _legend(drawn: CellMap) -> list[tuple[str, str, str, bool]]:
    """Return (name, meaning, colour, whether it is an outline) of the states of a map."""
    letters = {k for row in drawn.states for k in row}
    return [
        (NAMES[k], MEANING[k].partition(": ")[2], COLOURS[k], k in (KEPT, FRESH))
        for k in NAMES
        if k in letters
    ]


def _side(
    label: str, found: Inspection, answer: Any, maps: list[dict[str, Any]], right: str | None
) -> dict[str, Any]:
    slowest = max(a.timings.ttft for a in (found.full, *(r.answer for r in found.runs)))
    said = answer.text.strip().strip(".").lower()
    return {
        **answer_facts(label, answer, found.full),
        "times": time_parts(label, answer, slowest),
        "verdict": "" if right is None else "right" if said == right.lower() else "wrong",
        "encoded": f"{answer.patches_out} of {answer.patches_in} patches computed by the last layer"
        " of the encoder",
        "maps": maps,
    }


def _render(block: str, **values: Any) -> str:
    """Return one macro of the template."""
    return str(getattr(_template(), block)(**values))


@cache
def _template() -> Any:
    missing = "the page needs Jinja2: pip install 'earlytom[demo]'"
    return load_template(__package__, TEMPLATE, missing).module
