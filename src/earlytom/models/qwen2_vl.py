"""Qwen2-VL: packed tower in which every layer attends to whole frames, M-RoPE."""

from __future__ import annotations

from typing import Any

from earlytom.models.packed import PackedTower


class Qwen2VL(PackedTower):
    """``Qwen2VLModel`` of transformers."""

    model_types = ("qwen2_vl",)
    checkpoints = ("Qwen/Qwen2-VL-2B-Instruct", "Qwen/Qwen2-VL-7B-Instruct")

    @property
    def encoder_width(self) -> int:
        """``embed_dim``; ``hidden_size`` is that of the language model here."""
        config: Any = self.inner.config.vision_config  # type: ignore[union-attr]
        return int(config.embed_dim)
