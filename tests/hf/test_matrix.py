"""Behaviour that every method must show on every family (see ``tests.matrix``)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import earlytom
from tests.families import PROMPTS, Family, forward, generate, own_attributes
from tests.masked import check, recorded
from tests.matrix import METHODS
from tests.toys import IDENTITY

# what a re-forward ranks inside of the language model is another last query
INSIDE = [k for k, m in METHODS.items() if m.inner_points(4) or m.decode_layer(4) is not None]
OUTSIDE = [k for k in METHODS if k not in INSIDE]
VIDEO_PROMPTS = [k for k in PROMPTS if "only" not in k]


class Plain:
    """What the model says without a method, by prompt."""

    def __init__(self, family: Family, model: nn.Module) -> None:
        self._family, self._model = family, model
        self._known: dict[str, tuple[Tensor, Tensor]] = {}

    def __call__(self, prompt: str) -> tuple[Tensor, Tensor]:
        """Logits and tokens; only to be asked while no method is on."""
        if prompt not in self._known:
            inputs = self._family.inputs(PROMPTS[prompt])
            logits = forward(self._model, inputs).logits
            self._known[prompt] = logits, generate(self._model, inputs)
        return self._known[prompt]


@pytest.fixture(scope="module")
def plain(family: Family, model: nn.Module) -> Plain:
    return Plain(family, model)


@pytest.fixture(scope="module", params=[torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(scope="module")
def half(family: Family, dtype: torch.dtype) -> nn.Module:
    return family.model(dtype)


@pytest.fixture(scope="module")
def eager(family: Family) -> nn.Module:
    return family.model(attn="eager")


@pytest.mark.parametrize("prompt", PROMPTS)
def test_keep_everything_is_bit_identical(
    family: Family, model: nn.Module, plain: Plain, prompt: str
) -> None:
    inputs = family.inputs(PROMPTS[prompt])
    logits, tokens = plain(prompt)
    with IDENTITY(model):
        assert torch.equal(forward(model, inputs).logits, logits)
        assert torch.equal(generate(model, inputs), tokens)


@pytest.mark.parametrize("prompt", VIDEO_PROMPTS)
@pytest.mark.parametrize("name", OUTSIDE)
def test_decode_equals_full_reforward(
    family: Family, model: nn.Module, name: str, prompt: str
) -> None:
    inputs = family.inputs(PROMPTS[prompt])
    width = inputs["input_ids"].shape[1]
    with METHODS[name](model):
        out = generate(model, inputs, return_dict_in_generate=True, output_logits=True)
        new = out.sequences.shape[1] - width
        stepwise = torch.stack(out.logits, 1)
        assert torch.equal(out.sequences[:, :width], inputs["input_ids"])
        assert stepwise.isfinite().all()
        full = family.longer(inputs, out.sequences[:, :-1])
        for use_cache in (True, False):
            again = forward(model, full, use_cache=use_cache).logits
            assert again.shape[1] == full["input_ids"].shape[1]
            torch.testing.assert_close(again[:, -new:], stepwise, atol=3e-5, rtol=1e-4)


@pytest.mark.parametrize("prompt", VIDEO_PROMPTS)
@pytest.mark.parametrize("name", INSIDE)
def test_decode_equals_the_masked_reference(
    family: Family, model: nn.Module, name: str, prompt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = family.inputs(PROMPTS[prompt])
    with METHODS[name](model):
        record, handle = recorded(model, METHODS[name], monkeypatch)
        with handle:
            out = generate(model, inputs, return_dict_in_generate=True, output_logits=True)
        check(model, record, out, inputs["input_ids"].shape[1])


@pytest.mark.parametrize("name", METHODS)
def test_batch_row_equals_row_alone(family: Family, model: nn.Module, name: str) -> None:
    both = family.inputs(PROMPTS["batch_padded"])
    with METHODS[name](model):
        kw = {"return_dict_in_generate": True, "output_logits": True}
        together = torch.stack(generate(model, both, **kw).logits, 1)
        for row in range(2):
            alone = generate(model, family.row_alone(both, row, [row]), **kw).logits
            torch.testing.assert_close(
                together[row], torch.stack(alone, 1)[0], atol=5e-5, rtol=1e-4
            )


@pytest.mark.parametrize("prompt", VIDEO_PROMPTS)
@pytest.mark.parametrize("name", METHODS)
def test_counts_and_determinism(family: Family, model: nn.Module, name: str, prompt: str) -> None:
    method = METHODS[name]
    inputs = family.inputs(PROMPTS[prompt])
    with method(model):
        first = forward(model, inputs).logits
        report = earlytom.last_report(model)
        second = forward(model, inputs).logits
    assert torch.equal(first, second)
    assert report is not None
    assert len(report.videos) == family.videos(inputs)
    for video in report.videos:
        assert video.frames_in == family.frames
        assert video.tokens_in == family.frames * family.tokens_per_frame
        places = [(f, p) for f, p, _ in video.provenance()]
        assert places == sorted(set(places)), "tokens must keep temporal and raster order"
        assert len(places) == video.tokens_out
        assert len(set(video.slots)) == video.frames_out
        assert list(video.slots) == sorted(video.slots)
    columns = report.prompt_columns or (inputs["input_ids"].shape[1],) * 2
    if len(PROMPTS[prompt]) == 1:
        entered = report.layer_tokens[0] if report.layer_tokens else report.tokens_out
        removed = columns[0] - columns[1] - (report.tokens_in - entered)
        more = max(0, family.newlines_per_video - 1)  # one at the end stays
        newlines = more * len(report.videos)
        assert 0 <= removed <= newlines


@pytest.mark.parametrize("name", METHODS)
def test_restore_is_bit_equal(family: Family, model: nn.Module, plain: Plain, name: str) -> None:
    inputs = family.inputs(PROMPTS["image_and_video"])
    before = plain("image_and_video")[0]
    attributes = own_attributes(model)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    earlytom.compress(model, METHODS[name])
    changed = forward(model, inputs).logits
    earlytom.restore(model)
    assert not torch.equal(before, changed), "the method did nothing"
    assert torch.equal(forward(model, inputs).logits, before)
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    assert own_attributes(model) == attributes


@pytest.mark.parametrize("prompt", ["image_only", "text_only"])
@pytest.mark.parametrize("name", METHODS)
def test_prompts_without_video_are_untouched(
    family: Family, model: nn.Module, plain: Plain, name: str, prompt: str
) -> None:
    inputs = family.inputs(PROMPTS[prompt])
    logits, tokens = plain(prompt)
    with METHODS[name](model):
        assert torch.equal(forward(model, inputs).logits, logits)
        assert torch.equal(generate(model, inputs), tokens)


@pytest.mark.parametrize("name", METHODS)
def test_half_precision(family: Family, half: nn.Module, dtype: torch.dtype, name: str) -> None:
    inputs = family.inputs(PROMPTS["batch_padded"], dtype=dtype)
    with METHODS[name](half):
        logits = forward(half, inputs).logits
        out = generate(half, inputs, return_dict_in_generate=True, output_logits=True)
    assert logits.dtype == dtype
    assert torch.stack(out.logits).isfinite().all()
    report = earlytom.last_report(half)
    assert report is not None
    assert report.tokens_out <= report.tokens_in


@pytest.mark.parametrize("name", METHODS)
def test_attention_backends_agree(
    family: Family, model: nn.Module, eager: nn.Module, name: str
) -> None:
    if name in family.ties:
        pytest.skip("equal tokens: which of them others go to is decided by rounding")
    inputs = family.inputs(PROMPTS["batch_padded"])
    with METHODS[name](model), METHODS[name](eager):
        a, b = forward(model, inputs).logits, forward(eager, inputs).logits
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(a[real], b[real], atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_right_padding_gives_the_same_logits(family: Family, model: nn.Module, name: str) -> None:
    left = family.inputs(PROMPTS["batch_padded"])
    right = family.inputs(PROMPTS["batch_padded"], left=False)
    with METHODS[name](model):
        a, b = forward(model, left).logits, forward(model, right).logits
    a, b = a[left["attention_mask"].bool()], b[right["attention_mask"].bool()]
    torch.testing.assert_close(a, b, atol=5e-5, rtol=1e-4)
