"""Other servers of the shipped model: small chunks, other methods, off, and vLLM's own class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from earlytom import Compose, EarlyTom, load_method
from earlytom.errors import ConfigError
from tests.vllm_plugin import models
from tests.vllm_plugin.engine import ask, forget, llava, request, serving
from tests.vllm_plugin.reference import difference, same
from tests.vllm_plugin.test_llava import prompt

pytestmark = pytest.mark.vllm
STAGES = {
    "method": "compose",
    "encoder": {"method": "earlytom", "policy": "official"},
    "tokens": {"method": "visionzip", "retention_ratio": 0.3, "positions": "keep"},
}


def test_prompts_in_small_chunks(shipped: Path, llava_reference: Any, clips: Any) -> None:
    method = Compose(
        EarlyTom(policy="official"), load_method("visionzip", retention_ratio=0.3, positions="keep")
    )
    with serving(shipped, llava(STAGES), max_num_batched_tokens=64) as engine:
        for videos in (1, 3):
            asked = request(prompt(videos), clips[:videos])
            expected = llava_reference.ask(prompt(videos), clips[:videos], method=method)
            same(ask(engine, asked)[0], expected)
            same(ask(engine, asked)[0], expected)  # from the prefix cache
        forget(engine)
        together = ask(engine, *(request(prompt(), [clip]) for clip in clips))
        for clip, got in zip(clips, together, strict=True):
            same(got, llava_reference.ask(prompt(), [clip], method=method))


def test_renumbered_positions(shipped: Path, llava_reference: Any, clips: Any) -> None:
    settings = {"retention_ratio": 0.25, "positions": "renumber", "merge_rest": True}
    with serving(shipped, llava(settings), max_num_batched_tokens=96) as engine:
        (got,) = ask(engine, request(prompt(2), clips[1:]))
    same(got, llava_reference.ask(prompt(2), clips[1:], method=EarlyTom(**settings)))


def test_bfloat16_and_compiled(shipped: Path, llava_reference: Any, clips: Any) -> None:
    changes = {"dtype": "bfloat16", "enforce_eager": False, "max_num_batched_tokens": 512}
    with serving(shipped, llava({"retention_ratio": 0.25}), **changes) as engine:
        (got,) = ask(engine, request(prompt(), clips[:1]))
    expected = llava_reference.ask(prompt(), clips[:1], method=EarlyTom())
    assert got.tokens[0] == expected.tokens[0]
    # offsets of positions reach 784 here, which bfloat16 could not hold
    assert difference(got, expected, least=-3) < 0.05


def test_off_is_vllms_own_model(shipped: Path, clips: Any, tmp_path: Path) -> None:
    asked = request(prompt(), clips[:1])
    with serving(models.stock_names(tmp_path)) as engine:
        (stock,) = ask(engine, asked)
    with serving(shipped, llava({"method": "none"})) as engine:
        (off,) = ask(engine, asked)
        assert off == stock
        assert off.prompt.count(6) == 16 * 49 + 1
        with pytest.raises(ConfigError, match="compression is off"):
            ask(engine, request(prompt(), clips[:1], ratio=0.5))
        # which of vLLM's own cannot take videos of different length together
        assert ask(engine, request(prompt(2), clips[1:]))[0].tokens
    with serving(shipped, llava({"retention_ratio": 0.25})) as engine:
        same(ask(engine, request(prompt(), clips[:1], ratio=1))[0], stock)


@pytest.mark.parametrize(
    ("settings", "changes", "words"),
    [
        ({"method": "tome"}, {}, "reduces the patches"),
        ({"method": "earlytom", "policy": "official"}, {}, "exactly its token budget"),
        ({"retention_ratio": 3}, {}, "retention_ratio"),
        ({"method": "nothing"}, {}, "unknown method"),
        ({"merge_layers": [40]}, {}, "merge_layers"),
        ({}, {"mm_processor_kwargs": {"retention_ratio": 0.5}}, "belongs into hf_overrides"),
    ],
)
def test_what_cannot_be_served_is_refused_before_anything_loads(
    shipped: Path, settings: Any, changes: Any, words: str
) -> None:
    with (
        pytest.raises((ConfigError, ValueError), match=words),
        serving(shipped, llava(settings), **changes),
    ):
        pass
