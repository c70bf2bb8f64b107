"""A few frames at a time: decisions and results of all frames at once, in bounded pieces."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import earlytom
from earlytom.errors import ConfigError
from earlytom.hf.chunked import ChunkedForward
from earlytom.method import Method
from earlytom.models import find_adapter
from tests.clip_families import CLIP_FAMILIES
from tests.families import FAMILIES, PROMPTS, Family, forward, generate, own_attributes
from tests.image_families import IMAGE_FAMILIES
from tests.matrix import FEW_PROMPTS, METHODS
from tests.qwen import CONFIG, QwenFamily
from tests.toys import IDENTITY

OWNERS = [*FAMILIES, *CLIP_FAMILIES, *IMAGE_FAMILIES, *[QwenFamily(name) for name in CONFIG]]
STEP = 3
CLOSE = {"atol": 2e-5, "rtol": 1e-4}
# one method per way of looking into the encoder
FEW = (
    "earlytom-official",
    "afterimage",
    "visionzip",
    "tome",
    "ipcv",
    "resize",
    "compose-tome-holitom",
    "toy-merge_last_layer",
)


@pytest.fixture(scope="module", params=OWNERS, ids=lambda f: f.name)
def owner(request: pytest.FixtureRequest) -> Family:
    return request.param


def allowed(owner: Family, method: Method | None) -> bool:
    return method is None or not owner.refuses(method)


def decisions(model: nn.Module) -> list[Any]:
    report = earlytom.last_report(model)
    assert report is not None
    return [
        (v.first, v.count, v.slots, v.patch_reductions, v.reuse, _listed(v.index))
        for v in report.videos
    ]


def _listed(index: Tensor | None) -> list[int] | None:
    return None if index is None else index.tolist()


@pytest.mark.parametrize("step", [STEP, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name",
    [
        "plain",
        *(n if n in FEW else pytest.param(n, marks=pytest.mark.slow) for n in METHODS),
    ],
)
def test_chunks_decide_and_answer_as_all_frames_do(
    owner: Family, subject: nn.Module, name: str, step: int
) -> None:
    method = METHODS.get(name)
    if not allowed(owner, method):
        pytest.skip("refused by this family")
    if name in owner.ties and step == 1:
        pytest.skip("equal tokens: which of them others go to is decided by rounding")
    inputs = owner.inputs(PROMPTS["batch_mixed"])
    if method is None:
        whole, decided = forward(subject, inputs).logits, []
    else:
        with method(subject):
            whole, decided = forward(subject, inputs).logits, decisions(subject)
    earlytom.compress(subject, method, frames_per_chunk=step)
    found = forward(subject, inputs).logits
    assert method is None or decisions(subject) == decided
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(found[real], whole[real], **CLOSE)


@pytest.mark.parametrize("prompt", FEW_PROMPTS)
def test_keep_everything_stays_the_identity(owner: Family, subject: nn.Module, prompt: str) -> None:
    inputs = owner.inputs(PROMPTS[prompt])
    logits, tokens = forward(subject, inputs).logits, generate(subject, inputs)
    real = inputs["attention_mask"].bool()
    for method in (None, IDENTITY):
        earlytom.compress(subject, method, frames_per_chunk=STEP)
        torch.testing.assert_close(forward(subject, inputs).logits[real], logits[real], **CLOSE)
        assert torch.equal(generate(subject, inputs), tokens)
    if "only" in prompt:  # nothing to cut
        assert torch.equal(forward(subject, inputs).logits[real], logits[real])


@pytest.mark.parametrize("name", ["plain", "earlytom-budget", "afterimage", "tome", "resize"])
def test_no_module_of_the_encoder_sees_more_than_a_chunk(
    owner: Family, subject: nn.Module, name: str
) -> None:
    method = METHODS.get(name)
    if not allowed(owner, method):
        pytest.skip("refused by this family")
    adapter = find_adapter(subject)
    inputs = owner.inputs(PROMPTS["two_videos"])
    patches = adapter.class_tokens + adapter.frame_patches((3, 4) if adapter.packed else None)
    inside = [adapter.mlp(layer) for layer in adapter.layers] + adapter.projectors
    linear = [m for module in inside for m in module.modules() if isinstance(m, nn.Linear)]
    linear += [m for m in adapter.embeddings().modules() if isinstance(m, nn.Conv2d | nn.Conv3d)]
    seen: dict[int, list[int]] = {}

    def spy(module: nn.Module, args: Any) -> None:
        x: Tensor = args[0]
        rows = x.shape[0] if adapter.packed or x.dim() == 4 else x[..., 0].numel()
        seen.setdefault(id(module), []).append(rows)

    handles = [m.register_forward_pre_hook(spy) for m in linear]

    def largest() -> dict[int, int]:
        seen.clear()
        forward(subject, inputs)
        return {k: max(v) for k, v in seen.items()}

    if method is not None:
        earlytom.compress(subject, method)
    whole = largest()
    earlytom.compress(subject, method, frames_per_chunk=STEP)
    cut = largest()
    for handle in handles:
        handle.remove()
    assert cut.keys() == whole.keys()
    for key, rows in cut.items():
        # frames are rows of the patch embeddings; elsewhere patches (or what became of them) are
        assert rows <= STEP * patches
        assert rows < whole[key]


def test_restore_leaves_no_trace(owner: Family, subject: nn.Module) -> None:
    inputs = owner.inputs(PROMPTS["one_video"])
    logits, before = forward(subject, inputs).logits, own_attributes(subject)
    earlytom.compress(subject, METHODS["earlytom-budget"], frames_per_chunk=2)
    forward(subject, inputs)
    assert own_attributes(subject) != before
    earlytom.restore(subject)
    assert own_attributes(subject) == before
    assert torch.equal(forward(subject, inputs).logits, logits)


# ------------------------------------------------------------------ LLaVA-OneVision is enough
LLAVA = FAMILIES[0]


@pytest.fixture
def llava() -> nn.Module:
    return LLAVA.model()


def chunked(model: nn.Module) -> bool:
    return any(isinstance(m.__dict__.get("forward"), ChunkedForward) for m in model.modules())


def test_contexts_nest(llava: nn.Module) -> None:
    inputs = LLAVA.inputs(PROMPTS["one_video"])
    earlytom.compress(llava, METHODS["earlytom-budget"], frames_per_chunk=2)
    outer = forward(llava, inputs).logits
    with METHODS["afterimage"](llava):
        assert not chunked(llava)
    assert chunked(llava)
    with METHODS["afterimage"](llava, frames_per_chunk=5):
        assert chunked(llava)
    assert torch.equal(forward(llava, inputs).logits, outer)
    earlytom.restore(llava)
    assert not chunked(llava)


def test_an_error_leaves_the_next_call_alone(llava: nn.Module) -> None:
    inputs = LLAVA.inputs(PROMPTS["one_video"])
    earlytom.compress(llava, METHODS["earlytom-official"], frames_per_chunk=2)
    good = forward(llava, inputs).logits
    seen: list[int] = []

    def fail(module: nn.Module, args: Any) -> None:
        seen.append(1)
        if len(seen) == 2:
            raise RuntimeError("in the middle")

    handle = find_adapter(llava).mlp(find_adapter(llava).layers[3]).register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        forward(llava, inputs)
    handle.remove()
    assert torch.equal(forward(llava, inputs).logits, good)


def test_gradients_flow_through_chunks(llava: nn.Module) -> None:
    inputs = LLAVA.inputs(PROMPTS["one_video"])
    weight = find_adapter(llava).layers[0].mlp.fc1.weight  # type: ignore[union-attr]

    def gradient() -> Tensor:
        llava.zero_grad()
        llava(**inputs).logits.square().mean().backward()
        assert weight.grad is not None
        return weight.grad.clone()

    with METHODS["earlytom-budget"](llava):
        whole = gradient()
    with METHODS["earlytom-budget"](llava, frames_per_chunk=3):
        torch.testing.assert_close(gradient(), whole, atol=1e-6, rtol=1e-3)


def test_a_copy_of_the_model_runs_on_its_own(llava: nn.Module) -> None:
    inputs = LLAVA.inputs(PROMPTS["one_video"])
    earlytom.compress(llava, METHODS["earlytom-budget"], frames_per_chunk=2)
    logits = forward(llava, inputs).logits
    other = copy.deepcopy(llava)
    earlytom.restore(llava)
    assert torch.equal(forward(other, inputs).logits, logits)
    earlytom.restore(other)
    assert not chunked(other)


def test_attention_maps_come_whole() -> None:
    model: Any = LLAVA.model(attn="eager")
    pixels = LLAVA.inputs(PROMPTS["one_video"])["pixel_values_videos"]
    with torch.no_grad():
        with IDENTITY(model):
            whole = model.get_video_features(pixels, output_attentions=True).attentions
        with IDENTITY(model, frames_per_chunk=2):
            found = model.get_video_features(pixels, output_attentions=True).attentions
    assert [x.shape for x in found] == [x.shape for x in whole]
    assert len(found) == 6


def test_hidden_states_that_somebody_asks_for_are_not_overwritten(llava: nn.Module) -> None:
    model: Any = llava
    pixels = LLAVA.inputs(PROMPTS["one_video"])["pixel_values_videos"]

    def states(**ask: Any) -> list[Tensor]:
        with torch.no_grad():
            return list(model.get_video_features(pixels, **ask).hidden_states)

    for ask in ({"output_hidden_states": True}, {"vision_feature_layer": 2}):
        whole = states(**ask)
        with IDENTITY(llava, frames_per_chunk=3):
            found = states(**ask)
        assert len(found) == len(whole)
        for a, b in zip(found, whole, strict=True):
            assert (a is None) == (b is None)
            if b is not None:
                torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_what_a_hook_of_the_user_holds_on_to_is_not_overwritten(llava: nn.Module) -> None:
    inputs, held = LLAVA.inputs(PROMPTS["one_video"]), []
    layer = find_adapter(llava).layers[1]
    handle = layer.register_forward_hook(lambda module, args, output: held.append(output))
    forward(llava, inputs)
    with IDENTITY(llava, frames_per_chunk=3):
        forward(llava, inputs)
    handle.remove()
    torch.testing.assert_close(held[1], held[0], atol=1e-5, rtol=1e-4)


def test_states_are_overwritten_where_nobody_looks(llava: nn.Module) -> None:
    """The frames of a video exist once inside the encoder, not once per layer."""
    inputs, places = LLAVA.inputs(PROMPTS["one_video"]), set()
    original = ChunkedForward.__call__

    def spy(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = original(self, *args, **kwargs)
        places.add(out.data_ptr())
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ChunkedForward, "__call__", spy)
        with IDENTITY(llava, frames_per_chunk=3):
            forward(llava, inputs)
    assert len(places) == 2  # states; projected and pooled tokens


def test_somebody_elses_forward_stays(llava: nn.Module) -> None:
    """accelerate puts a forward of its own on instances."""
    layer: Any = find_adapter(llava).layers[1]
    inputs = LLAVA.inputs(PROMPTS["one_video"])
    own, calls = layer.forward, []

    def forward_of(*args: Any, **kwargs: Any) -> Any:
        calls.append(len(args[0]))
        return own(*args, **kwargs)

    layer.forward = forward_of
    with METHODS["earlytom-budget"](llava, frames_per_chunk=3):
        forward(llava, inputs)
    assert layer.__dict__["forward"] is forward_of
    assert max(calls) <= 3


def test_compile_takes_the_place_of_chunks(llava: nn.Module) -> None:
    inputs = LLAVA.inputs(PROMPTS["one_video"])
    method = METHODS["earlytom-budget"]
    with method(llava):
        logits = forward(llava, inputs).logits
    earlytom.compress(llava, method, frames_per_chunk=2)
    earlytom.compile(llava, method, frames=8, backend="eager")
    assert not chunked(llava)
    assert torch.equal(forward(llava, inputs).logits, logits)
    earlytom.restore(llava)


@pytest.mark.parametrize("frames", [0, -1, 2.0, True, "8"])
def test_bad_numbers_of_frames(llava: nn.Module, frames: Any) -> None:
    with pytest.raises(ConfigError, match="frames_per_chunk"):
        earlytom.compress(llava, METHODS["evs"], frames_per_chunk=frames)
    with pytest.raises(ConfigError, match="expected a method"):
        earlytom.compress(llava, None)
    assert earlytom.active_method(llava) is None


def test_a_model_without_a_method_has_none(llava: nn.Module) -> None:
    earlytom.compress(llava, None, frames_per_chunk=4)
    assert earlytom.active_method(llava) is None
    assert chunked(llava)
    earlytom.restore(llava)
