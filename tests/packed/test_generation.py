"""Ways of generating with M-RoPE models: beams, caches, second turns, hand-written loops, training.

``generate`` of transformers continues behind the last column of the prompt; so does the engine.
"""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import pytest
import torch
from torch import nn

import earlytom
from earlytom.hf.segments import Segments
from earlytom.methods import VisionZip
from tests.families import PROMPTS, SPECIAL, VIDEO, Family, forward, generate
from tests.toys import TOYS

OUTER, ALL = TOYS["merge_select_respace"], TOYS["all"]
BOTH = pytest.mark.parametrize("method", [OUTER, ALL], ids=["outer", "all"])
PLACES = ["merge_select", "merge_select_keep", "merge_select_respace"]


def inputs_of(family: Family, prompt: str) -> dict[str, Any]:
    return family.inputs(PROMPTS[prompt])


@BOTH
@pytest.mark.parametrize("prompt", ["two_videos", "batch_padded"])
def test_static_cache_equals_dynamic(
    family: Family, model: nn.Module, method: Any, prompt: str
) -> None:
    inputs = inputs_of(family, prompt)
    with method(model):
        expected = generate(model, inputs)
        got = generate(model, inputs, cache_implementation="static", disable_compile=True)
    assert torch.equal(got, expected)


@BOTH
def test_assisted_decoding_equals_greedy(family: Family, model: nn.Module, method: Any) -> None:
    inputs = inputs_of(family, "two_videos")
    with method(model):
        expected = generate(model, inputs)
        got = generate(model, inputs, prompt_lookup_num_tokens=3)
    assert torch.equal(got[:, : expected.shape[1]], expected)


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


def next_prompt(first: Any, inputs: dict[str, Any], family: Family) -> dict[str, Any]:
    g = torch.Generator().manual_seed(3)
    ids = torch.cat([first.sequences, torch.randint(2, 100, (1, 5), generator=g)], 1)
    return family.longer(inputs, ids)


@pytest.mark.parametrize("name", PLACES)
def test_second_turn_on_the_cache(family: Family, model: nn.Module, name: str) -> None:
    """Equals a fresh prompt with the whole history."""
    inputs = inputs_of(family, "one_video")
    with TOYS[name](model):
        first = generate(model, inputs, return_dict_in_generate=True)
        full = next_prompt(first, inputs, family)
        fresh = generate(model, full)
        text = {k: full[k] for k in ("input_ids", "attention_mask")}
        with torch.no_grad():
            again = model.generate(
                **text,
                past_key_values=first.past_key_values,
                max_new_tokens=6,
                do_sample=False,
                suppress_tokens=SPECIAL,
            )
    assert torch.equal(again, fresh)


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


@pytest.mark.parametrize("name", PLACES)
def test_hand_written_decode_loop(family: Family, model: nn.Module, name: str) -> None:
    inputs = inputs_of(family, "one_video")
    with TOYS[name](model), torch.no_grad():
        expected = generate(model, inputs)[0, inputs["input_ids"].shape[1] :]
        out = model(**inputs, use_cache=True)
        got = []
        for _ in range(len(expected)):
            logits = out.logits[:, -1].clone()
            logits[:, SPECIAL] = -torch.inf
            got.append(int(logits.argmax()))
            ids = torch.tensor([got[-1:]])
            out = model(input_ids=ids, past_key_values=out.past_key_values, use_cache=True)
    assert got == expected.tolist()


def test_gradients_with_and_without_checkpointing(family: Family) -> None:
    from transformers.modeling_layers import GradientCheckpointingLayer

    if "__call__" in vars(GradientCheckpointingLayer):
        pytest.skip("this transformers recomputes module hooks inside the checkpoint")
    model, inputs = family.model().train(), inputs_of(family, "batch_padded")
    labels = inputs["input_ids"].clone()
    labels[(labels == VIDEO) | (inputs["attention_mask"] == 0)] = -100
    grads = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        with OUTER(model):
            model(**inputs, labels=labels, use_cache=False).loss.backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        model.zero_grad()
    assert len(grads[0]) > 20
    assert all(g.isfinite().all() for g in grads[0])
    for a, b in zip(grads[0], grads[-1], strict=True):
        torch.testing.assert_close(a, b)


def test_deepcopy_has_its_own_controller(family: Family) -> None:
    model, inputs = family.model(), inputs_of(family, "batch_padded")
    plain = generate(model, inputs)
    earlytom.compress(model, ALL)
    compressed = generate(model, inputs)
    copied = copy.deepcopy(model)
    assert torch.equal(generate(copied, inputs), compressed)
    earlytom.restore(copied)
    assert torch.equal(generate(copied, inputs), plain)
    assert torch.equal(generate(model, inputs), compressed)


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


def test_chunked_prefill(family: Family, model: nn.Module) -> None:
    inputs = inputs_of(family, "two_videos")
    try:
        plain = torch.equal(generate(model, inputs, prefill_chunk_size=64), generate(model, inputs))
    except Exception:  # transformers before 5.18 cannot chunk multimodal prompts
        plain = False
    if not plain:
        pytest.skip("this transformers cannot chunk these prompts")
    with OUTER(model):
        expected = generate(model, inputs)
        assert torch.equal(generate(model, inputs, prefill_chunk_size=64), expected)
