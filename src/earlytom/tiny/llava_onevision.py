"""The tiny LLaVA-OneVision model: SigLIP tower, projector, 2x pooling, Qwen2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from earlytom.tiny.architecture import (
    PATCH,
    TEXT_WIDTH,
    Architecture,
    FrameEncoder,
    pixel_settings,
)
from earlytom.tiny.vocabulary import IMAGE, IMAGE_ID, VIDEO, VIDEO_ID, vocabulary_size
from earlytom.tiny.world import GRID, IMAGE_SIZE


class LlavaOnevision(Architecture):
    """``LlavaOnevisionForConditionalGeneration``; the model appends ``image_newline`` itself."""

    name = "llava_onevision"
    behind = (VIDEO_ID,)  # the place of image_newline
    pitch = """
* Vision: SigLIP, 112x112 pixels, patches of 8 (196 per frame), 12 layers, 160 wide; pooled 2x to
  49 tokens per frame.
* Language: Qwen2, 6 layers, 256 wide, tied embeddings, a vocabulary of {words} words.
* Prompt: `<user> <video> question ? <assistant>`; the answer is one word, then `<eos>`.
"""

    def build_model(self, seed: int = 0) -> Any:
        """A freshly initialised ``LlavaOnevisionForConditionalGeneration`` in float32."""
        from transformers import (
            LlavaOnevisionConfig,
            LlavaOnevisionForConditionalGeneration,
            Qwen2Config,
            SiglipVisionConfig,
        )

        vision = SiglipVisionConfig(
            hidden_size=160,
            intermediate_size=640,
            num_hidden_layers=12,
            num_attention_heads=5,
            image_size=IMAGE_SIZE,
            patch_size=PATCH,
            vision_use_head=False,
        )
        text = Qwen2Config(
            vocab_size=vocabulary_size(),
            hidden_size=TEXT_WIDTH,
            intermediate_size=704,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_key_value_heads=2,
            # clips of up to 32 frames are trained on: they fill the share of a video
            max_position_embeddings=1792,
            tie_word_embeddings=True,
            initializer_range=0.04,
            bos_token_id=None,
            eos_token_id=2,
            pad_token_id=0,
        )
        config = LlavaOnevisionConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=IMAGE_ID,
            video_token_index=VIDEO_ID,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
            image_grid_pinpoints=[[IMAGE_SIZE, IMAGE_SIZE]],
            tie_word_embeddings=True,
        )
        torch.manual_seed(seed)
        return LlavaOnevisionForConditionalGeneration(config)

    def encoder(self, model: Any, compiled: bool = True) -> FrameEncoder:
        """SigLIP, projector and pooling."""
        return SiglipEncoder(model, compiled)

    def freeze_vision(self, model: Any) -> None:
        """Tower and projector; ``image_newline`` is trained."""
        for part in (model.model.vision_tower, model.model.multi_modal_projector):
            part.requires_grad_(False)

    def unused_parameters(self, model: Any) -> nn.Module | None:
        """The feature layer is the encoder output before the final norm."""
        norm: nn.Module = model.model.vision_tower.post_layernorm
        return norm

    def layer_outputs(self, model: Any) -> list[tuple[nn.Linear, nn.Linear]]:
        """Of every SigLIP layer."""
        layers = model.model.vision_tower.encoder.layers
        return [(layer.self_attn.out_proj, layer.mlp.fc2) for layer in layers]

    def last_linear(self, model: Any) -> nn.Linear:
        """Of the projector; pooling is linear."""
        last: nn.Linear = model.model.multi_modal_projector.linear_2
        return last

    def video_end(self, model: Any) -> Tensor | None:
        """``image_newline``."""
        newline: Tensor = model.model.image_newline
        return newline

    def inputs(self, pixels: Tensor, ids: Tensor) -> dict[str, Any]:
        """Frames as they are."""
        return {"input_ids": ids, "pixel_values_videos": pixels}

    def processor_files(self) -> dict[str, dict[str, Any]]:
        """Of ``LlavaOnevisionProcessor``."""
        size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
        pixels = pixel_settings() | {"processor_class": "LlavaOnevisionProcessor", "size": size}
        return {
            "preprocessor_config.json": {
                **pixels,
                "do_pad": True,
                "image_grid_pinpoints": [[IMAGE_SIZE, IMAGE_SIZE]],
                "image_processor_type": "LlavaOnevisionImageProcessor",
            },
            "video_preprocessor_config.json": {
                **pixels,
                "do_sample_frames": False,
                "video_processor_type": "LlavaOnevisionVideoProcessor",
            },
            "processor_config.json": {
                "image_token": IMAGE,
                "num_image_tokens": (IMAGE_SIZE // PATCH) ** 2,
                "processor_class": "LlavaOnevisionProcessor",
                "video_token": VIDEO,
                "vision_aspect_ratio": "anyres_max_9",
                "vision_feature_select_strategy": "full",
            },
        }


def pool_tokens(features: Tensor) -> Tensor:
    """``[B, 196, D]`` patch tokens to ``[B, 49, D]`` frame tokens, as the model pools videos.

    Bilinear interpolation by exactly one half equals the mean of 2x2 neighbours.
    """
    batch, _, width = features.shape
    return features.view(batch, GRID, 2, GRID, 2, width).mean((2, 4)).reshape(batch, -1, width)


class SiglipEncoder(FrameEncoder):
    """Vision tower, projector and pooling: ``[B, 3, H, W] -> [B, 49, D]``.

    Attention is the eager one: it has the faster backward pass on CPUs.  ``compiled`` compiles each
    layer.
    """

    def __init__(self, model: Any, compiled: bool = True) -> None:
        super().__init__()
        self.tower = model.model.vision_tower
        self.projector = model.model.multi_modal_projector
        self.tower.set_attn_implementation("eager")
        layers = self.tower.encoder.layers
        self._calls: list[Callable[..., Any]] = [
            torch.compile(layer.forward) if compiled else layer.forward for layer in layers
        ]

    def forward(self, pixels: Tensor) -> Tensor:
        """Pooled, projected tokens of a batch of frames."""
        hidden = self.tower.embeddings(pixels)
        for call in self._calls[:: self.stride]:
            hidden = call(hidden, None)
        return pool_tokens(self.projector(hidden))


ARCHITECTURE = LlavaOnevision()
