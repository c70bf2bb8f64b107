"""The shipped model in vLLM answers as it does in transformers, compressed alike."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from earlytom import Compose, EarlyTom, load_method
from earlytom.errors import BudgetError, ConfigError, VideoError
from earlytom.integrations.vllm import metrics
from earlytom.integrations.vllm.settings import check_servable
from earlytom.registry import list_methods
from tests.toys import MergesAll
from tests.vllm_plugin.agreement import in_transformers, in_vllm
from tests.vllm_plugin.engine import ask, forget, llava, request, serving
from tests.vllm_plugin.reference import same

pytestmark = pytest.mark.vllm
QUESTION = " what color is the square? <assistant>"
SIZE = 49
METHODS = {
    name: load_method(name, retention_ratio=0.2)
    for name in (
        "dycoke",
        "earlytom",
        "evs",
        "fastvid",
        "holitom",
        "prumerge",
        "prunevid",
        "random",
        "uniform-spatial",
        "vidcom2",
        "visionzip",
    )
} | {
    "attention": EarlyTom(retention_ratio=0.2, selection="global"),
    "decoupled": EarlyTom(retention_ratio=0.2, selection="decoupled", fuse="average"),
    "merged rest": EarlyTom(retention_ratio=0.2, merge_rest=True),
    "embeddings": EarlyTom(retention_ratio=0.2, merge_layers=(-1, 4)),
    "respace": EarlyTom(retention_ratio=0.2, positions="respace"),
    "reuse": load_method("afterimage", retention_ratio=0.2, weight_power=0),
    "official": Compose(EarlyTom(policy="official"), load_method("visionzip", retention_ratio=0.2)),
    "paper": Compose(
        EarlyTom(policy="paper", tau=0.2), load_method("vidcom2", retention_ratio=0.2)
    ),
}


def prompt(videos: int = 1, image: bool = False) -> str:
    return "<user>" + " <image>" * image + " <video>" * videos + QUESTION


@pytest.fixture(scope="module")
def engine(shipped: Any) -> Iterator[Any]:
    with serving(shipped, llava({"method": "earlytom", "retention_ratio": 0.25})) as running:
        yield running


@pytest.mark.parametrize("ratio", [None, 0.1, 0.3, 1])
@pytest.mark.parametrize("videos", [1, 2, 3])
def test_answers_are_those_of_transformers(
    engine: Any, llava_reference: Any, clips: Any, videos: int, ratio: float | None
) -> None:
    forget(engine)
    shown = clips[:videos]
    (got,) = ask(engine, request(prompt(videos), shown, ratio=ratio))
    method = None if ratio == 1 else EarlyTom(retention_ratio=ratio or 0.25)
    same(got, llava_reference.ask(prompt(videos), shown, method=method))
    kept = EarlyTom(retention_ratio=ratio or 0.25)
    assert got.prompt.count(6) == sum(kept.token_budget(len(v), SIZE) + 1 for v in shown)


def test_a_prefix_from_the_cache_gives_the_same_answer(engine: Any, clips: Any) -> None:
    forget(engine)
    first, second = (ask(engine, request(prompt(), clips[:1]))[0] for _ in range(2))
    assert first.cached == 0
    assert second.cached > 150
    same(second, first)
    other = ask(engine, request(prompt(2), clips[:2]))[0]
    assert other.cached > 150  # the first video of it
    forget(engine)
    same(other, ask(engine, request(prompt(2), clips[:2]))[0])


def test_ratios_do_not_share_a_cache(engine: Any, clips: Any) -> None:
    forget(engine)
    answers = {r: ask(engine, request(prompt(), clips[:1], ratio=r))[0] for r in (0.3, 0.1, 1)}
    for ratio, answer in answers.items():
        forget(engine)
        same(answer, ask(engine, request(prompt(), clips[:1], ratio=ratio))[0])


def test_an_image_beside_videos_of_different_length(
    engine: Any, llava_reference: Any, clips: Any
) -> None:
    from PIL import Image

    image = Image.fromarray(clips[1][0])
    shown = [clips[0], clips[2]]
    (got,) = ask(engine, request(prompt(2, image=True), shown, [image]))
    same(got, llava_reference.ask(prompt(2, image=True), shown, [image], EarlyTom()))


def test_images_alone_are_as_ever(engine: Any, llava_reference: Any, clips: Any) -> None:
    from PIL import Image

    image = Image.fromarray(clips[1][0])
    (got,) = ask(engine, request(prompt(0, image=True), images=[image]))
    same(got, llava_reference.ask(prompt(0, image=True), (), [image]))


def test_requests_together_are_answered_as_alone(engine: Any, clips: Any) -> None:
    asked = [
        request(prompt(), clips[:1]),
        request(prompt(2), clips[1:], ratio=0.1),
        request("<user>" + QUESTION),
        request(prompt(), clips[2:], ratio=1),
        request(prompt(), clips[1:2]),
    ]
    forget(engine)
    together = ask(engine, *asked)
    for one, got in zip(asked, together, strict=True):
        forget(engine)
        same(got, ask(engine, one)[0])


# ---------------------------------------------------------------------------- what goes wrong
@pytest.mark.parametrize("ratio", [0, -0.5, 1.5, "much", float("nan"), True])
def test_a_bad_ratio_is_refused_and_nothing_else_happens(
    engine: Any, clips: Any, ratio: Any
) -> None:
    with pytest.raises(ConfigError, match="retention_ratio must be a number in"):
        ask(engine, request(prompt(), clips[:1], ratio=ratio))
    assert ask(engine, request(prompt(), clips[:1]))[0].tokens


def test_videos_that_would_leave_the_position_table_are_refused(
    engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from earlytom.integrations.vllm import processor

    monkeypatch.setattr(processor, "table_length", lambda text: 2600)
    long = torch.zeros(32, 112, 112, 3, dtype=torch.uint8).numpy()
    with pytest.raises(BudgetError, match="send fewer frames"):
        ask(engine, request(prompt(), [long]))


@pytest.mark.parametrize("stage", ["select_tokens", "merge_frames", "finish_frames"])
@pytest.mark.parametrize("error", [VideoError("not finite"), ZeroDivisionError("a bug")])
def test_a_method_that_fails_takes_no_request_down(
    engine: Any,
    clips: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    stage: str,
    error: Exception,
) -> None:
    def fail(*_: Any) -> None:
        raise error

    forget(engine)
    monkeypatch.setattr(EarlyTom, stage, fail)
    before = metrics.totals()
    (got,) = ask(engine, request(prompt(), clips[:1]))
    assert got.prompt.count(6) == 4 * SIZE + 1
    assert metrics.totals()["failed_videos"] == before["failed_videos"] + 1
    assert "keeps evenly spread tokens" in caplog.text
    assert str(error) in caplog.text
    forget(engine)


@pytest.mark.parametrize("shift", [-1, 1])
def test_a_wrong_count_never_reaches_the_language_model(
    engine: Any, clips: Any, monkeypatch: pytest.MonkeyPatch, shift: int
) -> None:
    right = EarlyTom.token_budget
    forget(engine)
    # the method counts otherwise than it announced, in the worker only
    monkeypatch.setattr(
        EarlyTom, "select_tokens", _with_budget(EarlyTom.select_tokens, right, shift)
    )
    before = metrics.totals()["failed_videos"]
    (got,) = ask(engine, request(prompt(), clips[:1]))
    assert metrics.totals()["failed_videos"] == before + 1
    assert got.tokens
    forget(engine)


def _with_budget(select: Any, right: Any, shift: int) -> Any:
    def changed(self: EarlyTom, video: Any) -> Any:
        EarlyTom.token_budget = lambda m, t, s: right(m, t, s) + shift  # type: ignore[method-assign]
        try:
            return select(self, video)
        finally:
            EarlyTom.token_budget = right  # type: ignore[method-assign]

    return changed


# ---------------------------------------------------------------------------- decisions
@pytest.mark.parametrize("name", sorted(METHODS))
def test_decisions_are_those_of_transformers(
    engine: Any, llava_reference: Any, clips: Any, name: str
) -> None:
    method, video = METHODS[name], clips[0]
    pixels = llava_reference.processor.video_processor(video, return_tensors="pt")
    got = in_vllm(engine, method, pixels["pixel_values_videos"][0], len(video), (7, 7))
    expected = in_transformers(llava_reference, method, video, len(video) * SIZE)
    assert torch.equal(got.cells, expected.cells)
    torch.testing.assert_close(got.rows, expected.rows, atol=2e-5, rtol=2e-4)


def test_an_adaptive_encoder_leaves_frames_enough_for_the_tokens(
    engine: Any, llava_reference: Any, clips: Any
) -> None:
    method = Compose(MergesAll(), load_method("vidcom2", retention_ratio=0.5))
    pixels = llava_reference.processor.video_processor(clips[0], return_tensors="pt")
    got = in_vllm(engine, method, pixels["pixel_values_videos"][0], 16, (7, 7))
    expected = in_transformers(llava_reference, method, clips[0], 16 * SIZE)
    assert len(got.rows) == 8 * SIZE
    assert torch.equal(got.cells, expected.cells)


# ---------------------------------------------------------------------------- counters
def test_counters(engine: Any, clips: Any) -> None:
    forget(engine)
    before = metrics.totals()
    ask(engine, request(prompt(2), clips[1:], ratio=0.1))
    now = {k: v - before[k] for k, v in metrics.totals().items()}
    assert now.pop("encode_seconds") > 0
    kept = [EarlyTom(retention_ratio=0.1).token_budget(t, SIZE) for t in (16, 8)]
    layers = [EarlyTom(retention_ratio=0.1).frame_counts(t, SIZE, 12)[-1] for t in (16, 8)]
    assert now == {
        "videos": 2,
        "visual_tokens_before": 24 * SIZE,
        "visual_tokens_after": sum(kept),
        "frames_before": 24,
        "frames_after": sum(layers),
        "failed_videos": 0,
    }
    ask(engine, request(prompt(2), clips[1:], ratio=1))  # nothing is compressed
    assert metrics.totals()["videos"] == before["videos"] + 2


def test_every_method_that_can_be_served_is_compared_here() -> None:
    for name in set(list_methods()) - {m.name for m in METHODS.values()}:
        with pytest.raises(ConfigError, match="cannot be served"):
            check_servable(load_method(name), 12, 6, (7, 7))
