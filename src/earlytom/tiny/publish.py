"""Writing a trained model as a ``from_pretrained`` folder."""

from __future__ import annotations

import copy
import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from earlytom.tiny.architecture import architecture_of
from earlytom.tiny.assets import generation_config, save_assets
from earlytom.tiny.card import write_card
from earlytom.tiny.checkpoint import save_json


@torch.no_grad()
def publish(model: Any, out: Path, recipe: dict[str, Any]) -> None:
    """Save weights (bfloat16), configuration, tokenizer, processor files and the recipe.

    Everything is written to a temporary folder first and then renamed file by file, so that a
    reader never sees a half-written file.
    """
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".publish") as name:
        folder = Path(name)
        plain = copy.deepcopy(model).to("cpu", torch.bfloat16).requires_grad_(True)
        plain.generation_config = generation_config()
        plain.save_pretrained(folder)
        save_assets(folder, architecture_of(model))
        save_json(folder / "training.json", recipe)
        for file in sorted(folder.iterdir()):
            os.replace(file, out / file.name)
    write_card(out)
