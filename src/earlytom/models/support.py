"""Which stage of a method runs on which family, read off the adapters (``docs/models.md``)."""

from __future__ import annotations

from earlytom.models import FAMILIES
from earlytom.models.base import Adapter

STAGES = {
    "frames": "I: frames",
    "patches": "I: patches",
    "tokens": "II",
    "LLM": "III",
    "weights": "weights",
    "decode": "decode",
}


def supports(family: type[Adapter], stage: str) -> str:
    """Return ``yes``, ``partly: ...`` or ``no: ...`` for one of :data:`STAGES`."""
    assert stage in STAGES
    return family.limits().get(stage, "yes")


def markdown_table() -> str:
    """Return all families as a Markdown table, with a note for everything that is not ``yes``."""
    rows = [
        "| model type | for example | " + " | ".join(STAGES.values()) + " |",
        "|---" * (len(STAGES) + 2) + "|",
    ]
    notes: list[str] = []
    for family in FAMILIES:
        cells = []
        for stage in STAGES:
            kind, _, why = supports(family, stage).partition(": ")
            if why and why not in notes:
                notes.append(why)
            cells.append(f"{kind} ({notes.index(why) + 1})" if why else kind)
        types = ", ".join(f"`{t}`" for t in family.model_types)
        examples = ", ".join(f"`{c}`" for c in family.checkpoints) or "-"
        rows.append(f"| {types} | {examples} | " + " | ".join(cells) + " |")
    rows += ["", *(f"{i}. {note}" for i, note in enumerate(notes, 1))]
    return "\n".join(rows) + "\n"
