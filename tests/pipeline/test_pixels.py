"""Frames in chunks, in place and in the wanted dtype equal the plain form bit for bit."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from earlytom.errors import UnsupportedModelError, VideoError
from earlytom.preprocess import FrameConfig, Pixels, PixelWriter, Preprocessor, preprocess_video
from earlytom.preprocess.tokens import tokenise
from earlytom.video import Frame, Video

MODES = {0: "nearest-exact", 2: "bilinear", 3: "bicubic"}


def plain(frames, config, dtype):
    """All frames at once, planes in memory, float32 first: as the official processor does it."""
    x = frames.permute(0, 3, 1, 2).contiguous()
    size = config.output_size(*x.shape[2:])
    if config.do_resize and size != tuple(x.shape[2:]):
        options = {} if config.resample == 0 else {"align_corners": False, "antialias": True}
        x = F.interpolate(x, size=size, mode=MODES[config.resample], **options)
    if config.do_normalize:
        factor = 1 / config.rescale_factor if config.do_rescale else 1.0
        mean, std = (torch.tensor(v) * factor for v in (config.mean, config.std))
        x = (x.float() - mean[:, None, None]) / std[:, None, None]
    elif config.do_rescale:
        x = x * config.rescale_factor
    return x[None].to(dtype) if x.is_floating_point() else x[None]


def noise(t, h, w, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (t, h, w, 3), dtype=torch.uint8, generator=g)


def same(got, expected):
    assert got.dtype == expected.dtype
    assert got.is_contiguous()
    assert torch.equal(got, expected)


@settings(max_examples=150, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 7), st.integers(2, 60), st.integers(2, 60)),
    size=st.tuples(st.integers(2, 60), st.integers(2, 60)) | st.integers(2, 30),
    resample=st.sampled_from([0, 3]),
    steps=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    chunk=st.none() | st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_chunks(shape, size, resample, steps, dtype, chunk, seed):
    names = ("do_resize", "do_rescale", "do_normalize")
    config = FrameConfig(size=size, resample=resample, **dict(zip(names, steps, strict=True)))
    frames = noise(*shape, seed)
    before = frames.clone()
    same(preprocess_video(frames, config, dtype=dtype, chunk=chunk), plain(frames, config, dtype))
    assert torch.equal(frames, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(720, 1280), (360, 640), (384, 384), (97, 1001)])
def test_real_sizes(size, dtype):
    frames, config = noise(3, *size), FrameConfig()
    same(preprocess_video(frames, config, dtype=dtype), plain(frames, config, dtype))


def test_frames_that_lie_otherwise_in_memory():
    config, frames = FrameConfig(size=(20, 30)), noise(4, 50, 40)
    expected = plain(frames, config, torch.float32)
    for other in (
        frames.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
        noise(8, 50, 40)[::2],
        frames.transpose(1, 2).contiguous().transpose(1, 2),
    ):
        same(preprocess_video(other, config), plain(other, config, torch.float32))
    same(preprocess_video(frames[:, :, ::2], config), plain(frames[:, :, ::2], config, torch.float))
    same(preprocess_video(frames, config), expected)


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=6), spare=st.integers(0, 3))
def test_writer_takes_frames_as_they_come(sizes, spare):
    frames, config = noise(sum(sizes), 33, 21), FrameConfig(size=(12, 14))
    writer = PixelWriter(config, len(frames) + spare)
    for part in frames.split(sizes):
        writer.write(part)
    same(writer.pixels(), plain(frames, config, torch.float32))


def test_writer_refuses():
    writer = PixelWriter(None, 2)
    with pytest.raises(VideoError, match="at least one frame"):
        writer.pixels()
    writer.write(noise(2, 4, 4))
    with pytest.raises(VideoError, match="got 3 frames where at most 2"):
        writer.write(noise(1, 4, 4))
    with pytest.raises(VideoError, match="uint8 tensor"):
        writer.write(noise(1, 4, 4).float())


# ---------------------------------------------------------------------- the preprocessor
@pytest.fixture(scope="module")
def own(folder):
    return Preprocessor.from_pretrained(folder, official=False)


def one_by_one(frames, limit=None):
    return (Frame(f, 0.0, limit or len(frames)) for f in frames)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_pixels_instead_of_frames(own, dtype):
    a, b = noise(5, 30, 40, 1), noise(5, 20, 60, 2)
    for frames, question in (
        ([a], "what moves"),
        ([a, b], "which moves first"),
        ([[a, b], [b]], ["what", "which moves first last red"]),
    ):
        clips = [
            [own.pixels(one_by_one(f), dtype) for f in c]
            if isinstance(c, list)
            else own.pixels(one_by_one(c, 9), dtype)
            for c in frames
        ]
        x, y = own(frames, question, dtype=dtype), own(clips, question, dtype=dtype)
        assert set(x) == set(y)
        assert all(torch.equal(x[k], y[k]) for k in x)
    x, y = own(Video.from_frames(a), "what"), own(own.pixels(one_by_one(a)), "what")
    assert all(torch.equal(x[k], y[k]) for k in x)
    with pytest.raises(VideoError, match="same number of frames, got 4, 5"):
        own([a, own.pixels(one_by_one(a[:4]))], "what")
    with pytest.raises(VideoError, match="at least one frame"):
        own.pixels([])


def test_settings_left_out_are_those_of_llava_onevision(own):
    bare, x = Preprocessor(own.tokenizer), noise(3, 20, 30)
    assert torch.equal(bare.pixels(one_by_one(x)).values, preprocess_video(x))


def test_the_official_processor_takes_frames(folder):
    other = Preprocessor.from_pretrained(folder, official=False)
    other.official = object()
    with pytest.raises(UnsupportedModelError, match="all frames at once"):
        other.pixels(one_by_one(noise(2, 4, 4)))
    other.official = other.tokenizer  # knows a chat template, too
    pixels = Pixels(torch.zeros(1, 2, 3, 4, 4))
    with pytest.raises(UnsupportedModelError, match="takes decoded frames"):
        other(pixels, "what")


# ---------------------------------------------------------------------- placeholders
def by_text(tokenizer, prompts, counts, options):
    left = iter(counts)
    texts = [re.sub("<video>", lambda m: m[0] * next(left), p) for p in prompts]
    return tokenizer(texts, return_tensors="pt", **options)


WORDS = st.lists(
    st.sampled_from(["what", "red", " ", "\n", "<video>", "<pad>", "zebra", "<image>"]), max_size=8
).map("".join)


@settings(max_examples=80, deadline=None)
@given(prompts=st.lists(WORDS, min_size=1, max_size=3), data=st.data(), special=st.booleans())
def test_repeated_ids_equal_repeated_text(folder, prompts, data, special):
    from earlytom.pipeline.loading import shipped_model

    prompts = [f"{p} what" for p in prompts]
    places = "".join(prompts).count("<video>")
    counts = data.draw(st.lists(st.integers(0, 40), min_size=places, max_size=places))
    options = {"padding": True, "padding_side": "left", "add_special_tokens": special}
    for source in (folder, shipped_model()):
        tokenizer = _tokenizer(str(source))
        expected = by_text(tokenizer, prompts, counts, options)
        got = tokenise(tokenizer, prompts, "<video>", counts, options)
        assert all(torch.equal(got[k], expected[k]) for k in ("input_ids", "attention_mask"))
        assert got["input_ids"].dtype == torch.int64


@pytest.mark.parametrize("option", ["lstrip", "rstrip", "normalized", "single_word"])
def test_placeholders_that_touch_the_text_are_repeated_as_text(folder, option):
    from tokenizers import AddedToken
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.add_tokens([AddedToken("<clip>", special=True, **{option: True})])
    prompts, options = ["what <clip> red"], {"padding": True, "add_special_tokens": False}
    seen = []

    class Spy:
        added_tokens_decoder, pad_token_id = tokenizer.added_tokens_decoder, tokenizer.pad_token_id

        def __call__(self, texts, **kwargs):
            seen.extend(texts)
            return tokenizer(texts, **kwargs)

    tokenise(Spy(), prompts, "<clip>", [3], options)
    assert seen == ["what <clip><clip><clip> red"]
    seen.clear()
    tokenise(Spy(), ["what <video> red"], "<video>", [3], options)
    assert seen == ["what <video> red"]


def _tokenizer(name, cache={}):  # noqa: B006
    from transformers import AutoTokenizer

    if name not in cache:
        cache[name] = AutoTokenizer.from_pretrained(name)
    return cache[name]
