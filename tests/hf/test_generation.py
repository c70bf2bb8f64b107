"""Ways of generating and holding a model that users have: beams, caches, wrappers, training."""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import earlytom
from earlytom.methods import Afterimage
from tests.compiled import SMALL, small_model
from tests.families import PROMPTS, VIDEO, Family, forward, generate, two_turns
from tests.toys import TOYS

FAMILY = Family("llava_onevision")
OUTER, ALL = TOYS["merge_select_respace"], TOYS["all"]
WEIGHTED = Afterimage(retention_ratio=0.25)
BOTH = pytest.mark.parametrize("method", [OUTER, ALL, WEIGHTED], ids=["outer", "all", "weighted"])


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return FAMILY.model()


def one() -> dict[str, Any]:
    return FAMILY.inputs(PROMPTS["two_videos"])


def padded() -> dict[str, Any]:
    return FAMILY.inputs(PROMPTS["batch_padded"])


def test_without_cache_equals_with_cache(model: nn.Module) -> None:
    with OUTER(model):
        for inputs in (one(), padded()):
            expected = generate(model, inputs)
            assert torch.equal(generate(model, inputs, use_cache=False), expected)


@BOTH
def test_first_beam_of_one_beam_search_is_reproducible(model: nn.Module, method: Any) -> None:
    with method(model):
        a = generate(model, padded(), num_beams=3)
        b = generate(model, padded(), num_beams=3)
        assert torch.equal(a, b)
        n = generate(model, padded(), num_beams=3, num_return_sequences=3)
        assert n.shape[0] == 6
        assert torch.equal(n[0, : a.shape[1]], a[0, : n.shape[1]])


def test_sampling_several_sequences(model: nn.Module) -> None:
    with ALL(model):
        out = generate(model, padded(), do_sample=True, num_return_sequences=2)
        assert out.shape[0] == 4


def test_a_second_video_in_the_second_turn(model: nn.Module) -> None:
    with OUTER(model):
        second, whole, both = two_turns(model, FAMILY)
    torch.testing.assert_close(second.logits[:, -1], whole, atol=5e-5, rtol=1e-4)
    assert second.past_key_values.get_seq_length() == both["input_ids"].shape[1]


def test_pickle_never_compresses_silently_less(model: nn.Module) -> None:
    earlytom.compress(model, OUTER)
    expected = forward(model, padded()).logits
    try:
        data = pickle.dumps(model)
    except (AttributeError, TypeError, pickle.PicklingError):
        pytest.skip("transformers' own hooks are not picklable after a forward: a clear refusal")
    assert torch.equal(forward(pickle.loads(data), padded()).logits, expected)


def test_saved_model_is_plain(tmp_path: Any) -> None:
    model = FAMILY.model()
    earlytom.compress(model, OUTER)
    model.save_pretrained(tmp_path)
    assert "earlytom" not in (tmp_path / "config.json").read_text().lower()
    loaded = type(model).from_pretrained(tmp_path).eval()
    earlytom.restore(model)
    assert torch.equal(forward(loaded, padded()).logits, forward(model, padded()).logits)


def test_nested_contexts_restore_the_outer_method(model: nn.Module) -> None:
    inputs = padded()
    with OUTER(model):
        outer = forward(model, inputs).logits
        with ALL(model):
            assert not torch.equal(forward(model, inputs).logits, outer)
        assert torch.equal(forward(model, inputs).logits, outer)


def test_error_inside_the_block_restores(model: nn.Module) -> None:
    inputs = padded()
    before = forward(model, inputs).logits
    with pytest.raises(RuntimeError, match="mine"), OUTER(model):
        raise RuntimeError("mine")
    assert torch.equal(forward(model, inputs).logits, before)


def test_error_inside_a_forward_leaves_no_state(model: nn.Module) -> None:
    good = padded()
    with OUTER(model):
        expected = forward(model, good).logits
        ids = good["input_ids"].masked_fill(good["input_ids"] == VIDEO, 5)  # no placeholders left
        with pytest.raises((ValueError, RuntimeError), match="tokens"):
            forward(model, {**good, "input_ids": ids})
        assert torch.equal(forward(model, good).logits, expected)


def test_gradients_and_loss(model: nn.Module) -> None:
    inputs = padded()
    labels = inputs["input_ids"].clone()
    labels[(labels == VIDEO) | (inputs["attention_mask"] == 0)] = -100
    with OUTER(model):
        out = model(**inputs, labels=labels)
        assert out.logits.shape[:2] == labels.shape
        out.loss.backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    assert len(grads) > 20
    assert all(g.isfinite().all() for g in grads)
    # the loss of text behind the video must be computed from its true predecessor
    shifted = torch.nn.functional.cross_entropy(
        out.logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100
    )
    torch.testing.assert_close(out.loss, shifted, atol=1e-5, rtol=1e-5)


def test_peft_wrapped_model() -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        r=4, target_modules=["q_proj", "k_proj", "v_proj"], init_lora_weights=False
    )
    wrapped = peft.get_peft_model(FAMILY.model(), config).eval()
    inputs = padded()
    plain = generate(wrapped, inputs)
    with ALL(wrapped):
        generate(wrapped, inputs)
        report = earlytom.last_report(wrapped)
        wrapped(**inputs, use_cache=False).logits.float().pow(2).mean().backward()
    assert report is not None
    assert report.tokens_out < report.tokens_in
    grads = [p.grad for p in wrapped.parameters() if p.requires_grad and p.grad is not None]
    assert grads
    assert all(g.isfinite().all() for g in grads)
    assert torch.equal(generate(wrapped, inputs), plain)


@pytest.mark.parametrize("first", ["compress", "dispatch"])
def test_device_map_dispatched_model(first: str) -> None:
    accelerate = pytest.importorskip("accelerate")
    model, inputs = FAMILY.model(), padded()
    with ALL(model):
        expected = generate(model, inputs)
    places = {"model": "cpu", "lm_head": "cpu"}
    if first == "compress":
        earlytom.compress(model, ALL)
    model = accelerate.dispatch_model(model, places, main_device="cpu", force_hooks=True)
    if first == "dispatch":
        earlytom.compress(model, ALL)
    assert torch.equal(generate(model, inputs), expected)


def test_device_map_at_loading(tmp_path: Any) -> None:
    from transformers import AutoModelForImageTextToText

    FAMILY.model().save_pretrained(tmp_path)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path, device_map="cpu").eval()
    with OUTER(model):
        generate(model, padded())
    assert earlytom.last_report(model).tokens_out == 16


def test_quantised_linear_layers() -> None:
    model = FAMILY.model()
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    with OUTER(quantised):
        out = generate(quantised, padded())
    assert out.shape[1] > padded()["input_ids"].shape[1]
    report = earlytom.last_report(quantised)
    assert report is not None
    assert report.tokens_out < report.tokens_in


@pytest.mark.parametrize("order", ["compile_first", "compress_first"])
def test_torch_compile_falls_back_cleanly(order: str) -> None:
    model, inputs = small_model(), padded()
    plain = forward(model, inputs).logits
    with SMALL(model):
        expected = forward(model, inputs).logits
    if order == "compress_first":
        earlytom.compress(model, SMALL)
    compiled = torch.compile(model, backend="eager", dynamic=False)
    if order == "compile_first":
        torch.testing.assert_close(forward(compiled, inputs).logits, plain)
        earlytom.compress(compiled, SMALL)
    torch.testing.assert_close(forward(compiled, inputs).logits, expected, atol=1e-5, rtol=1e-4)
    earlytom.restore(compiled)
    torch.testing.assert_close(forward(compiled, inputs).logits, plain)
    torch.compiler.reset()


def test_compiled_decode_with_static_cache() -> None:
    from transformers import CompileConfig

    model, inputs = FAMILY.model(), FAMILY.inputs(PROMPTS["one_video"])
    config = CompileConfig(backend="eager", fullgraph=True, dynamic=False)
    config._compile_all_devices = True
    with OUTER(model):
        expected = generate(model, inputs)
        got = generate(model, inputs, cache_implementation="static", compile_config=config)
    torch.compiler.reset()
    assert torch.equal(got, expected)


def test_pipeline_object_is_unwrapped(model: nn.Module) -> None:
    pipeline = SimpleNamespace(model=model)
    earlytom.compress(pipeline, OUTER)
    forward(model, padded())
    assert earlytom.last_report(pipeline).tokens_out == 16
    earlytom.restore(pipeline)


def test_inner_merge_equals_a_slow_reference(model: nn.Module) -> None:
    """Stage III against an explicit loop over decoder layers without cache or hooks."""
    inputs = FAMILY.inputs(PROMPTS["one_video"])
    width, lm = inputs["input_ids"].shape[1], model.model.language_model
    with ALL(model):
        out = generate(model, inputs, return_dict_in_generate=True, output_logits=True)
        seen: dict[str, torch.Tensor] = {}

        def spy(module: nn.Module, args: Any, kwargs: Any) -> None:
            seen.setdefault("x", (args[0] if args else kwargs["hidden_states"]).clone())

        handle = lm.layers[0].register_forward_pre_hook(spy, with_kwargs=True)
        forward(model, inputs)
        handle.remove()
    prompt = seen["x"]
    with torch.no_grad():
        new = model.get_input_embeddings()(out.sequences[:, width:-1])
        x = torch.cat([prompt, new], 1)
        cos, sin = lm.rotary_emb(x, torch.arange(x.shape[1])[None])
        visual = torch.zeros(x.shape[1], dtype=torch.bool)
        visual[6 : prompt.shape[1] - 4] = True
        keep = (~visual | (visual.long().cumsum(0) % 2 == 0)).nonzero().flatten()
        rope = (cos, sin)
        for i, layer in enumerate(lm.layers):
            if i == 2:
                x, rope = x[:, keep], (cos[:, keep], sin[:, keep])
            n = x.shape[1]
            causal = torch.ones(n, n, dtype=torch.bool).tril()[None, None]
            done = layer(x, attention_mask=causal, position_embeddings=rope)
            x = done[0] if isinstance(done, tuple) else done
        logits = model.lm_head(lm.norm(x))[:, -len(out.logits) :]
    torch.testing.assert_close(torch.stack(out.logits, 1), logits, atol=3e-5, rtol=1e-4)


@BOTH
def test_a_long_text_row_does_not_hide_that_columns_moved(model: nn.Module, method: Any) -> None:
    """Nothing is dropped from the longest row, so the batch keeps its width."""
    mixed = FAMILY.inputs([["t5", "v", "t4"], ["t90"]])
    with method(model):
        together = forward(model, mixed).logits
        real = mixed["attention_mask"][0].bool()
        alone = {k: v[:1, -int(real.sum()) :] for k, v in mixed.items() if v.dim() == 2}
        alone["pixel_values_videos"] = mixed["pixel_values_videos"]
        expected = forward(model, alone).logits[0]
    torch.testing.assert_close(together[0][real], expected, atol=5e-5, rtol=1e-4)
