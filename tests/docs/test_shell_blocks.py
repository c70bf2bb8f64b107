"""Every shell command of README.md and docs/ is run, or checked as far as it can be.

* ``earlytom ...``: its options are parsed; then it runs, with the small settings of ``SMALL``.
  Commands that take minutes even so are marked slow.
* ``make ...``: the target exists. ``python -m lmms_eval``: its ``model_args`` are parsed (``make
  test-lmms`` runs it).
* Anything else has to say why it is not run: ``<!-- not run: reason -->`` in front of the block.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from earlytom.cli import app
from earlytom.integrations.lmms_eval import parse_options
from tests.docs.blocks import ROOT, Block, all_blocks

SHELL = [b for b in all_blocks() if b.kind in ("bash", "sh", "text", "")]
SMALL: dict[str, dict[str, str]] = {
    "--version": {},
    "ask": {"--frames": "4", "--max-new-tokens": "1"},
    "demo": {"--frames": "4", "--clips": "1", "--questions": "1"},
    "inspect": {"--frames": "4", "--max-new-tokens": "1"},
    "methods": {},
    "serve": {},
    "tiny make-video": {},
    "watch": {"--fps": "2", "--max-new-tokens": "1"},
    "tiny lmms-task": {"--clips": "1", "--questions": "2"},
}
SMALL_SLOW: dict[str, dict[str, str]] = {
    "bench": {"--repeats": "1", "--methods": "afterimage", "--ratios": "0.1"},
    "eval": {
        "--limit": "12",
        "--methods": "earlytom-official",
        "--ratios": "0.1",
        "--tasks": "standard",
        "--workers": "1",
    },
    "report": {"--resamples": "1000"},
    "tiny eval": {"--questions": "12"},
    "tiny train": {"--scale": "0.00001"},
    "tune": {
        "--questions": "12",
        "--held-out-questions": "12",
        "--candidates": "2",
        "--rungs": "1",
        "--resamples": "1000",
        "--workers": "1",
    },
}
# options of bench that mean minutes, many GB, or a checkpoint of one's own
ONLY_PARSED = {"--arch", "--model", "--paper"}


def words_of(command: str) -> list[str]:
    """Words of a command, with what stands for something replaced by it."""
    words = shlex.split(command, comments=True)
    for i, word in enumerate(words):
        words[i] = {"VIDEO": "clip.mp4", "QUESTION": "how many shots are there?"}.get(word, word)
    return words[1:]


def commands(blocks: list[Block]) -> list[tuple[Block, str]]:
    """Commands that a reader may type, with the block of each."""
    found = []
    for block in blocks:
        for line in block.commands():
            typed = block.kind in ("bash", "sh") or f"$ {line}" in block.text
            if typed or line.startswith("earlytom "):
                found.append((block, line))
    return found


def name_of(words: list[str]) -> str:
    return " ".join(words[: 2 if words[0] == "tiny" else 1])


def smaller(words: list[str]) -> list[str]:
    """The same command with small settings."""
    settings = (SMALL | SMALL_SLOW)[name_of(words)]
    out: list[str] = []
    skip = False
    for word in words:
        if skip:
            skip = False
        elif word in settings:
            skip = True
        else:
            out.append(word)
    return out + [x for pair in settings.items() for x in pair]


def sequences() -> list[Any]:
    """Per page its commands in order; no command runs twice, slow ones are apart."""
    pages: dict[tuple[str, bool], list[list[str]]] = {}
    seen: list[list[str]] = []
    for block, line in commands(SHELL):
        if not line.startswith("earlytom ") or block.reason:
            continue
        words = words_of(line)
        known = name_of(words) in SMALL | SMALL_SLOW  # another test says so if not
        if not known or (name_of(words) == "bench" and ONLY_PARSED & set(words)):
            continue
        small = smaller(words)
        slow = name_of(words) in SMALL_SLOW
        if small not in seen:
            seen.append(small)
            pages.setdefault((block.page, slow), []).append(small)
    return [
        pytest.param(todo, id=page, marks=[pytest.mark.slow] if slow else [])
        for (page, slow), todo in pages.items()
    ]


@pytest.mark.parametrize("todo", sequences())
def test_commands_run(
    todo: list[list[str]], clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(clip, "clip.mp4")
    for words in todo:
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, (words, result.output, result.exception)


@pytest.mark.parametrize(
    "line", sorted({c for _, c in commands(SHELL) if c.startswith("earlytom ")})
)
def test_options_exist(line: str) -> None:
    words, command = words_of(line), get_command(app)
    if words == ["--version"]:
        return
    while hasattr(command, "commands"):
        name, *words = words
        command = command.commands[name]
    command.make_context(name, words)


@pytest.mark.parametrize(("block", "line"), commands(SHELL), ids=lambda x: x if x == str(x) else "")
def test_every_command_is_run_checked_or_explained(block: Block, line: str) -> None:
    if line.startswith("make "):
        targets = shlex.split(line, comments=True)[1:]
        run = subprocess.run(["make", "-n", *targets], cwd=ROOT, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
    elif line.startswith("earlytom ") and not block.reason:
        assert name_of(words_of(line)) in SMALL | SMALL_SLOW, "add small settings, or say why not"
    elif not line.startswith(("earlytom ", "python -m lmms_eval ")):
        assert block.reason, f"{block.page}:{block.line}: say why this is not run: {line}"
        assert len(block.reason) > 10


LMMS = [(b, m) for b in SHELL for m in re.findall(r"--model_args\s+\\?\s*(\S+)", b.text)]


@pytest.mark.parametrize(("block", "given"), LMMS, ids=[f"{b.page}:{b.line}" for b, _ in LMMS])
def test_model_args_of_lmms_eval(block: Block, given: str) -> None:
    pairs = dict(p.split("=", 1) for p in given.replace("${pair%%:*}", "mvbench").split(","))
    parse_options(**{k: json.loads(v) if v[0].isdigit() else v for k, v in pairs.items()})


def test_blocks_are_found() -> None:
    """What this file relies on, on a small page."""
    from tests.docs.blocks import blocks_of

    text = "a\n```bash\nearlytom ask x \\\n  y  # why\n# no\n```\n\n<!-- not run: later -->\n"
    text += "```python\n1\n```\n- item\n\n  ```text\n  $ make demo\n  out\n  ```\n"
    first, second, third = blocks_of(ROOT / "README.md", text)
    assert (first.kind, first.line, first.reason) == ("bash", 3, None)
    assert [words_of(c) for c in first.commands()] == [["ask", "x", "y"]]
    assert (second.kind, second.text, second.reason) == ("python", "1\n", "later")
    assert commands([third]) == [(third, "make demo")]
