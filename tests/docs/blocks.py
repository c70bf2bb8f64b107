"""The fenced blocks of ``README.md`` and ``docs/``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FENCE = re.compile(
    r"(?:<!-- not run: (?P<why>[^\n]*?) -->\n)?^(?P<pad> *)```(?P<kind>\w*)\n(?P<text>.*?)^ *```",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        page: path of the page from the root of the repository.
        line: number of its first line.
        kind: the word behind the fence, or an empty string.
        text: what is in it.
        reason: why it is not run (``<!-- not run: ... -->`` in front of it), or None.
    """

    page: str
    line: int
    kind: str
    text: str
    reason: str | None

    def commands(self) -> list[str]:
        """Return the shell commands, continuation lines joined, comments left out."""
        joined = self.text.replace("\\\n", " ")
        lines = (line.removeprefix("$ ") for line in joined.splitlines())
        return [line for line in lines if line.strip() and not line.startswith("#")]


def blocks_of(path: Path, text: str | None = None) -> list[Block]:
    """Return the blocks of a page in order."""
    text = path.read_text(encoding="utf-8") if text is None else text
    page = path.relative_to(ROOT).as_posix()
    return [
        Block(
            page,
            text.count("\n", 0, m.start("text")) + 1,
            m["kind"],
            re.sub(f"^{m['pad']}", "", m["text"], flags=re.MULTILINE),
            m["why"],
        )
        for m in _FENCE.finditer(text)
    ]


def all_blocks() -> list[Block]:
    """Return the blocks of all pages."""
    return [b for path in PAGES for b in blocks_of(path)]
