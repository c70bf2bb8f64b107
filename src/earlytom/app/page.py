"""The page itself; importing this module needs Gradio (see :func:`earlytom.app.server.serve`)."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import gradio as gr

from earlytom.app.clips import Sample, mosaic
from earlytom.app.desk import MOST_TEXT, Desk
from earlytom.app.show import show_message, show_preview, show_result
from earlytom.errors import EarlyTomError

logger = logging.getLogger(__name__)

TITLE = "earlytom"
INTRO = (
    "<h1>earlytom</h1><p>Ask about a video, once with all visual tokens and once with few of them, "
    "and see which were kept.</p>"
)
WAITING = 32  # requests that may wait; Gradio refuses more with a message
BROKEN = "Something went wrong here; the log of the server says what."
DEFAULT_METHOD, DEFAULT_RATIO = "afterimage", 0.25
NOTHING = -1  # selected in the gallery; None would leave it as it is


def build_page(desk: Desk, max_upload_mb: int) -> gr.Blocks:
    """Return the page.

    Args:
        desk: answers.
        max_upload_mb: limit on uploads that the page names; the server enforces it.
    """
    do = _Events(desk)
    first = desk.samples[0]
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        number = gr.State(0)
        gr.HTML(INTRO, elem_id="intro")
        with gr.Row():
            with gr.Column(scale=3, min_width=300):
                gallery = gr.Gallery(
                    [(mosaic(s.video), s.title) for s in desk.samples],
                    label="Choose a generated clip",
                    columns=4,
                    height="auto",
                    allow_preview=False,
                    interactive=False,
                    buttons=[],
                    selected_index=0,
                    elem_id="clips",
                )
                upload = gr.File(
                    label=f"or upload a video of at most {max_upload_mb} MB",
                    height=150,
                    elem_id="upload",
                )
            with gr.Column(scale=2, min_width=280):
                known = gr.Dropdown(
                    _choices(first), label="Questions about this clip", elem_id="known"
                )
                question = gr.Textbox(
                    first.questions[0].question,
                    label="Question",
                    max_length=MOST_TEXT,
                    lines=1,  # with more, Enter does not ask
                    max_lines=4,
                    elem_id="question",
                )
                method = gr.Dropdown(
                    [entry.name for entry in desk.methods],
                    value=DEFAULT_METHOD,
                    label="Method",
                    info=do.about(DEFAULT_METHOD),
                    elem_id="method",
                )
                ratio = gr.Number(
                    DEFAULT_RATIO,
                    label="Retention ratio",
                    info="Share of the visual tokens to keep, above 0 and at most 1.",
                    step=0.05,
                    elem_id="ratio",
                )
                ask = gr.Button("Ask", variant="primary", elem_id="ask")
        preview = gr.HTML(show_preview(first.title, first.video), elem_id="preview")
        result = gr.HTML(elem_id="result", min_height=120)

        quick: dict[str, Any] = {
            "show_progress": "hidden",
            "api_visibility": "private",
            "concurrency_limit": 2,
            "concurrency_id": "quick",
        }
        video = [preview, known, question]
        gallery.select(do.pick, None, [number, upload, *video], **quick)
        upload.upload(do.take, [number, upload], [upload, gallery, *video], **quick)
        upload.clear(do.drop, [number], [gallery, *video], **quick)
        known.input(lambda text: text, [known], [question], **quick)
        method.change(lambda name: gr.update(info=do.about(name)), [method], [method], **quick)
        gr.on(
            [ask.click, question.submit],
            do.ask,
            [number, upload, question, method, ratio],
            [result],
            api_visibility="private",
            scroll_to_output=True,
            concurrency_limit=1,  # a call that waits for another would measure the wait
        )
    page.queue(max_size=WAITING, api_open=False)
    return page


class _Events:
    """What happens on the page. Nothing about a user is kept here."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    def about(self, method: str) -> str:
        """Return the first line about a method."""
        return next((e.summary for e in self.desk.methods if e.name == method), "")

    def pick(self, event: gr.SelectData) -> tuple[Any, ...]:
        """Choose a generated clip; it takes the place of an upload."""
        try:
            sample = self.desk.sample(int(event.index))
        except (EarlyTomError, TypeError, ValueError) as e:
            return (gr.skip(), gr.skip(), show_message(str(e)), gr.skip(), gr.skip())
        return (event.index, None, *_shown(sample))

    def take(self, number: int, path: str) -> tuple[Any, ...]:
        """Look at an upload; one that cannot be used is taken out again."""
        try:
            video = self.desk.upload(Path(path))
            strip = show_preview(video.source, video)
        except EarlyTomError as e:
            said = str(e)
        except Exception:
            logger.exception("an upload could not be shown")
            said = BROKEN
        else:
            none = gr.update(choices=[], value=None, visible=False)
            return (gr.skip(), gr.update(selected_index=NOTHING), strip, none, "")
        Path(path).unlink(missing_ok=True)
        message = show_message(said)
        return (None, gr.update(selected_index=number), message, *_asked(self.desk.sample(number)))

    def drop(self, number: int) -> tuple[Any, ...]:
        """Go back to the generated clip that was chosen last."""
        return (gr.update(selected_index=number), *_shown(self.desk.sample(number)))

    def ask(
        self,
        number: int,
        path: str | None,
        question: str | None,
        method: str,
        ratio: float | None,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 (Gradio finds it by its default)
    ) -> str:
        """Return the answers and what was kept, or what is wrong, as HTML."""

        def advance(label: str) -> None:
            full = label == "full"
            progress((1 if full else 2, 3), desc="all tokens" if full else label)

        try:
            if path is None:
                sample = self.desk.sample(number)
                video, right = sample.video, sample.right_answer(question or "")
            else:
                video, right = self.desk.upload(Path(path)), None
            found = self.desk.ask(video, question, method, ratio, advance)
            return show_result(found, right)
        except EarlyTomError as e:
            return show_message(str(e))
        except Exception:
            logger.exception("a question could not be answered")
            return show_message(BROKEN)


def _shown(sample: Sample) -> tuple[Any, ...]:
    """Return preview, list of questions and question of a generated clip."""
    return (show_preview(sample.title, sample.video), *_asked(sample))


def _asked(sample: Sample) -> tuple[Any, ...]:
    choices = _choices(sample)
    return gr.update(choices=choices, value=choices[0], visible=True), choices[0]


def _choices(sample: Sample) -> list[str]:
    return [q.question for q in sample.questions]
