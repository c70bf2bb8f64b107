"""Tables of ``docs/serving.md``: capacity by arithmetic, load as it was measured."""

from __future__ import annotations

import json
from typing import Any

import torch

from earlytom import EarlyTom
from earlytom.bench.speed.architectures import architecture, build
from earlytom.bench.table import markdown_table
from earlytom.integrations.vllm.families import token_grid
from earlytom.integrations.vllm.item import VideoItem

RATIOS = (1.0, 0.25, 0.1)
PICTURES, WIDTH, HEIGHT = {"llava-onevision-7b": 32, "qwen2.5-vl-7b": 64}, 640, 360
OTHER = 128  # tokens of a request that are not visual: template, question, answer
BYTES = 2  # of a number in bfloat16
GPU, SHARE, RESERVE = 80e9, 0.9, 4e9  # memory, what vLLM may have, activations and buffers


def capacity() -> str:
    """Return tokens and memory of a request, and how many fit, per model and ratio."""
    rows = []
    for name, pictures in PICTURES.items():
        with torch.device("meta"):
            model = build(architecture(name), torch.device("meta"), torch.bfloat16, None)
        weights = BYTES * sum(p.numel() for p in model.parameters())
        free = GPU * SHARE - RESERVE - weights
        for ratio in RATIOS:
            tokens = visual_tokens(model.config, pictures, ratio)
            memory = (tokens + OTHER) * kv_bytes(model.config.get_text_config())
            shown = f"{pictures} frames, {name}"
            kept = "off" if ratio == 1 else f"{100 * ratio:g} %"
            rows.append(
                [shown, kept, f"{tokens}", f"{memory / 1e6:.0f} MB", f"{free // memory:.0f}"]
            )
    head = ["request", "tokens kept", "visual tokens", "KV memory", "requests in 80 GB"]
    return "\n".join(markdown_table(head, rows)) + "\n"


def visual_tokens(config: Any, pictures: int, ratio: float) -> int:
    """Return the visual tokens of a video of 640 x 360, as the plugin counts them."""
    if config.model_type == "llava_onevision":
        layers, grid, frames = config.vision_config.num_hidden_layers, token_grid(config), pictures
    else:
        vision = config.vision_config
        cell = vision.patch_size * vision.spatial_merge_size
        layers, frames = vision.depth, pictures // vision.temporal_patch_size
        grid = (round(HEIGHT / cell), round(WIDTH / cell))
    method = None if ratio == 1 else EarlyTom(retention_ratio=ratio)
    return VideoItem.plan(method, None, frames, grid, layers).tokens


def kv_bytes(text: Any) -> int:
    """Return the bytes that a token takes in the KV cache of all layers."""
    heads = text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    return 2 * BYTES * int(text.num_hidden_layers) * int(text.num_key_value_heads) * width


def load() -> str:
    """Return throughput and times to the first token under load, off and on."""
    from tests.docs.tables import RESULTS

    data = json.loads((RESULTS / "serving.json").read_text())
    cells = {(c["server"], c["concurrency"]): c for c in data["cells"]}
    rows = []
    for found in data["ratios"]:
        level = found["concurrency"]
        off, on = cells["off", level], cells["on", level]
        row = [f"{level}", f"{off['requests']} + {on['requests']}"]
        row += [f"{off['errors'] + on['errors']}"]
        row += [f"{off['throughput_median']:.2f} -> {on['throughput_median']:.2f}"]
        row += [f"{found['throughput']:.2f}x"]
        for key in ("ttft_p50", "ttft_p95"):
            row += [f"{off[key]:.2f} -> {on[key]:.2f}"]
        row += [f"{100 * off['accuracy']:.1f} -> {100 * on['accuracy']:.1f} %"]
        rows.append(row)
    head = ["clients", "requests", "errors", "requests/s", "change", "first token, median (s)"]
    return "\n".join(markdown_table([*head, "95 % within (s)", "right"], rows)) + "\n"
