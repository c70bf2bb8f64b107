"""Tiny random models, one builder per family, and prompts for them (shared by the matrix)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from earlytom.method import Method
from earlytom.models import use_llava_video_layout

PAD, BOS, EOS, IMAGE, VIDEO = 0, 1, 127, 101, 102
SPECIAL = [PAD, BOS, IMAGE, VIDEO, EOS]
FRAMES = 8


@dataclass(frozen=True)
class Family:
    """One family of the matrix: how to build a tiny model and inputs for it."""

    name: str
    frames: int = FRAMES
    tokens_per_frame: int = 9

    newlines_per_video: int = 1
    core: bool = True  # False: takes other inputs than LLaVA-OneVision
    whole_matrix: bool = False  # False: only some methods run on it in the default tier
    ties: tuple[str, ...] = ()  # methods whose decisions here hang on rounding

    def model(self, dtype: torch.dtype = torch.float32, attn: str = "sdpa") -> nn.Module:
        model = build_llava_onevision(dtype, attn)
        if self.name == "llava_video":
            use_llava_video_layout(model)
        return model

    def inputs(self, prompts: Sequence[Sequence[str]], seed: int = 1, **kw: Any) -> dict[str, Any]:
        width = self.frames * self.tokens_per_frame + self.newlines_per_video
        return llava_inputs(prompts, seed=seed, video_tokens=width, **kw)

    def refuses(self, method: Method) -> bool:
        """Whether the layout of the model rules a method out."""
        return False

    def videos(self, inputs: dict[str, Any]) -> int:
        """Videos among ``inputs``."""
        return len(inputs["pixel_values_videos"])

    def longer(self, inputs: dict[str, Any], ids: torch.Tensor) -> dict[str, Any]:
        """``inputs`` with the prompts ``ids``, which go on behind those of ``inputs``."""
        more = torch.ones(len(ids), ids.shape[1] - inputs["input_ids"].shape[1], dtype=torch.long)
        mask = torch.cat([inputs["attention_mask"], more], 1)
        return {**inputs, "input_ids": ids, "attention_mask": mask}

    def row_alone(self, inputs: dict[str, Any], row: int, videos: list[int]) -> dict[str, Any]:
        """Inputs of one row of a batch."""
        return row_alone(inputs, row, videos)


FAMILIES = [
    Family("llava_onevision", whole_matrix=True),
    Family("llava_video", tokens_per_frame=4, newlines_per_video=FRAMES * 2),
]


def randomise(model: nn.Module) -> None:
    """Fill with seeded noise large enough that every layer matters."""
    g = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=g)
            if p.dim() == 2:
                p.copy_((noise * 0.6 / p.shape[-1] ** 0.5).to(p.dtype))
            elif p.dim() > 2 or "norm" not in name:
                p.copy_((noise * 0.05).to(p.dtype))


TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 4096,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}  # of every language model here


def build(config: Any, dtype: torch.dtype, attn: str) -> nn.Module:
    """Return a model of ``config`` with seeded weights."""
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config, attn_implementation=attn)
    model = model.to(dtype).eval()
    randomise(model)
    return model


def llava_config() -> Any:
    from transformers import LlavaOnevisionConfig

    return LlavaOnevisionConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "image_size": 70,
            "patch_size": 14,
            "vision_use_head": False,
        },
        text_config={"model_type": "qwen2", **TEXT},
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=[[70, 70]],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )


def build_llava_onevision(dtype: torch.dtype = torch.float32, attn: str = "sdpa") -> nn.Module:
    return build(llava_config(), dtype, attn)


def smooth_video(frames: int, side: int, generator: torch.Generator) -> torch.Tensor:
    """Video-like pixels: two scenes, each a drifting picture plus a little noise."""
    cut = frames // 2 + 1
    scene = torch.randn(2, 3, side, side, generator=generator)
    drift = torch.randn(2, 3, side, side, generator=generator) * 0.15
    out = [
        scene[int(t >= cut)]
        + drift[int(t >= cut)] * t
        + 0.05 * torch.randn(3, side, side, generator=generator)
        for t in range(frames)
    ]
    return torch.stack(out)


def llava_inputs(
    prompts: Sequence[Sequence[str]],
    frames: int = FRAMES,
    seed: int = 1,
    dtype: torch.dtype = torch.float32,
    left: bool = True,
    video_tokens: int = FRAMES * 9 + 1,
) -> dict[str, Any]:
    """Inputs of LLaVA-OneVision, see :func:`fill_prompts`."""
    g = torch.Generator().manual_seed(seed)
    parts = {"v": [VIDEO] * video_tokens, "i": [IMAGE] * (25 + 25 + 5)}
    out, counts = fill_prompts(prompts, parts, g, left)
    videos, images = counts["v"], counts["i"]
    if videos:
        pixels = [smooth_video(frames, 70, g) for _ in range(videos)]
        out["pixel_values_videos"] = torch.stack(pixels).to(dtype)
    if images:
        out["pixel_values"] = torch.randn(images, 2, 3, 70, 70, generator=g).to(dtype)
        out["image_sizes"] = torch.tensor([[70, 70]] * images)
        out["batch_num_images"] = torch.tensor([1] * images)
    return out


def fill_prompts(
    prompts: Sequence[Sequence[str]],
    parts: Mapping[str, Sequence[int]],
    generator: torch.Generator,
    left: bool = True,
) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    """Return ``input_ids`` and ``attention_mask`` padded on one side, and how often each part was.

    Prompts are lists like ``["t5", "v", "t3", "i"]``: text of n tokens, or a part by its name.
    """
    rows, counts = [], dict.fromkeys(parts, 0)
    for prompt in prompts:
        row = [BOS]
        for part in prompt:
            if part in parts:
                row += parts[part]
                counts[part] += 1
            else:
                row += torch.randint(2, 100, (int(part[1:]),), generator=generator).tolist()
        rows.append(row)
    width = max(map(len, rows))
    pad = [[PAD] * (width - len(r)) for r in rows]
    zero = [[0] * (width - len(r)) for r in rows]
    one = [[1] * len(r) for r in rows]
    joined = zip(pad, zero, rows, one, strict=True)
    both = [(p + r, z + o) if left else (r + p, o + z) for p, z, r, o in joined]
    ids, mask = (torch.tensor(rows) for rows in zip(*both, strict=True))
    return {"input_ids": ids, "attention_mask": mask}, counts


PROMPTS: dict[str, list[list[str]]] = {
    "one_video": [["t5", "v", "t4"]],
    "batch_padded": [["t5", "v", "t4"], ["t2", "v", "t13"]],
    "two_videos": [["t3", "v", "t2", "v", "t4"]],
    "image_and_video": [["t3", "i", "t2", "v", "t4"]],
    "batch_mixed": [["t3", "i", "v", "t4"], ["v", "t2", "v", "t5"]],
    "image_only": [["t3", "i", "t4"]],
    "text_only": [["t12"]],
}


def forward(model: nn.Module, inputs: dict[str, Any], **kw: Any) -> Any:
    with torch.no_grad():
        return model(**{k: v.clone() for k, v in inputs.items()}, **kw)


def generate(model: nn.Module, inputs: dict[str, Any], **kw: Any) -> Any:
    settings = {"max_new_tokens": 6, "do_sample": False, "suppress_tokens": SPECIAL, **kw}
    with torch.no_grad():
        return model.generate(**{k: v.clone() for k, v in inputs.items()}, **settings)


def two_turns(model: nn.Module, family: Family) -> tuple[Any, torch.Tensor, dict[str, Any]]:
    """Ask about a second video on the cache of a first; also logits and inputs of one prompt."""
    both = family.inputs([["t3", "v", "t4", "v", "t2"]])
    ids, pixels = both["input_ids"], both["pixel_values_videos"]
    cut = 1 + 3 + family.frames * family.tokens_per_frame + family.newlines_per_video + 4
    with torch.no_grad():
        whole = forward(model, both).logits[:, -1]
        first = model(input_ids=ids[:, :cut], pixel_values_videos=pixels[:1], use_cache=True)
        second = model(
            input_ids=ids[:, cut:],
            pixel_values_videos=pixels[1:],
            past_key_values=first.past_key_values,
            use_cache=True,
        )
    return second, whole, both


def own_attributes(model: nn.Module) -> dict[str, list[str]]:
    """Names of the attributes of every module that are its own, not its class's."""
    return {name: sorted(module.__dict__) for name, module in model.named_modules()}


def row_alone(inputs: dict[str, Any], row: int, videos: list[int]) -> dict[str, Any]:
    """Inputs of one batch row without its left padding; ``videos`` are its video numbers."""
    count = int(inputs["attention_mask"][row].sum())
    return {
        "input_ids": inputs["input_ids"][row : row + 1, -count:],
        "attention_mask": inputs["attention_mask"][row : row + 1, -count:],
        "pixel_values_videos": inputs["pixel_values_videos"][videos],
    }
