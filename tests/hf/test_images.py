"""Tokens of images (``images=True``): exact counts, newlines, signals, and nothing else changes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import earlytom
from earlytom import EarlyTom, load_method
from earlytom.errors import ConfigError, UnsupportedModelError
from earlytom.method import Method
from earlytom.methods import EVS, VisionZip
from earlytom.models import find_adapter
from earlytom.stages import TokenSelection, VideoFeatures
from tests.clip_families import CLIP_FAMILIES
from tests.families import (
    BOS,
    FAMILIES,
    IMAGE,
    PROMPTS,
    Family,
    forward,
    generate,
    own_attributes,
)
from tests.image_families import IMAGE_FAMILIES
from tests.matrix import FEW_PROMPTS, METHODS
from tests.qwen import CONFIG, QwenFamily

INTERNVL, SMOLVLM = IMAGE_FAMILIES
OWNERS = [*FAMILIES, *CLIP_FAMILIES, INTERNVL, *[QwenFamily(name) for name in CONFIG]]
LLAVA = FAMILIES[0]
TOKENS = {"llava_onevision": 50, "llava_video": 50, "llava_next_video": 72, "video_llava": 9,
          "internvl": 27, "qwen2_5_vl": 6, "qwen2_vl": 6, "qwen3_vl": 6}  # fmt: skip
WITH_IMAGES = ["image_only", "image_and_video", "batch_mixed"]
FEW = ("earlytom-budget", "afterimage", "evs", "visionzip", "holitom", "compose-earlytom-holitom")


@dataclass(frozen=True, kw_only=True)
class Every(Method):
    """Keep the first tokens of everything, and remember what was seen."""

    name = "every"
    score: int | None = None

    @property
    def exact_budget(self) -> bool:
        return True

    def score_layer(self, n_layers: int) -> int | None:
        return self.score

    def needs_keys(self) -> bool:
        return self.score is not None

    def select_tokens(self, video: VideoFeatures) -> TokenSelection:
        SEEN.append(video)
        n = video.features.shape[1]
        return TokenSelection(torch.arange(self.token_budget(video.state.n_input, n)))


SEEN: list[VideoFeatures] = []


@pytest.fixture(scope="module", params=OWNERS, ids=lambda f: f.name)
def owner(request: pytest.FixtureRequest) -> Family:
    return request.param


@pytest.fixture(autouse=True)
def _nothing_seen() -> None:
    SEEN.clear()


def wanted(n: int, ratio: float) -> int:
    return max(1, math.ceil(Fraction(str(ratio)) * n))


def allowed(owner: Family, model: nn.Module, method: Method) -> bool:
    try:
        earlytom.compress(model, method, images=True)
    except UnsupportedModelError:
        assert owner.name == "video_llava" or owner.refuses(method)
        return False
    return True


EXACT = {k: m for k, m in METHODS.items() if m.exact_budget and m.selects_tokens}


@pytest.mark.parametrize("prompt", WITH_IMAGES)
@pytest.mark.parametrize(
    "name", [n if n in FEW else pytest.param(n, marks=pytest.mark.slow) for n in EXACT]
)
def test_every_image_keeps_exactly_its_share(
    owner: Family, subject: nn.Module, name: str, prompt: str
) -> None:
    method = EXACT[name]
    if not allowed(owner, subject, method):
        pytest.skip("refused by this family")
    inputs = owner.inputs(PROMPTS[prompt])
    both = forward(subject, inputs).logits
    report = earlytom.last_report(subject)
    assert report is not None
    count = sum(row.count("i") for row in PROMPTS[prompt])
    n = TOKENS[owner.name]
    assert report.images == ((n, wanted(n, method.retention_ratio)),) * count
    assert both.isfinite().all()
    assert both.shape[1] == inputs["input_ids"].shape[1]
    if prompt != "image_only":
        earlytom.compress(subject, method)
        forward(subject, inputs)
        videos = earlytom.last_report(subject)
        assert videos is not None
        assert videos.images == ()
        assert [v.index.tolist() for v in videos.videos if v.index is not None] == [
            v.index.tolist() for v in report.videos if v.index is not None
        ]


@pytest.mark.parametrize("prompt", FEW_PROMPTS)
def test_keep_everything_is_the_identity(owner: Family, subject: nn.Module, prompt: str) -> None:
    inputs = owner.inputs(PROMPTS[prompt])
    logits, tokens = forward(subject, inputs).logits, generate(subject, inputs)
    earlytom.compress(subject, EVS(retention_ratio=1.0), images=True)
    assert torch.equal(forward(subject, inputs).logits, logits)
    assert torch.equal(generate(subject, inputs), tokens)


@pytest.mark.parametrize("prompt", WITH_IMAGES)
def test_decode_equals_full_reforward(owner: Family, subject: nn.Module, prompt: str) -> None:
    inputs = owner.inputs(PROMPTS[prompt])
    earlytom.compress(subject, EarlyTom(retention_ratio=0.3), images=True)
    out = generate(subject, inputs, return_dict_in_generate=True, output_logits=True)
    report = earlytom.last_report(subject)
    assert report is not None
    assert report.images
    stepwise = torch.stack(out.logits, 1)
    full = owner.longer(inputs, out.sequences[:, :-1])
    for use_cache in (True, False):
        again = forward(subject, full, use_cache=use_cache).logits
        torch.testing.assert_close(again[:, -stepwise.shape[1] :], stepwise, atol=3e-5, rtol=1e-4)


def test_other_prompts_stay_as_they_are(owner: Family, subject: nn.Module) -> None:
    inputs = owner.inputs(PROMPTS["batch_padded"])
    method = EarlyTom(retention_ratio=0.25)
    with method(subject):
        logits = forward(subject, inputs).logits
    with method(subject, images=True):
        assert torch.equal(forward(subject, inputs).logits, logits)
        text = forward(subject, owner.inputs(PROMPTS["text_only"])).logits
    assert torch.equal(text, forward(subject, owner.inputs(PROMPTS["text_only"])).logits)


def test_restore_leaves_no_trace(owner: Family, subject: nn.Module) -> None:
    inputs = owner.inputs(PROMPTS["image_and_video"])
    logits, before = forward(subject, inputs).logits, own_attributes(subject)
    earlytom.compress(subject, EVS(retention_ratio=0.3), images=True, frames_per_chunk=3)
    assert not torch.equal(forward(subject, inputs).logits, logits)
    earlytom.restore(subject)
    assert own_attributes(subject) == before
    assert torch.equal(forward(subject, inputs).logits, logits)


def test_chunks_of_frames_leave_images_alone(owner: Family, subject: nn.Module) -> None:
    inputs = owner.inputs(PROMPTS["batch_mixed"])
    method = EarlyTom(retention_ratio=0.3)
    earlytom.compress(subject, method, images=True)
    whole = forward(subject, inputs).logits
    earlytom.compress(subject, method, images=True, frames_per_chunk=3)
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(
        forward(subject, inputs).logits[real], whole[real], atol=2e-5, rtol=1e-4
    )


# ------------------------------------------------------------------ LLaVA-OneVision
def two_images(crops: int, seed: int = 3) -> dict[str, Any]:
    """A prompt with two images, and another one with one, of one or two crops each."""
    g = torch.Generator().manual_seed(seed)
    part = [IMAGE] * (25 + 1 if crops == 1 else 25 + 25 + 5)
    rows = [[BOS, 5, *part, 6, *part, 7, 8], [BOS, 9, *part, 10]]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(r)) + r for r in rows])
    mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows])
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "pixel_values": torch.randn(3, crops, 3, 70, 70, generator=g),
        "image_sizes": torch.tensor([[70, 70]] * 3),
        # several images of a sample are not cut into crops
        "batch_num_images": torch.tensor([3] if crops == 1 else [1, 1, 1]),
    }


def alone(inputs: dict[str, Any], row: int) -> dict[str, Any]:
    count = int(inputs["attention_mask"][row].sum())
    mine = slice(0, 2) if row == 0 else slice(2, 3)
    out = {k: inputs[k][row : row + 1, -count:] for k in ("input_ids", "attention_mask")}
    out |= {k: inputs[k][mine] for k in ("pixel_values", "image_sizes")}
    return {**out, "batch_num_images": torch.tensor([1, 1, 1][mine])}


@pytest.mark.parametrize("name", ["earlytom-budget", "afterimage", "visionzip"])
def test_batch_row_equals_row_alone(name: str) -> None:
    model, both = LLAVA.model(), two_images(2)
    kw: dict[str, Any] = {"return_dict_in_generate": True, "output_logits": True}
    with METHODS[name](model, images=True):
        together = torch.stack(generate(model, both, **kw).logits, 1)
        for row in range(2):
            one = torch.stack(generate(model, alone(both, row), **kw).logits, 1)[0]
            torch.testing.assert_close(together[row], one, atol=5e-5, rtol=1e-4)


def features(model: Any, inputs: dict[str, Any]) -> list[Tensor]:
    names = ("pixel_values", "image_sizes", "batch_num_images")
    with torch.no_grad():
        return list(model.get_image_features(**{k: inputs[k] for k in names}).pooler_output)


def test_newlines_of_whole_lines_and_the_last_one_stay() -> None:
    model, inputs = LLAVA.model(), two_images(2)
    plain = features(model, inputs)
    with Every(retention_ratio=0.74)(model, images=True):  # 37 of 50: two lines and 2 tokens
        found = features(model, inputs)
    for a, b in zip(plain, found, strict=True):
        here = ~b.isnan().any(1)
        # 25 tokens of the small picture, then lines of 5 tokens and a newline
        kept = [*range(25), *range(25, 31), *range(31, 37), 37, 38, 54]
        assert here.nonzero().flatten().tolist() == kept
        assert torch.equal(b[here], a[here])


def test_signals_of_an_image_are_those_of_its_crops() -> None:
    model: Any = LLAVA.model(attn="eager")
    inputs = two_images(2)
    crops = inputs["pixel_values"].flatten(0, 1)
    with torch.no_grad():
        maps = model.model.vision_tower(crops, output_attentions=True).attentions[3]
    expected = maps.mean((1, 2)).view(3, 2, 25)
    with Every(retention_ratio=0.5, score=3)(model, images=True):
        features(model, inputs)
    assert len(SEEN) == 3
    for video, part in zip(SEEN, expected, strict=True):
        assert video.features.shape[:2] == (1, 50)
        assert video.grid == (1, 50)
        torch.testing.assert_close(video.received, part.flatten()[None], atol=1e-6, rtol=1e-4)
        assert video.keys.shape == (1, 50, 16)


def test_images_of_one_crop_have_their_own_grid() -> None:
    model, inputs = LLAVA.model(), two_images(1)
    with Every(retention_ratio=0.2, score=2)(model, images=True):
        found = features(model, inputs)
        report = earlytom.last_report(model)
    assert [v.grid for v in SEEN] == [(5, 5)] * 3
    assert report is not None
    assert report.images == ((25, 5),) * 3
    for rows in found:
        assert (~rows.isnan().any(1)).nonzero().flatten().tolist() == [*range(5), 25]


def test_reports_of_one_prompt_belong_together() -> None:
    model, method = LLAVA.model(), EVS(retention_ratio=0.4)
    earlytom.compress(model, method, images=True)
    for prompt, images, videos in [
        ("batch_mixed", 1, 3),
        ("image_only", 1, 0),
        ("one_video", 0, 1),
    ]:
        for run in (forward, generate):
            run(model, LLAVA.inputs(PROMPTS[prompt]))
            report = earlytom.last_report(model)
            assert report is not None
            assert (len(report.images), len(report.videos)) == (images, videos)
            assert len(report.to_dict()["images"]) == images


def test_reports_do_not_leak_into_the_next_prompt() -> None:
    """Neither from a prompt in which nothing is dropped, nor from one that failed."""
    model: Any = LLAVA.model()
    earlytom.compress(model, EVS(retention_ratio=1.0), images=True)
    videos, images = (LLAVA.inputs(PROMPTS[p]) for p in ("one_video", "image_only"))
    forward(model, videos)
    forward(model, images)
    report = earlytom.last_report(model)
    assert report is not None
    assert (len(report.images), len(report.videos)) == (1, 0)
    earlytom.compress(model, EVS(retention_ratio=0.4), images=True)
    handle = find_adapter(model).decoder_layers[0].register_forward_pre_hook(_fail)
    with pytest.raises(RuntimeError, match="broken"):
        forward(model, videos)
    handle.remove()
    forward(model, images)
    report = earlytom.last_report(model)
    assert report is not None
    assert (len(report.images), len(report.videos)) == (1, 0)


def _fail(*args: Any) -> None:
    raise RuntimeError("broken")


def test_images_stay_as_they_are_by_default() -> None:
    model, inputs = LLAVA.model(), LLAVA.inputs(PROMPTS["image_only"])
    logits = forward(model, inputs).logits
    with METHODS["earlytom-budget"](model):
        assert torch.equal(forward(model, inputs).logits, logits)


@pytest.mark.parametrize("name", ["tome", "fastv", "earlytom-official", "visionzip-official"])
def test_methods_without_an_exact_token_stage_are_refused(name: str) -> None:
    model = LLAVA.model()
    with pytest.raises(ConfigError, match="exact count"):
        earlytom.compress(model, METHODS[name], images=True)
    assert earlytom.active_method(model) is None


def test_families_whose_images_are_out_of_reach() -> None:
    with pytest.raises(UnsupportedModelError, match="tiles of an image stand apart"):
        earlytom.compress(SMOLVLM.model(), EVS(), images=True)
    model = CLIP_FAMILIES[1].model()
    with pytest.raises(UnsupportedModelError, match="image_tower"):
        earlytom.compress(model, VisionZip(), images=True)
    earlytom.compress(model, EVS(), images=True)  # needs nothing of the encoder
    earlytom.restore(model)


@pytest.mark.parametrize("value", [1, "yes", None])
def test_bad_values(value: Any) -> None:
    with pytest.raises(ConfigError, match="images must be"):
        earlytom.compress(LLAVA.model(), EVS(), images=value)
    with pytest.raises(ConfigError, match="exact count"):
        earlytom.compress(LLAVA.model(), None, images=True, frames_per_chunk=2)


def test_a_method_that_misses_the_count_is_named() -> None:
    class Wrong(Every):
        def select_tokens(self, video: VideoFeatures) -> TokenSelection:
            return TokenSelection(torch.arange(3))

    model = LLAVA.model()
    with (
        Wrong(retention_ratio=0.5)(model, images=True),
        pytest.raises(ConfigError, match="keeps 3 of the 50 tokens"),
    ):
        forward(model, LLAVA.inputs(PROMPTS["image_only"]))


def test_beams_encode_an_image_once() -> None:
    model: Any = INTERNVL.model()
    if not hasattr(model, "_prepare_multimodal_encoder_kwargs_for_generation"):
        pytest.skip("transformers before 5.18 mixes up the images of beams")
    inputs = INTERNVL.inputs(PROMPTS["batch_mixed"])
    seen: list[int] = []
    layer: Any = find_adapter(model).layers[0]
    layer.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    earlytom.compress(model, load_method("evs", retention_ratio=0.3), images=True)
    one = generate(model, inputs, output_logits=True, return_dict_in_generate=True).logits[0]
    total = sum(seen)
    many = generate(
        model,
        inputs,
        do_sample=True,
        num_return_sequences=2,
        output_logits=True,
        return_dict_in_generate=True,
    ).logits[0]
    torch.testing.assert_close(many, one.repeat_interleave(2, 0), atol=2e-5, rtol=1e-4)
    assert sum(seen) == 2 * total
