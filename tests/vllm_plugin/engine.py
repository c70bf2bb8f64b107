"""vLLM in this process, and what it answers."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from earlytom.integrations.vllm import LLAVA_ONEVISION, QWEN2_5_VL

SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",  # several whole videos are longer than the small model's
    "OMP_NUM_THREADS": "1",
}
TOKENS = 6  # of every answer


@dataclass
class Running:
    """Holds the only reference to an engine."""

    llm: Any


@dataclass(frozen=True)
class Answer:
    """What one request got."""

    tokens: tuple[int, ...]
    logprobs: tuple[dict[int, float], ...]
    prompt: tuple[int, ...]
    cached: int


def overrides(architecture: str, earlytom: dict[str, Any] | None) -> dict[str, Any]:
    found: dict[str, Any] = {"architectures": [architecture]}
    if earlytom is not None:
        found["earlytom"] = earlytom
    return found


def llava(earlytom: dict[str, Any] | None = None) -> dict[str, Any]:
    return overrides(LLAVA_ONEVISION, earlytom)


def qwen(earlytom: dict[str, Any] | None = None) -> dict[str, Any]:
    return overrides(QWEN2_5_VL, earlytom)


@contextlib.contextmanager
def serving(
    model: Path, hf_overrides: dict[str, Any] | None = None, **changes: Any
) -> Iterator[Running]:
    """Start vLLM in this process, and take it down."""
    os.environ.update(SETTINGS)
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    settings = {
        "dtype": "float32",
        "max_model_len": 2560,
        "max_num_batched_tokens": 2560,
        "max_num_seqs": 8,
        "enforce_eager": True,
        "kv_cache_memory_bytes": 96 << 20,
        "block_size": 32,
        "limit_mm_per_prompt": {"image": 1, "video": 3},
        "seed": 0,
        **changes,
    }
    if hf_overrides is not None:
        settings["hf_overrides"] = hf_overrides
    running = Running(LLM(model=str(model), **settings))
    try:
        yield running
    finally:
        running.llm = None  # before the next one starts: it takes down what all have in common
        cleanup_dist_env_and_memory()


def request(
    prompt: str | list[int],
    videos: list[Any] | None = None,
    images: list[Any] | None = None,
    ratio: float | None = None,
) -> dict[str, Any]:
    """Build one request."""
    data = {"video": videos, "image": images}
    key = "prompt" if isinstance(prompt, str) else "prompt_token_ids"
    found: dict[str, Any] = {key: prompt, "multi_modal_data": {k: v for k, v in data.items() if v}}
    if ratio is not None:
        found["mm_processor_kwargs"] = {"retention_ratio": ratio}
    return found


def ask(engine: Running, *requests: dict[str, Any], tokens: int = TOKENS) -> list[Answer]:
    """Answer requests together, greedily."""
    from vllm import SamplingParams

    sampling = SamplingParams(max_tokens=tokens, temperature=0, logprobs=5, ignore_eos=True)
    answers = []
    for done in engine.llm.generate(list(requests), sampling, use_tqdm=False):
        output = done.outputs[0]
        seen = tuple({k: v.logprob for k, v in step.items()} for step in output.logprobs)
        prompt = tuple(done.prompt_token_ids)
        answers.append(Answer(tuple(output.token_ids), seen, prompt, done.num_cached_tokens or 0))
    return answers


def forget(engine: Running) -> None:
    """Empty the prefix cache and what was encoded."""
    engine.llm.reset_prefix_cache()
    engine.llm.reset_mm_cache()
    engine.llm.llm_engine.reset_encoder_cache()


def metadata(frames: int, seconds: float = 0.5) -> dict[str, Any]:
    """Say when the frames of a video were taken."""
    return {
        "fps": 1 / seconds,
        "duration": frames * seconds,
        "total_num_frames": frames,
        "frames_indices": list(range(frames)),
        "video_backend": "opencv",
        "do_sample_frames": False,
    }


def noise(frames: int, seed: int = 0, side: int = 112) -> np.ndarray:
    """A video without content, in which neighbouring frames are alike."""
    rng = np.random.default_rng(seed)
    steps = rng.normal(0, 24, (frames, side, side, 3)).cumsum(0) + 128
    return steps.clip(0, 255).astype(np.uint8)
