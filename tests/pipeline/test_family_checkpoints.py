"""Checkpoints as on the Hub: key layouts, loading in one call, what preprocessing needs."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import earlytom
from earlytom.errors import UnsupportedModelError
from earlytom.methods import load_method
from earlytom.models import find_adapter, use_frame_prompts
from earlytom.models.image_frames import ImageFrames
from earlytom.pipeline.loading import load_model
from earlytom.preprocess import Preprocessor
from tests.clip_families import CLIP_FAMILIES
from tests.families import PROMPTS, Family, forward
from tests.image_families import IMAGE_FAMILIES, TEXT, ImageFamily, Tokenizer

OWNERS = {f.name: f for f in [*CLIP_FAMILIES, *IMAGE_FAMILIES]}
# (start of a parameter's name in the model, start of its key in published checkpoints)
LLAVA = [
    ("lm_head.", "language_model.lm_head."),
    ("model.language_model.", "language_model.model."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
]
PUBLISHED: dict[str, list[tuple[str, str]]] = {
    "llava_next_video": [
        *LLAVA,
        ("model.vision_tower.vision_model.", "vision_tower.vision_model."),  # some 5.x
        ("model.vision_tower.", "vision_tower.vision_model."),
        ("model.image_newline", "image_newline"),
    ],
    "video_llava": [
        *LLAVA,
        ("model.video_tower.vision_model.", "video_tower.vision_model."),
        ("model.video_tower.", "video_tower.vision_model."),
        ("model.image_tower.vision_model.", "image_tower.vision_model."),
        ("model.image_tower.", "image_tower.vision_model."),
    ],
    "internvl": [*LLAVA, ("model.vision_tower.", "vision_tower.")],
    "smolvlm": [
        ("lm_head.", "lm_head."),
        ("model.text_model.", "model.text_model."),
        ("model.vision_model.", "model.vision_model."),
        ("model.connector.", "model.connector."),
    ],
}


def published(name: str, key: str) -> str:
    for ours, theirs in PUBLISHED[name]:
        if key.startswith(ours):
            return theirs + key[len(ours) :]
    raise AssertionError(f"{key} has no place in a published checkpoint")


@pytest.fixture(params=OWNERS)
def owner(request: pytest.FixtureRequest) -> Family:
    return OWNERS[request.param]


def keys(folder: Path) -> set[str]:
    return set(load_file(folder / "model.safetensors"))


def own_weights(model: Any) -> dict[str, torch.Tensor]:
    """The weights of a model, tied ones once."""
    state: dict[str, torch.Tensor] = model.state_dict()
    if model.lm_head.weight is model.get_input_embeddings().weight:
        del state["lm_head.weight"]
    return state


def check(folder: Path, owner: Family, model: Any) -> None:
    """What ``folder`` holds is ``model``, and a method runs on it."""
    loaded = load_model(folder, device="cpu")
    state = loaded.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    adapter = find_adapter(loaded)
    if isinstance(adapter, ImageFrames):
        use_frame_prompts(loaded, Tokenizer())
    assert adapter.tokens_per_frame == owner.tokens_per_frame
    inputs = owner.inputs(PROMPTS["one_video"])
    with load_method("earlytom", retention_ratio=0.25)(loaded):
        assert forward(loaded, inputs).logits.isfinite().all()
        report = earlytom.last_report(loaded)
    assert report is not None
    assert report.tokens_out == owner.frames * owner.tokens_per_frame // 4


def test_published_layout(owner: Family, tmp_path: Path) -> None:
    model = owner.model()
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    own = own_weights(model)
    state = {published(owner.name, k): v.contiguous() for k, v in own.items()}
    assert len(state) == len(own)
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    check(tmp_path, owner, model)


def test_what_save_pretrained_writes(owner: Family, tmp_path: Path) -> None:
    """In the published layout or the one of the live model; both load."""
    model = owner.model()
    model.save_pretrained(tmp_path / "old")  # type: ignore[operator]
    tops = {theirs.partition(".")[0] for _, theirs in PUBLISHED[owner.name]}
    assert {k.partition(".")[0] for k in keys(tmp_path / "old")} == tops
    check(tmp_path / "old", owner, model)
    model.save_pretrained(tmp_path / "new", save_original_format=False)  # type: ignore[operator]
    assert keys(tmp_path / "new") == set(own_weights(model))
    check(tmp_path / "new", owner, model)


@pytest.mark.parametrize("owner", IMAGE_FAMILIES, ids=lambda f: f.name)
def test_frames_are_read_with_the_tokenizer_beside_the_checkpoint(
    owner: ImageFamily, tmp_path: Path
) -> None:
    from tokenizers import Tokenizer as Raw
    from tokenizers import decoders, models
    from transformers import PreTrainedTokenizerFast

    vocab = {TEXT.get(i, f"word{i}"): i for i in range(128)}
    raw = Raw(models.WordLevel(vocab, unk_token="word0"))
    raw.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="word0").save_pretrained(tmp_path)
    owner.model().save_pretrained(tmp_path)  # type: ignore[operator]
    loaded = load_model(tmp_path, device="cpu")
    inputs = owner.inputs(PROMPTS["batch_mixed"])
    with load_method("earlytom", retention_ratio=0.25)(loaded):
        forward(loaded, inputs)
        report = earlytom.last_report(loaded)
    assert report is not None
    assert [v.frames_in for v in report.videos] == [owner.frames] * 3
    assert find_adapter(loaded).frame_counts(inputs) == [owner.frames] * 3


def test_an_official_processor_is_enough(
    owner: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings of other families (image sizes as lists) are not read then."""

    class Official:
        tokenizer = Tokenizer()

    monkeypatch.setattr("earlytom.preprocess.processor.official_processor", lambda name: Official())
    owner.model().save_pretrained(tmp_path)  # type: ignore[operator]
    assert isinstance(Preprocessor.from_pretrained(tmp_path).official, Official)


def test_preprocessing_needs_the_official_processor(owner: Family, tmp_path: Path) -> None:
    if importlib.util.find_spec("torchvision") is not None:
        pytest.skip("torchvision is here")
    owner.model().save_pretrained(tmp_path)  # type: ignore[operator]
    message = rf"'{owner.name}' needs its official processor \(install torchvision\)"
    with pytest.raises(UnsupportedModelError, match=message):
        Preprocessor.from_pretrained(tmp_path)
