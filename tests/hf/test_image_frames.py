"""Families that take frames of a video as images: which are frames, what happens to them."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import earlytom
from earlytom.errors import ConfigError, UnsupportedModelError, VideoError
from earlytom.hf.image_frames import AwaitsPrompt
from earlytom.method import Method
from earlytom.methods import Afterimage, LowResolution
from earlytom.models import find_adapter, use_frame_prompts
from earlytom.ops.fresh import changed_patches
from earlytom.stages import PatchState
from tests.families import BOS, FRAMES, IMAGE, PROMPTS, Family, forward, generate
from tests.image_families import IMAGE_FAMILIES, SIDE, TILES, ImageFamily, Tokenizer, words
from tests.matrix import METHODS
from tests.toys import IDENTITY, TOYS, Toy
from tests.toys_patches import ToyPatches, ToyRestored

INTERNVL, SMOLVLM = IMAGE_FAMILIES
owners = pytest.mark.parametrize("owner", IMAGE_FAMILIES, ids=lambda f: f.name)


def rows_of(model: Any, inputs: dict[str, Any]) -> Tensor:
    """Rows ``[images, tokens, dim]`` that the language model gets, NaN where none is to be."""
    seen: list[Tensor] = []
    adapter = find_adapter(model)

    def spy(module: nn.Module, args: Any, kwargs: Any) -> None:
        seen.append(kwargs["inputs_embeds"])

    handle = adapter.language_model.register_forward_pre_hook(spy, with_kwargs=True, prepend=True)
    forward(model, inputs)
    handle.remove()
    return seen[0][inputs["input_ids"] == IMAGE].unflatten(0, (-1, 9))


def prompt(*parts: list[int]) -> Tensor:
    return torch.tensor([[BOS, *[i for part in parts for i in part]]])


def video(owner: ImageFamily, frames: int = 3, first: int = 1) -> list[int]:
    return [i for t in range(first, first + frames) for i in owner.frame(t)]


# ------------------------------------------------------------------ which images are frames
@owners
def test_the_prompt_says_which_images_are_frames(owner: ImageFamily) -> None:
    adapter = find_adapter(owner.model())
    tile = [*words("<img>"), *[IMAGE] * 9, *words("</img>")]
    cases: dict[str, tuple[list[list[int]], list[tuple[int, int]]]] = {
        "image": ([owner.image()], []),
        "single tiles": ([tile, tile, [5, 6], tile], []),
        "video": ([[9], video(owner), [7]], [(0, 3)]),
        "tile, video": ([tile, [9], video(owner)], [(1, 3)]),
        "video, tile, video": ([video(owner), tile, [5], video(owner, 2)], [(0, 3), (4, 2)]),
        "two videos": ([video(owner), [5, 6, 7], video(owner)], [(0, 3), (3, 3)]),
        "one frame": ([video(owner, 1)], [(0, 1)]),
    }
    for name, (parts, videos) in cases.items():
        found = adapter.find_videos(prompt(*parts))  # type: ignore[attr-defined]
        assert found.videos == videos, name
        assert found.tiles == int((prompt(*parts) == IMAGE).sum()) // 9
        assert int(found.visual.sum()) == 9 * sum(n for _, n in videos)


def test_internvl_counts_its_frames() -> None:
    adapter: Any = find_adapter(INTERNVL.model())
    back_to_back = prompt(video(INTERNVL), video(INTERNVL))
    assert adapter.find_videos(back_to_back).videos == [(0, 3), (3, 3)]
    assert adapter.find_videos(prompt(video(INTERNVL, 3, first=2))).videos == []
    jump = prompt(video(INTERNVL, 2), INTERNVL.frame(7))
    assert adapter.find_videos(jump).videos == [(0, 2)]
    interrupted = prompt(video(INTERNVL, 2), [5], INTERNVL.frame(3))
    assert adapter.find_videos(interrupted).videos == [(0, 2)]


class Letters:
    """Tokenizer of one token per letter, and one for image placeholders."""

    def encode(self, text: str, image: str) -> Tensor:
        parts = text.split(image)
        ids = [[1000 + ord(c) for c in part] for part in parts]
        return torch.tensor([[i for part in ids for i in [*part, IMAGE]][:-1]])

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(i - 1000) for i in ids)


def test_prompts_of_the_official_internvl_processor() -> None:
    from transformers.models.internvl.processing_internvl import InternVLProcessor

    image = "<IMG_CONTEXT>"
    own = SimpleNamespace(
        start_image_token="<img>", end_image_token="</img>", image_token=image, image_seq_length=9
    )
    pixels = {"pixel_values_videos": torch.zeros(2, 12, 3, 4, 4)}
    tile = f"<img>{image * 9}</img>"
    model = use_frame_prompts(INTERNVL.model(), Letters())
    if "replace_video_token" in vars(InternVLProcessor):
        clip = InternVLProcessor.replace_video_token(own, pixels, 0)
    else:  # written inside a longer function
        clip = "\n".join(f"Frame{t + 1}: {tile}" for t in range(12))
    text = f"<|im_start|>user\n{clip}\nWhat? {clip}\nImage-1: {tile}\nImage-2: {tile}<|im_end|>"
    found = find_adapter(model).find_videos(Letters().encode(text, image))  # type: ignore[attr-defined]
    assert found.videos == [(0, 12), (12, 12)]
    assert found.tiles == 26


def test_prompts_of_the_official_smolvlm_processor() -> None:
    from transformers.models.smolvlm import processing_smolvlm as official

    image, fake, total = "<image>", "<fake_token_around_image>", "<global-img>"
    words = {
        "image_token": image,
        "fake_token_around_image": fake,
        "global_image_token": total,
    }
    one = official._prompt_single_image(9, **words)
    intro = "You are provided the following series of five frames from a 0:01:05 [H:MM:SS] video.\n"
    clip = intro + "".join(
        official.FRAME_TIMESTAMP_MESSAGE.format(timestamp=f"{t // 4:02d}:{t:02d}") + one
        for t in range(5)
    )
    clip += official.DEFAULT_MEDIA_OUTTRO
    split = official._prompt_split_image(9, 2, 2, **words)
    model = use_frame_prompts(SMOLVLM.model(), Letters())
    text = f"<|im_start|>User: {one}{split}{clip}{clip}What?<end_of_utterance>\n{one}{one}"
    found = find_adapter(model).find_videos(Letters().encode(text, image))  # type: ignore[attr-defined]
    assert found.videos == [(6, 5), (11, 5)]
    assert found.tiles == 18


@owners
def test_frames_per_video_overrules_the_text(owner: ImageFamily) -> None:
    model = use_frame_prompts(owner.model(), frames_per_video=2)
    tile = [*words("<img>"), *[IMAGE] * 9, *words("</img>")]
    adapter: Any = find_adapter(model)
    ids = prompt(tile, tile, tile, [4], tile)
    assert adapter.find_videos(ids).videos == [(0, 2), (2, 2)]
    with pytest.raises(VideoError, match="1 images in a row are left where every 2"):
        adapter.find_videos(prompt(tile, tile, tile))
    use_frame_prompts(model, Tokenizer())
    adapter = find_adapter(model)
    assert adapter.find_videos(ids).videos == []


@owners
def test_without_a_tokenizer_images_stay_images(
    owner: ImageFamily, caplog: pytest.LogCaptureFixture
) -> None:
    model = use_frame_prompts(owner.model())
    inputs = owner.inputs(PROMPTS["one_video"])
    plain = forward(model, inputs).logits
    with caplog.at_level(logging.WARNING, "earlytom"), TOYS["merge_select"](model):
        assert torch.equal(forward(model, inputs).logits, plain)
        forward(model, inputs)
    assert [r.getMessage() for r in caplog.records if "use_frame_prompts" in r.getMessage()] != []
    assert len(caplog.records) == 1


def test_bad_rules() -> None:
    model = INTERNVL.model()
    with pytest.raises(ConfigError, match="frames_per_video"):
        use_frame_prompts(model, frames_per_video=0)
    with pytest.raises(ConfigError, match="expected a tokenizer or processor, got str"):
        use_frame_prompts(model, "qwen")
    with pytest.raises(UnsupportedModelError, match="takes videos apart from images"):
        use_frame_prompts(Family("llava_onevision").model(), Tokenizer())


# ------------------------------------------------------------------ what happens to them
@owners
def test_images_are_untouched_beside_a_video(owner: ImageFamily) -> None:
    model, inputs = owner.model(), owner.inputs(PROMPTS["image_and_video"])
    plain = rows_of(model, inputs)
    with Toy(retention_ratio=1.0, merge_layers=(1, 3), positions="keep")(model):
        rows = rows_of(model, inputs)
        report = earlytom.last_report(model)
    assert report is not None
    torch.testing.assert_close(rows[:TILES], plain[:TILES], atol=1e-6, rtol=1e-5)
    for t in range(FRAMES):
        if t in report.videos[0].first:
            torch.testing.assert_close(rows[TILES + t], plain[TILES + t], atol=1e-6, rtol=1e-5)
        else:
            assert rows[TILES + t].isnan().all()


@owners
@pytest.mark.parametrize("points", [(5,), (-1, 2)])
def test_first_and_last_points(owner: ImageFamily, points: tuple[int, ...]) -> None:
    model, inputs = owner.model(), owner.inputs(PROMPTS["two_videos"])
    plain = rows_of(model, inputs)
    with Toy(retention_ratio=1.0, merge_layers=points, positions="keep")(model):
        rows = rows_of(model, inputs)
        report = earlytom.last_report(model)
    assert report is not None
    for v, one in enumerate(report.videos):
        there = [v * FRAMES + t for t in one.first]
        assert len(there) == FRAMES // 2 ** len(points)
        torch.testing.assert_close(rows[there], plain[there], atol=1e-6, rtol=1e-5)
    assert int(rows.isnan().all(2).all(1).sum()) == 2 * FRAMES - 2 * len(report.videos[0].first)


def entry_states(model: Any, method: Method, inputs: dict[str, Any]) -> Tensor:
    """Patches ``[frames, n, dim]`` (CLS cut off) that the norm behind the encoder gets."""
    adapter, seen = find_adapter(model), []
    with method(model):
        handle = adapter.entry.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        forward(model, inputs)
        handle.remove()
    return seen[0][:, adapter.class_tokens :]


def encode(model: Any, method: Method, pixels: Tensor) -> tuple[Tensor, PatchState]:
    """Layers in plain words; patches are dropped or averaged between attention and MLP."""
    adapter = find_adapter(model)
    first, tower = adapter.class_tokens, adapter.tower
    wanted = -(-method.token_budget(FRAMES, 9) // FRAMES)
    state = PatchState.start(FRAMES, (6, 6), 6, wanted)
    patches = torch.ones(len(pixels), 6, 6, dtype=torch.bool)
    with torch.no_grad():
        x = tower.embeddings(pixels) if first else tower.embeddings(pixels, patches)
        for i, layer in enumerate(adapter.layers):
            attn: Any = adapter.attention(layer)
            norms = [m for n, m in layer.named_children() if "norm" in n]
            y = norms[0](x)
            q, k = attn.q_proj(y), attn.k_proj(y)
            if first:
                q, k = attn.q_norm(q), attn.k_norm(k)
            q, k, v = (z.unflatten(2, (4, -1)).transpose(1, 2) for z in (q, k, attn.v_proj(y)))
            state.query, state.key = q[:, :, first:], k[:, :, first:]
            logits = q @ k.transpose(2, 3) * attn.scale
            if method.proportional_attention():
                logits = logits + state.size.log()[:, None, None]
            mixed = (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)
            out = attn.projection_layer(mixed) if first else attn.out_proj(mixed)
            x = x + (layer.lambda_1 * out if first else out)
            if i in method.reduce_layers(6):
                state.layer, state.point = i, method.reduce_layers(6).index(i)
                done = method.reduce_patches(x[:, first:], state)
                assert done is not None
                state.apply(done)
                x = torch.cat([x[:, :first], done.hidden], 1)
            out = layer.mlp(norms[1](x))
            x = x + (layer.lambda_2 * out if first else out)
    return x[:, first:], state


@owners
@pytest.mark.parametrize("proportional", [False, True])
def test_reduced_patches_come_back_as_a_grid(owner: ImageFamily, proportional: bool) -> None:
    model, inputs = owner.model(), owner.inputs(PROMPTS["one_video"])
    method = ToyRestored(mode="keys", layers=(1, 4), proportional=proportional)
    if proportional and owner is INTERNVL:
        with pytest.raises(UnsupportedModelError, match="InternVLVisionLayer does not"):
            earlytom.compress(model, method)
        return
    left, state = encode(model, method, inputs["pixel_values"].view(-1, 3, SIDE, SIDE))
    expected = left.gather(1, state.owner[..., None].expand(-1, -1, left.shape[2]))
    seen = entry_states(model, method, inputs)
    torch.testing.assert_close(seen, expected, atol=2e-5, rtol=1e-4)
    assert left.shape[1] < 36


@owners
def test_reuse_equals_a_full_encoder_whose_stale_patches_copy(owner: ImageFamily) -> None:
    model, inputs = owner.model(), owner.inputs(PROMPTS["two_videos"])
    method = Afterimage(retention_ratio=1.0, encoder_budget=0.6, layer=2)
    adapter, sources = find_adapter(model), []
    first = adapter.class_tokens

    def copy_stale(x: Tensor) -> Tensor:
        videos = zip(x.split(FRAMES), sources, strict=True)
        return torch.cat([v[s, torch.arange(v.shape[1])] for v, s in videos])

    def before(module: nn.Module, args: Any, kwargs: Any) -> Any:
        for x in args[0].split(FRAMES):
            fresh = changed_patches(x[:, first:], method.fresh_count(FRAMES, 36, 6))
            fresh = nn.functional.pad(fresh, (first, 0), value=True)
            frame = torch.arange(FRAMES)[:, None].expand(fresh.shape)
            sources.append(torch.where(fresh, frame, -1).cummax(0).values)
        return (copy_stale(args[0]), *args[1:]), kwargs

    handles = [adapter.layers[2].register_forward_pre_hook(before, with_kwargs=True)]
    handles += [
        part.register_forward_hook(lambda m, a, out: copy_stale(out)) for part in adapter.layers[2:]
    ]
    expected = rows_of(model, inputs)
    for handle in handles:
        handle.remove()
    plain = rows_of(model, inputs)
    with method(model):
        found = rows_of(model, inputs)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    assert not torch.allclose(found, plain, atol=1e-3)


def test_internvl_at_a_lower_resolution() -> None:
    model, inputs = INTERNVL.model(), INTERNVL.inputs(PROMPTS["one_video"])
    method = LowResolution(retention_ratio=0.5)  # 2 x 2 of 3 x 3
    small = nn.functional.interpolate(
        inputs["pixel_values"], (56, 56), mode="bilinear", antialias=True
    )
    with torch.no_grad():
        expected = model.model.get_image_features(small).pooler_output  # type: ignore[operator,union-attr]
    with method(model):
        rows = rows_of(model, inputs)
    found = rows[~rows.isnan().any(2)].view(expected.shape)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@owners
def test_methods_refused_are_those_that_leave_single_tokens(owner: ImageFamily) -> None:
    model = owner.model()

    def is_refused(method: Method) -> bool:
        try:
            earlytom.compress(model, method)
        except UnsupportedModelError:
            return True
        return False

    refused = {n for n, m in METHODS.items() if is_refused(m)}
    earlytom.restore(model)
    assert refused == {n for n, m in METHODS.items() if owner.refuses(m)}
    assert "tome" in refused
    assert "compose-tome-holitom" in refused or owner is SMOLVLM
    with pytest.raises(UnsupportedModelError, match="joins blocks of patches into a token"):
        earlytom.compress(model, ToyPatches(retention_ratio=0.5))


# ------------------------------------------------------------------ calls
@owners
def test_beams_and_samples_encode_a_video_once(owner: ImageFamily) -> None:
    model = owner.model()
    if not hasattr(model, "_prepare_multimodal_encoder_kwargs_for_generation"):
        pytest.skip("transformers before 5.18 mixes up the images of beams")
    inputs = owner.inputs(PROMPTS["batch_mixed"])
    encoded: list[int] = []
    tower: Any = find_adapter(model).layers[0]
    tower.register_forward_pre_hook(lambda module, args: encoded.append(len(args[0])))
    beams: dict[str, Any] = {"num_beams": 3, "num_return_sequences": 2}
    plain = generate(model, inputs, **beams)
    alone = sum(encoded)
    encoded.clear()
    with IDENTITY(model):
        assert torch.equal(generate(model, inputs, **beams), plain)
    assert sum(encoded) == alone == 3 * FRAMES + TILES
    greedy: dict[str, Any] = {"output_logits": True, "return_dict_in_generate": True}
    with METHODS["afterimage"](model):  # its tokens have weights, which find their columns again
        one = generate(model, inputs, **greedy).logits[0]
        many = generate(model, inputs, do_sample=True, num_return_sequences=2, **greedy).logits[0]
        report = earlytom.last_report(model)
    torch.testing.assert_close(many, one.repeat_interleave(2, 0), atol=2e-5, rtol=1e-4)
    assert report is not None
    assert len(report.videos) == 3


@owners
@pytest.mark.parametrize("name", ["earlytom-budget", "afterimage", "framefusion", "dycoke-decode"])
def test_a_second_turn_with_another_video(owner: ImageFamily, name: str) -> None:
    model: Any = owner.model()
    inputs = owner.inputs([["t3", "v", "t4", "v", "t2"]])
    ids, pixels = inputs["input_ids"], inputs["pixel_values"]
    cut = 1 + 3 + len(video(owner, FRAMES)) + 4
    first, second = pixels.split(FRAMES, 0 if owner is INTERNVL else 1)
    with METHODS[name](model), torch.no_grad():
        out = model(input_ids=ids[:, :cut], pixel_values=first, use_cache=True)
        cache = out.past_key_values
        for token in (5, 6):
            out = model(input_ids=torch.tensor([[token]]), past_key_values=cache)
        out = model(input_ids=ids[:, cut:], pixel_values=second, past_key_values=cache)
        report = earlytom.last_report(model)
        assert out.logits.isfinite().all()
        out = model(input_ids=torch.tensor([[7]]), past_key_values=cache)
        assert out.logits.isfinite().all()
    assert cache.get_seq_length() == ids.shape[1] + 3
    assert report is not None
    assert len(report.videos) == 1


@owners
def test_features_without_a_prompt_are_those_of_the_model(owner: ImageFamily) -> None:
    model: Any = owner.model()
    pixels = owner.inputs(PROMPTS["one_video"])["pixel_values"]
    with torch.no_grad():
        plain = model.get_image_features(pixels).pooler_output
        with TOYS["merge"](model):
            found = model.get_image_features(pixels).pooler_output
            ahead = model.get_image_features(pixels, return_dict=True)
    for a, b in zip(plain, found, strict=True):
        assert torch.equal(a, b)
    assert isinstance(ahead, AwaitsPrompt)


@owners
def test_chunked_prefill_is_refused(owner: ImageFamily) -> None:
    model = owner.model()
    if not hasattr(model, "_prepare_multimodal_encoder_kwargs_for_generation"):
        pytest.skip("transformers before 5.18 does not encode ahead")
    inputs = owner.inputs(PROMPTS["one_video"])
    with TOYS["merge"](model), pytest.raises(UnsupportedModelError, match="chunked prefill"):
        generate(model, inputs, prefill_chunk_size=40)


@owners
def test_missing_images_are_named(owner: ImageFamily) -> None:
    model, inputs = owner.model(), owner.inputs(PROMPTS["one_video"])
    pixels = inputs["pixel_values"]
    inputs["pixel_values"] = pixels[:5] if owner is INTERNVL else pixels[:, :5]
    with TOYS["merge"](model), pytest.raises(VideoError, match=r"images"):
        forward(model, inputs)


def test_layouts_that_are_not_supported() -> None:
    model: Any = INTERNVL.model()
    inputs = INTERNVL.inputs(PROMPTS["one_video"])
    with TOYS["merge"](model), pytest.raises(UnsupportedModelError, match="allow -1"):
        forward(model, inputs, vision_feature_layer=-2)
    model.model.config.vision_feature_layer = -2
    with pytest.raises(UnsupportedModelError, match="vision_feature_layer=-2"):
        find_adapter(model)


def test_smolvlm_frames_have_no_padding() -> None:
    model, inputs = SMOLVLM.model(), SMOLVLM.inputs(PROMPTS["one_video"])
    shape = *inputs["pixel_values"].shape[:2], SIDE, SIDE
    inputs["pixel_attention_mask"] = torch.ones(shape, dtype=torch.int64)
    with TOYS["merge"](model):
        whole = forward(model, inputs).logits
        del inputs["pixel_attention_mask"]
        assert torch.equal(forward(model, inputs).logits, whole)
        mask = torch.ones(shape, dtype=torch.int64)
        mask[:, :, 50:] = 0
        with pytest.raises(UnsupportedModelError, match="frames with padding"):
            forward(model, {**inputs, "pixel_attention_mask": mask})
