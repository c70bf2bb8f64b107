"""Ways of generating that must work alike on towers with padded frames and with packed ones."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import earlytom
from earlytom.methods import Afterimage
from tests.families import PROMPTS, SPECIAL, VIDEO, Family, generate
from tests.qwen import CONFIG, QwenFamily
from tests.toys import TOYS

LLAVA = Family("llava_onevision")
OWNERS = [LLAVA, *(QwenFamily(name) for name in CONFIG)]
OUTER, ALL = TOYS["merge_select_respace"], TOYS["all"]
WEIGHTED = Afterimage(retention_ratio=0.25)  # refused by packed towers
EACH = pytest.mark.parametrize("owner", OWNERS, ids=lambda f: f.name, scope="module")
CASES = pytest.mark.parametrize(
    ("owner", "method"),
    [
        *(pytest.param(f, OUTER, id=f"{f.name}-outer") for f in OWNERS),
        *(pytest.param(f, ALL, id=f"{f.name}-all") for f in OWNERS),
        pytest.param(LLAVA, WEIGHTED, id=f"{LLAVA.name}-weighted"),
    ],
    scope="module",
)
POSITIONS = ("merge_select", "merge_select_keep", "merge_select_respace")
PLACES = pytest.mark.parametrize("name", POSITIONS)


@CASES
@pytest.mark.parametrize("prompt", ["two_videos", "batch_padded"])
def test_static_cache_equals_dynamic(
    owner: Family, subject: nn.Module, method: Any, prompt: str
) -> None:
    inputs = owner.inputs(PROMPTS[prompt])
    with method(subject):
        expected = generate(subject, inputs)
        got = generate(subject, inputs, cache_implementation="static", disable_compile=True)
    assert torch.equal(got, expected)


@CASES
def test_assisted_decoding_equals_greedy(owner: Family, subject: nn.Module, method: Any) -> None:
    inputs = owner.inputs(PROMPTS["two_videos"])
    with method(subject):
        expected = generate(subject, inputs)
        got = generate(subject, inputs, prompt_lookup_num_tokens=3)
    assert torch.equal(got[:, : expected.shape[1]], expected)


@EACH
@PLACES
def test_second_turn_on_the_cache_equals_a_fresh_prompt(
    owner: Family, subject: Any, name: str
) -> None:
    inputs = owner.inputs(PROMPTS["one_video"])
    with TOYS[name](subject):
        first = generate(subject, inputs, return_dict_in_generate=True)
        g = torch.Generator().manual_seed(3)
        more = torch.randint(2, 100, (1, 5), generator=g)
        full = owner.longer(inputs, torch.cat([first.sequences, more], 1))
        fresh = generate(subject, full)
        text = {k: full[k] for k in ("input_ids", "attention_mask")}
        again = generate(subject, text, past_key_values=first.past_key_values)
    assert torch.equal(again, fresh)


@EACH
@PLACES
def test_hand_written_decode_loop(owner: Family, subject: nn.Module, name: str) -> None:
    inputs = owner.inputs(PROMPTS["one_video"])
    with TOYS[name](subject), torch.no_grad():
        expected = generate(subject, inputs)[0, inputs["input_ids"].shape[1] :]
        out = subject(**inputs, use_cache=True)
        got = []
        for _ in range(len(expected)):
            logits = out.logits[:, -1].clone()
            logits[:, SPECIAL] = -torch.inf
            got.append(int(logits.argmax()))
            ids = torch.tensor([got[-1:]])
            out = subject(input_ids=ids, past_key_values=out.past_key_values, use_cache=True)
    assert got == expected.tolist()


@EACH
def test_chunked_prefill(owner: Family, subject: nn.Module) -> None:
    inputs = owner.inputs(PROMPTS["two_videos"])
    try:
        chunked = generate(subject, inputs, prefill_chunk_size=64)
    except Exception:  # transformers before 5.18 cannot chunk multimodal prompts
        pytest.skip("this transformers cannot chunk multimodal prompts")
    if not torch.equal(chunked, generate(subject, inputs)):
        pytest.skip("this transformers chunks these prompts wrongly")
    with OUTER(subject):
        expected = generate(subject, inputs)
        assert torch.equal(generate(subject, inputs, prefill_chunk_size=64), expected)


# ---------------------------------------------------------------------- models of their own
@CASES
def test_deepcopy_has_its_own_controller(owner: Family, method: Any) -> None:
    model, inputs = owner.model(), owner.inputs(PROMPTS["batch_padded"])
    plain = generate(model, inputs)
    earlytom.compress(model, method)
    compressed = generate(model, inputs)
    copied = copy.deepcopy(model)
    assert torch.equal(generate(copied, inputs), compressed)
    earlytom.restore(copied)
    assert torch.equal(generate(copied, inputs), plain)
    assert torch.equal(generate(model, inputs), compressed)


@EACH
def test_gradients_with_and_without_checkpointing(owner: Family) -> None:
    from transformers.modeling_layers import GradientCheckpointingLayer

    if "__call__" in vars(GradientCheckpointingLayer):
        pytest.skip("this transformers recomputes module hooks inside the checkpoint")
    model, inputs = owner.model().train(), owner.inputs(PROMPTS["batch_padded"])
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
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)
