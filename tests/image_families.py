"""Tiny random InternVL and SmolVLM2 models, and prompts as their processors write them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from earlytom.method import Method
from earlytom.models import use_frame_prompts
from tests.clip_families import LLAMA
from tests.families import (
    BOS,
    EOS,
    FRAMES,
    IMAGE,
    PAD,
    Family,
    build,
    fill_prompts,
    smooth_video,
)

SIDE, TILES = 84, 3  # pixels of a frame; tiles of an image
WORDS = ["<img>", "</img>", "\n", "Frame", " from 00:0", ":", " ", "<row>", "<global-img>"]
WORDS += [str(d) for d in range(10)]
ID = {word: 103 + i for i, word in enumerate(WORDS)}
TEXT = {v: k for k, v in ID.items()}


class Tokenizer:
    """Knows the words around frames; any other id reads as ``word``."""

    def decode(self, ids: list[int]) -> str:
        return "".join(TEXT.get(i, "word ") for i in ids)


def words(*parts: str) -> list[int]:
    return [ID[part] for part in parts]


@dataclass(frozen=True)
class ImageFamily(Family):
    """6x6 patches, 3x3 tokens; an image has three tiles."""

    newlines_per_video: int = 0
    core: bool = False

    def config(self) -> Any:
        raise NotImplementedError

    def frame(self, number: int) -> list[int]:
        """Ids of one frame of a video."""
        raise NotImplementedError

    def image(self) -> list[int]:
        raise NotImplementedError

    def pixels(self, rows: list[list[torch.Tensor]], dtype: torch.dtype) -> torch.Tensor:
        """``pixel_values`` of a batch, from the tiles of every row."""
        raise NotImplementedError

    def model(self, dtype: torch.dtype = torch.float32, attn: str = "sdpa") -> nn.Module:
        model = build(self.config(), dtype, attn)
        with torch.no_grad():
            for name, p in model.named_parameters():
                if "lambda" in name:
                    p.add_(1)
        return use_frame_prompts(model, Tokenizer())

    def inputs(
        self,
        prompts: Sequence[Sequence[str]],
        seed: int = 1,
        frames: int = FRAMES,
        dtype: torch.dtype = torch.float32,
        left: bool = True,
    ) -> dict[str, Any]:
        g = torch.Generator().manual_seed(seed)
        video = [i for t in range(frames) for i in self.frame(t + 1)]
        out, _ = fill_prompts(prompts, {"v": video, "i": self.image()}, g, left)
        rows: list[list[torch.Tensor]] = []
        for prompt in prompts:
            rows.append([])
            for part in prompt:
                if part == "v":
                    rows[-1] += list(smooth_video(frames, SIDE, g))
                elif part == "i":
                    rows[-1] += list(torch.randn(TILES, 3, SIDE, SIDE, generator=g))
        if any(rows):
            out["pixel_values"] = self.pixels(rows, dtype)
        return out

    def videos(self, inputs: dict[str, Any]) -> int:
        first = torch.tensor(self.frame(1)[:3])
        windows = inputs["input_ids"].unfold(1, 3, 1)
        return int((windows == first).all(2).sum())

    def refuses(self, method: Method) -> bool:
        coarse = method.encoder_grid((3, 3))
        single = bool(method.reduce_layers(6)) and not method.restore_grid()
        return single or (coarse is not None and coarse[0] != coarse[1])


@dataclass(frozen=True)
class InternVLFamily(ImageFamily):
    name: str = "internvl"

    def config(self) -> Any:
        from transformers import InternVLConfig

        return InternVLConfig(
            vision_config={
                "hidden_size": 64,
                "intermediate_size": 96,
                "num_hidden_layers": 6,
                "num_attention_heads": 4,
                "image_size": [SIDE, SIDE],
                "patch_size": [14, 14],
                "layer_scale_init_value": 1.0,
                "use_qk_norm": True,
                "norm_type": "rms_norm",
            },
            text_config={**LLAMA, "model_type": "qwen2"},
            image_token_id=IMAGE,
            image_seq_length=9,
            downsample_ratio=0.5,
        )

    def frame(self, number: int) -> list[int]:
        lead = words("Frame", *str(number), ":", " ", "<img>")
        back = words("</img>", "\n")
        return [*lead, *[IMAGE] * 9, *back]

    def image(self) -> list[int]:
        return [*words("<img>"), *[IMAGE] * 9 * TILES, *words("</img>")]

    def pixels(self, rows: list[list[torch.Tensor]], dtype: torch.dtype) -> torch.Tensor:
        return torch.stack([tile for row in rows for tile in row]).to(dtype)

    def row_alone(self, inputs: dict[str, Any], row: int, videos: list[int]) -> dict[str, Any]:
        count = int(inputs["attention_mask"][row].sum())
        tiles = ((inputs["input_ids"] == IMAGE).sum(1) // 9).cumsum(0).tolist()
        start = 0 if row == 0 else tiles[row - 1]
        return {
            "input_ids": inputs["input_ids"][row : row + 1, -count:],
            "attention_mask": inputs["attention_mask"][row : row + 1, -count:],
            "pixel_values": inputs["pixel_values"][start : tiles[row]],
        }

    def refuses(self, method: Method) -> bool:
        weighed = bool(method.reduce_layers(6)) and method.proportional_attention()
        return weighed or super().refuses(method)


@dataclass(frozen=True)
class SmolVLMFamily(ImageFamily):
    name: str = "smolvlm"

    def config(self) -> Any:
        from transformers import SmolVLMConfig

        return SmolVLMConfig(
            vision_config={
                "hidden_size": 64,
                "intermediate_size": 96,
                "num_hidden_layers": 6,
                "num_attention_heads": 4,
                "image_size": SIDE,
                "patch_size": 14,
            },
            text_config=LLAMA,
            image_token_id=IMAGE,
            scale_factor=2,
            pad_token_id=PAD,
            bos_token_id=BOS,
            eos_token_id=EOS,
        )

    def frame(self, number: int) -> list[int]:
        time = words("Frame", " from 00:0", str(number % 10), ":", "<img>", "<global-img>")
        lead = words("\n") if number > 1 else []
        return [*lead, *time, *[IMAGE] * 9, *words("<img>")]

    def image(self) -> list[int]:
        return [*(words("<img>", "<row>") + [IMAGE] * 9) * TILES, *words("<img>")]

    def pixels(self, rows: list[list[torch.Tensor]], dtype: torch.dtype) -> torch.Tensor:
        most = max(map(len, rows))
        none = torch.zeros(3, SIDE, SIDE)
        return torch.stack([torch.stack(r + [none] * (most - len(r))) for r in rows]).to(dtype)

    def row_alone(self, inputs: dict[str, Any], row: int, videos: list[int]) -> dict[str, Any]:
        count = int(inputs["attention_mask"][row].sum())
        tiles = int((inputs["input_ids"][row] == IMAGE).sum()) // 9
        return {
            "input_ids": inputs["input_ids"][row : row + 1, -count:],
            "attention_mask": inputs["attention_mask"][row : row + 1, -count:],
            "pixel_values": inputs["pixel_values"][row : row + 1, :tiles],
        }

    def refuses(self, method: Method) -> bool:
        return method.encoder_grid((3, 3)) is not None or super().refuses(method)


IMAGE_FAMILIES = [InternVLFamily("internvl"), SmolVLMFamily("smolvlm")]
