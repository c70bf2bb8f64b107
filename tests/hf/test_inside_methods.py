"""SparseVLM, FrameFusion, PruneVid stage 2 and DyCoke's decode stage in a whole model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import earlytom
from earlytom.errors import ConfigError
from earlytom.hf.cache import STATE
from earlytom.method import Method
from earlytom.methods import DyCoke, FrameFusion, PruneVid, SparseVLM
from tests.families import PROMPTS, Family, forward, generate

PRUNING: dict[str, Method] = {
    "sparsevlm": SparseVLM(retention_ratio=0.5),
    "sparsevlm-v2": SparseVLM(retention_ratio=0.4, version="v2.0"),
    "sparsevlm-official": SparseVLM(policy="official", retention_ratio=0.5),
    "framefusion": FrameFusion(retention_ratio=0.3, tau=0.2),
    "framefusion-prune": FrameFusion(retention_ratio=0.6, tau=1.0),
}
ALL: dict[str, Method] = {
    **PRUNING,
    "prunevid": PruneVid(retention_ratio=0.5, inner_prune_layer=2),
    "dycoke": DyCoke(retention_ratio=0.5, decode_ratio=0.3, decode_from=2),
}


@pytest.mark.parametrize("name", [n for n in PRUNING if "official" not in n])
@pytest.mark.parametrize("prompt", ["one_video", "two_videos", "batch_padded"])
def test_the_reported_average_is_the_ratio(
    family: Family, model: nn.Module, name: str, prompt: str
) -> None:
    method = PRUNING[name]
    inputs = family.inputs(PROMPTS[prompt])
    with method(model):
        forward(model, inputs)
        report = earlytom.last_report(model)
    assert report is not None
    rows = len(inputs["input_ids"])
    assert report.achieved_retention == 1
    assert abs(report.llm_retention - method.retention_ratio) < rows / report.layer_total


@pytest.mark.parametrize("name", ALL)
def test_ways_of_generating_agree(family: Family, model: nn.Module, name: str) -> None:
    for prompt in ("two_videos", "batch_padded"):
        inputs = family.inputs(PROMPTS[prompt])
        with ALL[name](model):
            expected = generate(model, inputs)
            static = generate(model, inputs, cache_implementation="static", disable_compile=True)
            assert torch.equal(static, expected)
            beams = [generate(model, inputs, num_beams=3) for _ in range(2)]
            assert torch.equal(*beams)
            if prompt == "two_videos" and name != "dycoke":  # candidates see all columns there
                assisted = generate(model, inputs, prompt_lookup_num_tokens=3)
                assert torch.equal(assisted[:, : expected.shape[1]], expected)


@pytest.mark.parametrize("name", ALL)
def test_a_second_turn_with_another_video(family: Family, model: nn.Module, name: str) -> None:
    inputs = family.inputs([["t3", "v", "t4", "v", "t2"]])
    ids, pixels = inputs["input_ids"], inputs["pixel_values_videos"]
    video = (ids.shape[1] - 10) // 2  # one start token, 9 of text, two videos
    cut = 1 + 3 + video + 4
    with ALL[name](model), torch.no_grad():
        out = model(input_ids=ids[:, :cut], pixel_values_videos=pixels[:1], use_cache=True)
        cache = out.past_key_values
        for token in (5, 6):
            out = model(input_ids=torch.tensor([[token]]), past_key_values=cache, use_cache=True)
        out = model(
            input_ids=ids[:, cut:],
            pixel_values_videos=pixels[1:],
            past_key_values=cache,
            use_cache=True,
        )
        assert out.logits.isfinite().all()
        out = model(input_ids=torch.tensor([[7]]), past_key_values=cache, use_cache=True)
        assert out.logits.isfinite().all()
    assert cache.get_seq_length() == ids.shape[1] + 3


KEPT: list[Tensor] = []


class Recording(DyCoke):
    """Remembers what decode steps were allowed to see."""

    def decode_keep(self, last_row: Tensor, memory: dict[str, Any]) -> Tensor | None:
        keep = super().decode_keep(last_row, memory)
        assert keep is not None
        KEPT.append(keep)
        return keep


def test_decode_steps_equal_a_cache_without_the_hidden_keys(
    family: Family, model: nn.Module
) -> None:
    inputs = family.inputs(PROMPTS["one_video"])
    tokens = [torch.tensor([[t]]) for t in (5, 9, 5, 77)]
    caches, masked = [], []
    KEPT.clear()
    with Recording(retention_ratio=0.5, decode_ratio=0.3, decode_from=2)(model), torch.no_grad():
        cache = forward(model, inputs, use_cache=True).past_key_values
        columns = getattr(cache, STATE).shown.columns[0]
        for token in tokens:
            caches.append(copy.deepcopy(cache))
            masked.append(model(input_ids=token, past_key_values=cache).logits)
    assert len(KEPT) == len(tokens)
    assert all(int(k.sum()) == int(0.3 * len(columns)) for k in KEPT)
    with DyCoke(retention_ratio=0.5)(model), torch.no_grad():
        for token, cache, keep, logits in zip(tokens, caches, KEPT, masked, strict=True):
            whole = model(input_ids=token, past_key_values=copy.deepcopy(cache)).logits
            assert not torch.allclose(whole, logits, atol=1e-5)
            for layer in cache.layers[2:]:
                stay = torch.ones(layer.keys.shape[2], dtype=torch.bool)
                stay[columns[~keep]] = False
                layer.keys, layer.values = layer.keys[:, :, stay], layer.values[:, :, stay]
            torch.testing.assert_close(
                model(input_ids=token, past_key_values=cache).logits, logits, atol=1e-5, rtol=1e-4
            )


def test_ratios_out_of_reach_are_refused_when_attached(model: nn.Module) -> None:
    with pytest.raises(ConfigError, match=r"keeps at least 0\.250"):
        earlytom.compress(model, SparseVLM(retention_ratio=0.2))
    with pytest.raises(ConfigError, match="cannot prune after"):
        earlytom.compress(model, SparseVLM(retention_ratio=0.5, layers=(3,)))
    with pytest.raises(ConfigError, match="out of range"):
        earlytom.compress(model, DyCoke(decode_ratio=0.5, decode_from=4))
