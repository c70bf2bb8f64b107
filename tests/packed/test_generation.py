"""Ways of generating with M-RoPE models: beams, caches, second turns, hand-written loops, training.

``generate`` of transformers continues behind the last column of the prompt; so does the engine.
"""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import nn

from earlytom.hf.segments import Segments
from earlytom.methods import VisionZip
from tests.families import PROMPTS, Family, forward, generate
from tests.toys import TOYS

OUTER, ALL = TOYS["merge_select_respace"], TOYS["all"]
BOTH = pytest.mark.parametrize("method", [OUTER, ALL], ids=["outer", "all"])


def inputs_of(family: Family, prompt: str) -> dict[str, Any]:
    return family.inputs(PROMPTS[prompt])


@BOTH
def test_beams_of_videos_of_two_sizes(family: Family, model: nn.Module, method: Any) -> None:
    """Every beam continues its own prompt: one beam of a search is what greedy decoding finds."""
    shapes = [(6, 4, 8), (4, 8, 6)]
    inputs = family.inputs(PROMPTS["batch_padded"], shapes=shapes)
    with method(model):
        beams = generate(model, inputs, num_beams=3, num_return_sequences=3)
        again = generate(model, inputs, num_beams=3, num_return_sequences=3)
        scores = []
        for row in range(2):
            alone = family.row_alone(inputs, row, [row])
            scores.append(generate(model, alone, num_beams=3, num_return_sequences=3))
    assert torch.equal(beams, again)
    width = inputs["input_ids"].shape[1]
    for row in range(2):
        count = int(inputs["attention_mask"][row].sum())
        new, mine = beams[3 * row : 3 * row + 3, width:], scores[row][:, count:]
        n = min(new.shape[1], mine.shape[1])
        assert torch.equal(new[:, :n], mine[:, :n])


@pytest.mark.parametrize("prompt", ["one_video", "batch_mixed"])
def test_answers_have_the_positions_of_the_whole_model(
    family: Family, model: nn.Module, prompt: str
) -> None:
    inputs, found = inputs_of(family, prompt), []
    for method in (TOYS["select"], TOYS["merge_select_respace"]):
        steps = []
        for on in (False, True):
            with method(model) if on else contextlib.nullcontext():
                steps.append(answer_positions(model, inputs))
        found.append(steps)
    for plain, got in found:
        assert torch.equal(plain, got)


def answer_positions(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """Positions ``[3, batch, steps]`` of the tokens of an answer."""
    seen: list[torch.Tensor] = []
    spy = model.model.language_model.register_forward_pre_hook(
        lambda m, a, kw: seen.append(kw["position_ids"][-3:]), with_kwargs=True
    )
    with spy:
        generate(model, inputs)
    return torch.cat(seen[1:], -1)


def test_a_second_video_in_the_second_turn(family: Family, model: nn.Module) -> None:
    both = family.inputs([["t3", "v", "t4", "v", "t2"]], shapes=[(6, 4, 8), (4, 8, 6)])
    grids = both["video_grid_thw"]
    ids, kinds = both["input_ids"], both["mm_token_type_ids"]
    ends = (kinds[0] == 2).nonzero().flatten()
    cut = int(ends[int(grids[0].prod()) // 4 - 1]) + 3
    pixels = both["pixel_values_videos"].split(grids.prod(1).tolist())
    position, _ = model.model.get_rope_index(
        **{k: v for k, v in both.items() if k != "pixel_values_videos"}
    )
    with OUTER(model), torch.no_grad():
        whole = forward(model, both).logits[:, -1]
        part = {"use_cache": True}
        first = model(
            input_ids=ids[:, :cut],
            pixel_values_videos=pixels[0],
            video_grid_thw=grids[:1],
            position_ids=position[..., :cut],
            **part,
        )
        second = model(
            input_ids=ids[:, cut:],
            pixel_values_videos=pixels[1],
            video_grid_thw=grids[1:],
            position_ids=position[..., cut:],
            past_key_values=first.past_key_values,
            **part,
        )
    torch.testing.assert_close(second.logits[:, -1], whole, atol=5e-5, rtol=1e-4)
    assert second.past_key_values.get_seq_length() == ids.shape[1]


def test_error_inside_the_encoder_leaves_no_state(
    family: Family, model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that dies in the middle of the score layer must not leave segments behind."""
    good, method = inputs_of(family, "one_video"), VisionZip(retention_ratio=0.3)
    add = Segments.add

    def fail(self: Segments, query: torch.Tensor, key: torch.Tensor) -> bool:
        add(self, query, key)
        raise RuntimeError("mine")

    with method(model):
        expected = forward(model, good).logits
        with monkeypatch.context() as patch:
            patch.setattr(Segments, "add", fail)
            with pytest.raises(RuntimeError, match="mine"):
                forward(model, good)
        assert torch.equal(forward(model, good).logits, expected)
