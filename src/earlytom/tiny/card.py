"""The model card that ships beside the weights."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from safetensors import safe_open

from earlytom.files import write_text
from earlytom.tiny.architecture import architecture
from earlytom.tiny.questions import TYPES

_HEAD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: video-text-to-text
tags: [video, tiny, {tag}, synthetic]
---

# earlytom tiny: a small video language model for tests and demonstrations

A `{kind}` with {millions:.1f} million parameters (bfloat16),
trained from scratch on procedurally generated videos. It answers twelve types of questions about
such videos with one word. It knows nothing else: photographs, other videos and other questions
are outside what it can do. Its use is to try and to measure video token compression without a
download, on a model that has the real architecture and really needs its tokens.
{pitch}* Pixels: `(x / 255 - 0.5) / 0.25`. Clips of 4 to 32 frames; trained most on 16.
* It never saw compressed, dropped or merged tokens in training, and positions are the ordinary
  ones, so measured losses of compression are not trained away.
"""


def write_card(folder: Path, notes: str = "") -> None:
    """Write ``README.md`` from the recipe, the curves and, if there, ``evaluation.json``.

    ``notes`` is Markdown about this particular run.
    """
    recipe = json.loads((folder / "training.json").read_text())
    with safe_open(folder / "model.safetensors", "numpy") as file:
        names = file.keys()
        count = sum(math.prod(file.get_slice(name).get_shape()) for name in names)
    words = len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])
    config = json.loads((folder / "config.json").read_text())
    arch = architecture(config["model_type"])
    head = {"tag": arch.name.replace("_", "-"), "kind": config["architectures"][0]}
    pitch = arch.pitch.format(words=words)
    parts = [_HEAD.format(millions=count / 1e6, pitch=pitch, **head)]
    evaluation = folder / "evaluation.json"
    if evaluation.is_file():
        parts.append(_evaluation(json.loads(evaluation.read_text())))
    parts.append(_recipe(recipe))
    if notes:
        parts.append(notes)
    dense = folder / "vision_curve.json"
    if dense.is_file():
        parts.append(_dense_curve(json.loads(dense.read_text())))
    curve = folder / "learning_curve.json"
    if curve.is_file():
        parts.append(_curve(json.loads(curve.read_text())))
    write_text(folder / "README.md", "\n".join(parts))


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _evaluation(result: dict[str, Any]) -> str:
    """Accuracy on held-out clips, by type."""
    rows = [
        f"| {kind} | {result['questions_by_type'].get(kind, 0)} "
        f"| {_percent(result['accuracy_by_type'][kind])} "
        f"| {_percent(result['blind_accuracy_by_type'][kind])} |"
        for kind in TYPES
    ]
    return "\n".join(
        [
            "## Accuracy",
            "",
            f"{result['questions']} questions about {result['clips']} held-out clips of "
            f"{result['frames']} frames (`earlytom tiny eval --questions {result['questions']} "
            f"--seed {result['seed']}`), four candidates each, chance 25 %. 'Question only' is a "
            "guesser that sees no video.",
            "",
            "| type | questions | accuracy % | question only % |",
            "|---|---|---|---|",
            *rows,
            f"| **all** | {result['questions']} | **{_percent(result['accuracy'])}** | |",
            "",
            "With the video of another clip (control): "
            f"{_percent(result['wrong_video_accuracy'])} %.",
            "",
        ]
    )


def _recipe(recipe: dict[str, Any]) -> str:
    """The settings of the run."""
    return "\n".join(
        [
            "## Training",
            "",
            "`earlytom tiny train --out DIR` with the settings below (`training.json`). Stage 1 "
            "teaches the vision tower and projector what each visual token shows; stage 2 "
            "freezes them and teaches the language model on shots that are cut into clips. "
            "Auxiliary linear heads on hidden states speed up stage 2 and are thrown away.",
            "",
            "```json",
            "{\n"
            + ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in recipe.items())
            + "\n}",
            "```",
            "",
        ]
    )


def _curve(curve: list[dict[str, Any]]) -> str:
    """Validation accuracy over the steps of stage 2."""
    rows = [
        f"| {e['step']} | {e['frames']} | {e['loss']:.3f} | {_percent(e['accuracy'])} | "
        + " | ".join(
            f"{100 * e['accuracy_by_type'][t]:.0f}" if t in e["accuracy_by_type"] else "-"
            for t in TYPES
        )
        + " |"
        for e in curve
    ]
    return "\n".join(
        [
            "## Learning curve of stage 2",
            "",
            "Accuracy in % on a small validation sample of held-out shots, with clips of the "
            "length that is trained at that point.",
            "",
            "| step | frames | loss | all | " + " | ".join(TYPES) + " |",
            "|" + "---|" * (4 + len(TYPES)),
            *rows,
            "",
        ]
    )


def _dense_curve(curve: list[dict[str, Any]]) -> str:
    """Validation of the dense read-outs over the steps of stage 1."""
    names = ("shape", "color", "digit", "letter")
    errors = {"centre_px": "centre", "offset_px": "centre in its cell", "cell": "position"}
    there = [k for k in errors if k in curve[0]]
    rows = [
        f"| {e['step']} | "
        + " | ".join([*(_percent(e[n]) for n in names), *(f"{e[k]:.2f}" for k in there)])
        + " |"
        for e in curve
    ]
    return "\n".join(
        [
            "## Learning curve of stage 1",
            "",
            "Accuracy in % of the linear read-outs on covered cells of held-out frames, and mean "
            "errors of the object centre (pixels) and, where the tower can know it, of the cell's "
            "own position (cells).",
            "",
            f"| step | {' | '.join(names)} | {' | '.join(errors[k] for k in there)} |",
            "|" + "---|" * (1 + len(names) + len(there)),
            *rows,
            "",
        ]
    )
