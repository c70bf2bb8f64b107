"""A random Qwen2.5-VL in vLLM answers as it does in transformers, compressed alike."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from earlytom import Compose, EarlyTom, load_method
from earlytom.integrations.vllm.places import Places
from tests.vllm_plugin.agreement import in_transformers, in_vllm
from tests.vllm_plugin.engine import ask, forget, qwen, request, serving
from tests.vllm_plugin.reference import difference, same

pytestmark = pytest.mark.vllm
VIDEO, IMAGE = (f"<|vision_start|><|{kind}_pad|><|vision_end|>" for kind in ("video", "image"))
GRID = (4, 4)
METHODS = {
    name: load_method(name, retention_ratio=0.3)
    for name in ("earlytom", "vidcom2", "visionzip", "evs", "random")
} | {
    "attention in windows": EarlyTom(
        retention_ratio=0.3, selection="global", merge_layers=(0, 1), fuse="average"
    ),
    "attention in frames": EarlyTom(
        retention_ratio=0.3, selection="decoupled", merge_layers=(1, 2), fuse="average"
    ),
    "last block": EarlyTom(retention_ratio=0.3, merge_layers=(5,), frames=(4,)),
    "embeddings": EarlyTom(retention_ratio=0.3, merge_layers=(-1,), frames=(4,)),
    "paper": Compose(EarlyTom(policy="paper"), load_method("vidcom2", retention_ratio=0.3)),
}


def prompt(videos: int, image: bool = False, text: str = "hello ") -> str:
    return f"<|im_start|>{text}{IMAGE * image}{VIDEO * videos} what happens?<|im_end|>"


ENGINES = {
    "whole": {},
    "chunks": {"max_num_batched_tokens": 64, "mm_device_do_normalize": False},
}


@pytest.fixture(scope="module", params=list(ENGINES))
def engine(qwen_folder: Path, request: Any) -> Iterator[Any]:
    changes = ENGINES[request.param]
    with serving(qwen_folder, qwen({"retention_ratio": 0.25}), **changes) as running:
        yield running


@pytest.mark.parametrize("ratio", [None, 0.1, 0.3, 1])
@pytest.mark.parametrize("videos", [1, 2, 3])
def test_answers_are_those_of_transformers(
    engine: Any, qwen_reference: Any, qwen_videos: Any, videos: int, ratio: float | None
) -> None:
    forget(engine)
    shown = qwen_videos[:videos]
    asked = request(prompt(videos), shown, ratio=ratio)
    method = None if ratio == 1 else EarlyTom(retention_ratio=ratio or 0.25)
    expected = qwen_reference.ask(prompt(videos), shown, method=method)
    first, again = (ask(engine, asked)[0] for _ in range(2))
    same(first, expected)
    same(again, expected)
    assert again.cached > 0
    kept = EarlyTom(retention_ratio=ratio or 0.25)
    frames = [len(v) // 2 for v, _ in shown]
    count = sum(kept.token_budget(t, 16) for t in frames)
    assert first.prompt.count(qwen_reference.video_token) == count


def test_an_image_beside_videos(engine: Any, qwen_reference: Any, qwen_videos: Any) -> None:
    from PIL import Image

    image, shown = Image.fromarray(qwen_videos[1][0][0]), [qwen_videos[0], qwen_videos[2]]
    text = prompt(2, image=True)
    (got,) = ask(engine, request(text, shown, [image]))
    same(got, qwen_reference.ask(text, shown, [image], EarlyTom()))


def test_positions_beyond_256(engine: Any, qwen_reference: Any, qwen_videos: Any) -> None:
    text = prompt(1, text="what was it that we saw? " * 12)
    (got,) = ask(engine, request(text, qwen_videos[:1]))
    assert len(got.prompt) > 300
    same(got, qwen_reference.ask(text, qwen_videos[:1], method=EarlyTom()))


def test_requests_together_are_answered_as_alone(engine: Any, qwen_videos: Any) -> None:
    asked = [request(prompt(1), [v]) for v in qwen_videos] + [request(prompt(3), qwen_videos)]
    forget(engine)
    for one, got in zip(asked, ask(engine, *asked), strict=True):
        forget(engine)
        same(got, ask(engine, one)[0])


def test_positions_matter_here(
    engine: Any, qwen_reference: Any, qwen_videos: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison would notice if the offsets were lost."""
    forget(engine)
    monkeypatch.setattr(Places, "add", lambda self, positions: positions)
    (got,) = ask(engine, request(prompt(1), qwen_videos[:1]))
    forget(engine)
    expected = qwen_reference.ask(prompt(1), qwen_videos[:1], method=EarlyTom())
    assert difference(got, expected) > 0.01


# the other engine wants pixels that are not normalised
@pytest.mark.parametrize("engine", ["chunks"], indirect=True)
@pytest.mark.parametrize("name", sorted(METHODS))
def test_decisions_are_those_of_transformers(
    engine: Any, qwen_reference: Any, qwen_videos: Any, name: str
) -> None:
    method, video = METHODS[name], qwen_videos[0]
    pixels = qwen_reference._video(video)["pixel_values_videos"]
    got = in_vllm(engine, method, pixels, 8, GRID)
    expected = in_transformers(qwen_reference, method, video, 8 * 16)
    assert torch.equal(got.cells, expected.cells)
    torch.testing.assert_close(got.rows, expected.rows, atol=1e-4, rtol=1e-3)
