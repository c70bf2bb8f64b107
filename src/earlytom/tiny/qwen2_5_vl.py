"""The tiny Qwen2.5-VL model: window attention, pairs of frames, 2x2 merger, M-RoPE."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from earlytom.models import find_adapter
from earlytom.tiny.architecture import (
    PATCH,
    TEXT_WIDTH,
    Architecture,
    FrameEncoder,
    pixel_settings,
)
from earlytom.tiny.config import Phase
from earlytom.tiny.packed_lm import rotate
from earlytom.tiny.vocabulary import (
    EOS_ID,
    IMAGE_ID,
    PAD_ID,
    USER_ID,
    VIDEO_ID,
    vocabulary_size,
    words,
)
from earlytom.tiny.world import CELLS, GRID, IMAGE_SIZE

START, END = "<vision_start>", "<vision_end>"
START_ID, END_ID = len(words()), len(words()) + 1
PAIR = 2  # frames of a patch
MERGE = 2  # patches of a token, each way
SIDE = IMAGE_SIZE // PATCH
SECONDS = 1.0  # of a pair: two frames a second, the rate at which the family samples
PER_SECOND = 2  # time positions
WIDTH, HEADS = 160, 5
_CHUNK = 8  # pairs per call without gradients: one compiled shape, and it stays in the cache


class Qwen25VL(Architecture):
    """``Qwen2_5_VLForConditionalGeneration``.

    A token is 2x2 patches of a pair of frames, so one of a pair can flash and a cut can fall
    between the two: pairs have to be encoded as a clip shows them.  The tower has relative
    positions only; where a token is, the language model reads from its three-axis position.
    """

    name = "qwen2_5_vl"
    step_frames = PAIR
    frames_apart = False
    places_seen = False
    places_given = True
    before = (USER_ID, START_ID)
    behind = (END_ID,)
    extra_tokens: ClassVar[dict[str, str]] = {"vision_start_token": START, "vision_end_token": END}
    # tokens hold twice as much as those of single frames, and half as many enter the language model
    settings: ClassVar[dict[str, Any]] = {
        "vision_steps": 1800,
        "vision_shallow": 1170,
        "vision_schedule": ((0, 1.0), (860, 1.0), (1490, 0.51), (1800, 0.01)),
        "bank_shots": 6000,
        "phases": (Phase(4, 12, 450), Phase(8, 8, 400), Phase(16, 6, 2200)),
        "language_schedule": ((0, 1.0), (550, 0.875), (3050, 0.01)),
    }
    pitch = """
* Vision: 112x112 pixels, patches of 8x8 pixels and 2 frames (196 per pair), 12 layers, 160 wide,
  windows of 64x64 pixels, whole frames in layers 2, 5, 8 and 11; merged 2x2 to 49 tokens per pair.
* Language: as Qwen2.5-VL, 6 layers, 256 wide, M-RoPE with sections 8, 12, 12 and base 10, tied
  embeddings, a vocabulary of {words} words.
* Prompt: `<user> <vision_start> <video> <vision_end> question ? <assistant>`; the answer is one
  word, then `<eos>`. Two time positions per second, and clips have two frames per second
  (`second_per_grid_ts` 1); files sampled at other rates work too, see the training notes.
"""

    def build_model(self, seed: int = 0) -> Any:
        """A freshly initialised ``Qwen2_5_VLForConditionalGeneration`` in float32."""
        from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

        vision = {
            "depth": 12,
            "hidden_size": WIDTH,
            "intermediate_size": 432,
            "num_heads": HEADS,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": PAIR,
            "tokens_per_second": PER_SECOND,
            "window_size": 64,
            "out_hidden_size": TEXT_WIDTH,
            "fullatt_block_indexes": [2, 5, 8, 11],
        }
        text = {
            "vocab_size": vocabulary_size(),
            "hidden_size": TEXT_WIDTH,
            "intermediate_size": 704,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "initializer_range": 0.04,
            "bos_token_id": None,
            "eos_token_id": EOS_ID,
            "pad_token_id": PAD_ID,
            "tie_word_embeddings": True,
            # Width has the lowest frequencies, and a picture is 7 positions wide: with the usual
            # base of a million they would not tell its columns apart.
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10.0,
                "mrope_section": [8, 12, 12],
            },
        }
        config = Qwen2_5_VLConfig(
            vision_config=vision,
            text_config=text,
            image_token_id=IMAGE_ID,
            video_token_id=VIDEO_ID,
            vision_start_token_id=START_ID,
            vision_end_token_id=END_ID,
            tie_word_embeddings=True,
        )
        torch.manual_seed(seed)
        model: Any = Qwen2_5_VLForConditionalGeneration(config)
        for name, weight in model.model.visual.named_parameters():
            if weight.dim() > 1:
                nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
            elif name.endswith("bias"):
                nn.init.zeros_(weight)
        return model

    def encoder(self, model: Any, compiled: bool = True) -> FrameEncoder:
        """Patches, tower and merger."""
        return PairEncoder(model, compiled)

    def freeze_vision(self, model: Any) -> None:
        """The tower with its merger."""
        model.model.visual.requires_grad_(False)

    def unused_parameters(self, model: Any) -> nn.Module | None:
        """None."""
        return None

    def layer_outputs(self, model: Any) -> list[tuple[nn.Linear, nn.Linear]]:
        """Of every block."""
        return [(block.attn.proj, block.mlp.down_proj) for block in model.model.visual.blocks]

    def last_linear(self, model: Any) -> nn.Linear:
        """Of the merger."""
        last: nn.Linear = model.model.visual.merger.mlp[-1]
        return last

    # ------------------------------------------------------------------ the language model
    def positions(self, steps: int, text: int, interval: float | None = None) -> Tensor:
        """Time, height and width ``[3, L]``, as ``get_rope_index`` gives them."""
        first = len(self.before)
        pace = PER_SECOND * SECONDS if interval is None else interval
        time = (torch.arange(steps) * pace).long()
        cells = torch.arange(GRID)
        video = torch.stack(torch.meshgrid(time, cells, cells, indexing="ij")).flatten(1) + first
        rest = torch.arange(len(self.behind) + text) + first + GRID
        sides = [torch.arange(first).expand(3, -1), rest.expand(3, -1)]
        return torch.cat([sides[0], video, sides[1]], 1)

    @property
    def intervals(self) -> Sequence[tuple[float | None, float]]:
        """The usual rate, files of the world's own four frames a second, and frames without a rate.

        transformers up to 5.10 rounds the seconds of a pair down, files come to 0 there.
        """
        return [(None, 0.7), (1.0, 0.1), (4.0, 0.1), (0.0, 0.1)]

    def rotary(self, language_model: Any, hidden: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Of three axes, joined."""
        cos, sin = language_model.rotary_emb(hidden, places[:, None])
        if cos.dim() == 4:  # older transformers join the axes inside every layer
            sections = language_model.config.rope_parameters["mrope_section"] * 2
            cos, sin = (
                torch.cat([m[i % 3] for i, m in enumerate(x.split(sections, -1))], -1)
                for x in (cos, sin)
            )
        return cos[:, None], sin[:, None]

    # ------------------------------------------------------------------ prompts
    def inputs(self, pixels: Tensor, ids: Tensor) -> dict[str, Any]:
        """Patches with their grid, seconds per pair, and what is video in the prompt."""
        batch, frames = pixels.shape[:2]
        grid = torch.tensor([[frames // PAIR, SIDE, SIDE]] * batch, device=ids.device)
        return {
            "input_ids": ids,
            "mm_token_type_ids": torch.where(ids == VIDEO_ID, 2, 0),
            "pixel_values_videos": patches(pixels.flatten(0, 1)).flatten(0, 2),
            "video_grid_thw": grid,
            "second_per_grid_ts": torch.full((batch,), SECONDS, device=ids.device),
        }

    def more(self, frames: int, ids: Tensor) -> dict[str, Any]:
        """With the positions of a prompt in one piece.

        Left to itself, transformers goes on behind the last *time* of a cached video.
        """
        steps = frames // PAIR
        places = self.positions(steps, ids.shape[1])[:, self.prefix_length(steps) :]
        return {
            "input_ids": ids,
            "position_ids": places[:, None].expand(-1, len(ids), -1).to(ids.device),
        }

    def processor_files(self) -> dict[str, dict[str, Any]]:
        """Of ``Qwen2_5_VLProcessor``."""
        pixels = pixel_settings() | {
            "merge_size": MERGE,
            "patch_size": PATCH,
            "processor_class": "Qwen2_5_VLProcessor",
            "size": {"shortest_edge": IMAGE_SIZE**2, "longest_edge": IMAGE_SIZE**2},
            "temporal_patch_size": PAIR,
        }
        return {
            "preprocessor_config.json": {**pixels, "image_processor_type": "Qwen2VLImageProcessor"},
            "video_preprocessor_config.json": {
                **pixels,
                "do_sample_frames": False,
                "video_processor_type": "Qwen2VLVideoProcessor",
            },
            "processor_config.json": {"processor_class": "Qwen2_5_VLProcessor"},
        }


def patches(pixels: Tensor) -> Tensor:
    """Frames ``[2 * N, 3, H, W]`` to ``[N, 49, 4, 384]``: pairs, tokens, patches, values."""
    shape = (-1, PAIR, 3, GRID, MERGE, PATCH, GRID, MERGE, PATCH)
    cut = pixels.reshape(shape).permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return cut.reshape(len(cut), CELLS, MERGE**2, -1)


def tower_layer(
    block: Any, hidden: Tensor, cos: Tensor, sin: Tensor, segments: tuple[int, ...]
) -> Tensor:
    """One block over ``[N, 196, D]``; attention inside ``segments``, which add up to 196."""
    batch, length, width = hidden.shape
    x = block.attn.qkv(block.norm1(hidden)).view(batch, length, 3, HEADS, -1)
    query, key, value = x.permute(2, 0, 3, 1, 4).unbind(0)
    query = rotate(query, cos, sin) * block.attn.scaling
    key = rotate(key, cos, sin)
    parts = [
        (q @ k.mT).float().softmax(-1).to(v.dtype) @ v
        for q, k, v in zip(*(t.split(segments, 2) for t in (query, key, value)), strict=True)
    ]
    mixed = torch.cat(parts, 2).transpose(1, 2).reshape(batch, length, width)
    hidden = hidden + block.attn.proj(mixed)
    return hidden + block.mlp(block.norm2(hidden))


class PairEncoder(FrameEncoder):
    """Patches, tower and merger: frames ``[2 * N, 3, H, W] -> [N, 49, D]``.

    The same as the model's own forward, for frames of one size as a batch, which is faster to train
    than packed rows.
    """

    def __init__(self, model: Any, compiled: bool = True) -> None:
        super().__init__()
        self.tower = model.model.visual
        adapter = find_adapter(model)
        grid = (GRID, GRID)
        self._back = adapter.token_order(grid)  # type: ignore[attr-defined]
        self._windows = self._back.argsort()
        layers = range(len(self.tower.blocks))
        self._segments = [tuple(adapter.segments(grid, i)) for i in layers]  # type: ignore[attr-defined]
        self._rope = _tower_rope(self._windows)
        self._call: Callable[..., Tensor] = tower_layer
        if compiled:
            self._call = torch.compile(tower_layer, dynamic=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Merged tokens of a batch of pairs, in raster order."""
        cut = patches(pixels)[:, self._windows].flatten(1, 2)
        if not torch.is_grad_enabled() and len(cut) > _CHUNK:
            return torch.cat([self._tokens(part) for part in cut.split(_CHUNK)])
        return self._tokens(cut)

    def _tokens(self, cut: Tensor) -> Tensor:
        tower = self.tower
        weight = tower.patch_embed.proj.weight.flatten(1)
        hidden = functional.linear(cut, weight)
        cos, sin = (x.to(hidden.device, hidden.dtype) for x in self._rope)
        chosen = range(0, len(tower.blocks), self.stride)
        for i in chosen:
            hidden = self._call(tower.blocks[i], hidden, cos, sin, self._segments[i])
        return tower.merger(hidden).view(len(cut), CELLS, -1)[:, self._back]


def _tower_rope(windows: Tensor) -> tuple[Tensor, Tensor]:
    """Rotary embedding ``[196, head dim]`` of a frame's patches, window by window."""
    place = torch.arange(SIDE)
    grid = torch.stack(torch.meshgrid(place, place, indexing="ij"), -1)
    blocks = grid.view(GRID, MERGE, GRID, MERGE, 2).transpose(1, 2).reshape(CELLS, MERGE**2, 2)
    places = blocks[windows].flatten(0, 1)
    quarter = WIDTH // HEADS // 4
    rates = 10000.0 ** -(torch.arange(quarter) / quarter)
    angles = (places[..., None] * rates).flatten(1).repeat(1, 2)
    return angles.cos(), angles.sin()


ARCHITECTURE = Qwen25VL()
