"""What the site needs beside its pages; mkdocs calls these functions (``hooks`` in mkdocs.yml).

* Results, notebooks and the changelog lie outside of ``docs/``; they become pages and downloads.
  Links are written as they work in the repository and are adjusted here.
* The build fails if a public name has no docstring or is not in the reference.
"""

from __future__ import annotations

import json
import posixpath
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
REPORT = ("report.md", "summary.json", "*.png", "*.svg", "leaderboard.html")  # of a model family
SHOWN = ("*.md", "*.png", "*.svg", "*.json", "leaderboard.html", "tuning/*/tuning.json")
SHOWN += tuple(f"*/{name}" for name in REPORT)
LINK = re.compile(r"(\]\()([^)\s#]+)")
FENCE = re.compile(r"(^```.*?^```\s*?$)", re.MULTILINE | re.DOTALL)


def mounted() -> dict[str, str]:
    """Return where files of the repository that are outside of ``docs/`` lie in the site."""
    results = ROOT / "results"
    found = {p.relative_to(ROOT).as_posix() for kind in SHOWN for p in results.glob(kind)}
    places = {name: name for name in found}
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        places[f"notebooks/{notebook.name}"] = f"notebooks/{notebook.name}"
    return places | {"CHANGELOG.md": "changelog.md"}


def on_files(files: Any, config: Any) -> Any:
    """Add the files from outside of ``docs/``, notebooks also as pages."""
    for source, target in mounted().items():
        files.append(File.generated(config, target, abs_src_path=str(ROOT / source)))
        if source.endswith(".ipynb"):
            page = notebook_page(ROOT / source)
            files.append(File.generated(config, target.replace(".ipynb", ".md"), content=page))
    return files


def notebook_page(path: Path) -> str:
    """Return a notebook without outputs as Markdown."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    parts = []
    for cell in cells:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    return "\n\n".join([*parts, f"[Download this notebook]({path.name})\n"])


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turn links of the repository into links of the site."""
    places = mounted()
    source = next((s for s, t in places.items() if t == page.file.src_uri), None)
    here = posixpath.dirname(source or f"docs/{page.file.src_uri}")
    home = posixpath.dirname(page.file.src_uri)

    def moved(match: re.Match[str]) -> str:
        link = match[2]
        if "://" in link or link.startswith("mailto:"):
            return match[0]
        path = posixpath.normpath(posixpath.join(here, link))
        target = places.get(path) or path.removeprefix("docs/")
        return match[1] + posixpath.relpath(target, home or ".")

    # every second part is a fenced block, where brackets may be code
    parts = FENCE.split(markdown)
    return "".join(LINK.sub(moved, p) if i % 2 == 0 else p for i, p in enumerate(parts))


# ---------------------------------------------------------------------- reference
def public_names(package: griffe.Object) -> Iterator[tuple[str, griffe.Object]]:
    """Yield what modules export by ``__all__``, as (dotted name, object)."""
    for module in (package, *package.modules.values()):
        if module is not package:
            if module.name.startswith("_") or module.name in NOT_PUBLIC:
                continue
            yield from public_names(module)
        elif module.exports is not None:
            for name in module.exports:
                if not str(name).startswith("__"):
                    found = module[str(name)]
                    if (
                        found.is_module and name in found.members
                    ):  # a function of that name hides it
                        found = found[str(name)]
                    yield f"{module.path}.{name}", found


def on_post_build(config: Any) -> None:
    """Fail if a public name has no docstring or does not appear in the reference."""
    raw = (Path(config.site_dir) / "objects.inv").read_bytes().split(b"\n", 4)[4]
    known = {line.split(" ")[0] for line in zlib.decompress(raw).decode().splitlines()}
    package: Any = griffe.load("earlytom", search_paths=[ROOT / "src"], resolve_aliases=True)
    faults = []
    for name, found in public_names(package):
        try:
            target = found.final_target if found.is_alias else found
        except griffe.AliasResolutionError as e:
            faults.append(str(e))
            continue
        if not target.has_docstring:
            faults.append(f"{name} has no docstring")
        if name not in known and target.path not in known:
            faults.append(f"{name} is not in docs/reference")
    if faults:
        raise PluginError("; ".join(faults))


NOT_PUBLIC = {"cli"}  # commands: `earlytom --help`
