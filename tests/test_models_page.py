"""Every cell of the table of ``docs/models.md`` is true on a tiny model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import earlytom
from earlytom.errors import UnsupportedModelError
from earlytom.method import Method
from earlytom.methods import Afterimage, DyCoke, LowResolution
from earlytom.models import FAMILIES as ADAPTERS
from earlytom.models import find_adapter
from earlytom.models.support import STAGES, supports
from earlytom.stages import TokenSelection, VideoFeatures
from tests.conftest import ALL_FAMILIES
from tests.families import PROMPTS, Family, forward, generate
from tests.qwen import CONFIG, QwenFamily
from tests.toys import TOYS, Toy
from tests.toys_patches import ToyPatches, ToyRestored

OWNERS = [*ALL_FAMILIES, *(QwenFamily(name) for name in CONFIG)]


@dataclass(frozen=True, kw_only=True)
class Weighted(Method):
    name = "weighted"
    weighs: bool = True

    @property
    def weighs_tokens(self) -> bool:
        return self.weighs

    def select_tokens(self, video: VideoFeatures) -> TokenSelection:
        index = torch.arange(0, video.features.shape[0] * video.features.shape[1], 3)
        return TokenSelection(index, weight=(torch.arange(len(index)) % 3 + 1).float())


@dataclass(frozen=True, kw_only=True)
class Renumbered(Toy):
    inner_positions: str = "renumber"


PROBES: dict[str, list[Method]] = {
    "frames": [TOYS["merge"], TOYS["merge_last_layer"], Toy(merge_layers=(-1,), score=3)],
    "patches": [
        Afterimage(retention_ratio=1.0, encoder_budget=0.5, layer=1),
        ToyPatches(retention_ratio=0.25),
        ToyRestored(mode="keys", retention_ratio=0.4),
        ToyRestored(mode="keys", retention_ratio=0.4, proportional=True),
        LowResolution(retention_ratio=0.5),
    ],
    "tokens": [TOYS["select"], TOYS["select_scored"]],
    "LLM": [TOYS["inner"], Renumbered(retention_ratio=1.0, inner=2)],
    "weights": [Weighted()],
    "decode": [DyCoke(retention_ratio=0.5, decode_ratio=0.3, decode_from=2)],
}


def test_every_family_is_tried() -> None:
    tried = {type(find_adapter(f.model())) for f in OWNERS}
    assert set(ADAPTERS) <= tried


def steps(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    """Logits of the decode steps behind the prompt."""
    out = generate(model, inputs, return_dict_in_generate=True, output_logits=True)
    return torch.stack(out.logits[1:])


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("owner", OWNERS, ids=lambda f: f.name)
def test_cells_are_true(owner: Family, stage: str) -> None:
    model, inputs = owner.model(), owner.inputs(PROMPTS["one_video"])
    adapter = type(find_adapter(model))
    plain = forward(model, inputs).logits[:, -1]
    works = []
    for method in PROBES[stage]:
        try:
            with method(model):
                logits = forward(model, inputs).logits[:, -1]
                if stage == "decode":
                    decoded = steps(model, inputs)
        except UnsupportedModelError:
            works.append(False)
            continue
        works.append(True)
        assert not torch.allclose(logits, plain, atol=1e-4), "the method did nothing"
        if stage == "decode":
            with replace(method, decode_ratio=None)(model):
                assert not torch.allclose(steps(model, inputs), decoded, atol=1e-4)
        if stage == "weights":
            with replace(method, weighs=False)(model):
                assert not torch.allclose(forward(model, inputs).logits[:, -1], logits, atol=1e-4)
    claim = supports(adapter, stage).partition(":")[0]
    expected = {"yes": all(works), "no": not any(works), "partly": len(set(works)) == 2}
    assert expected[claim], (claim, works)
    earlytom.restore(model)
