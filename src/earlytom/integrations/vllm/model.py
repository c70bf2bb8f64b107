"""What the compressed models share: videos are encoded one by one, tokens get their positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from earlytom.hf.context import video_room
from earlytom.integrations.vllm.encoding import Encoded, Encoder, VideoRun
from earlytom.integrations.vllm.item import FIELD, VideoItem, from_tensor
from earlytom.integrations.vllm.places import Places, attach
from earlytom.integrations.vllm.ranks import Ranks
from earlytom.integrations.vllm.settings import renumbered, served_method, table_length
from earlytom.models.base import Adapter

if TYPE_CHECKING:
    from vllm.config import VllmConfig


class CompressedVideos:
    """Goes in front of vLLM's class of a model family.

    The server's method is part of the config that every process gets. Without one, or with ratio
    1, a video takes vLLM's own way.

    A subclass says how it encodes a video (:meth:`_encode_frames`), and where tokens and text
    stand (:meth:`_offsets`, :meth:`get_mrope_input_positions`).
    """

    AXES = 3
    FAMILY: ClassVar[type[Adapter]]

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        model_config = vllm_config.model_config
        self._method = served_method(model_config.hf_config)
        self._attention_layers = vllm_config.compilation_config.static_forward_context
        self._places: Places | None = None
        self._encoder: Encoder | None = None
        self._renumbers = renumbered(self.FAMILY, self._method)
        self._room: int | None = None
        if self._method is not None and not self._renumbers:
            self._room = video_room(self.FAMILY, self._method, model_config.hf_text_config)
            self._places = Places(
                self.AXES,
                model_config.get_inputs_embeds_size(),
                vllm_config.scheduler_config.max_num_batched_tokens,
                table_length(model_config.hf_text_config) - 1,
                torch.device(vllm_config.device_config.device),
            )

    # ------------------------------------------------------------------ of a family
    def _adapter(self) -> tuple[Adapter, int]:
        """Return this model through the names of its family, and its encoder layers."""
        raise NotImplementedError

    def _encode_frames(self, pixels: Tensor, run: VideoRun) -> Tensor:
        """Return features ``[frames left, tokens, dim]`` of one video."""
        raise NotImplementedError

    def _finished(self, done: Encoded) -> Encoded:
        """Return the tokens of a video with those that always stand behind them."""
        return done

    def _offsets(self, cells: Tensor, item: VideoItem) -> Tensor:
        """Return ``[axes, tokens]`` int64: positions of tokens beyond that of the video."""
        raise NotImplementedError

    # ------------------------------------------------------------------ encoding
    def _compressed(self, pixels: Tensor, item: VideoItem) -> Tensor:
        """Encode one video to ``[placeholders, dim (+ channels)]``."""
        if self._encoder is None:
            assert self._method is not None
            adapter, layers = self._adapter()
            self._encoder = Encoder(
                adapter, self._method, layers, self._encode_frames, Ranks.of_vllm(), self._serving
            )
        from vllm.utils.gpu_sync_debug import gpu_sync_allowed

        with gpu_sync_allowed():  # decisions wait for the device
            done = self._finished(self._encoder(pixels, item))
        if self._places is None:
            return done.rows
        return attach(done.rows, self._offsets(done.cells, item))

    @staticmethod
    def _items(arguments: dict[str, Any]) -> list[VideoItem] | None:
        """Take what was agreed on for the videos out of the arguments of a call."""
        values = arguments.pop(FIELD, None)
        if values is None:
            return None
        if not isinstance(values, Tensor):
            values = torch.stack(list(values))
        return from_tensor(values)

    def _serving(self) -> bool:
        """Whether there is a KV cache: what is encoded before that is vLLM measuring itself."""
        caches = [getattr(layer, "kv_cache", None) for layer in self._attention_layers.values()]
        return any(isinstance(x, Tensor) and x.numel() > 0 for x in caches)

    # ------------------------------------------------------------------ positions
    def embed_input_ids(
        self,
        input_ids: Tensor,
        multimodal_embeddings: Any = None,
        *,
        is_multimodal: Tensor | None = None,
    ) -> Tensor:
        """Embed the tokens of a step; positions that ride along wait for :meth:`forward`."""
        if self._places is not None:
            multimodal_embeddings = self._places.take(multimodal_embeddings, is_multimodal)
        embedded: Tensor = super().embed_input_ids(  # type: ignore[misc]
            input_ids, multimodal_embeddings, is_multimodal=is_multimodal
        )
        return embedded

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the language model on a step."""
        if self._places is not None and positions.dim() == 2:
            positions = self._places.add(positions)
        return super().forward(  # type: ignore[misc]
            input_ids, positions, intermediate_tensors, inputs_embeds, **kwargs
        )


def flat_positions(
    n_tokens: int, parts: Sequence[tuple[int, int, Tensor | None, int]], axes: int
) -> tuple[Tensor, int]:
    """Return the positions ``[axes, tokens]`` of a prompt, and what later tokens add to theirs.

    Text counts on by one. The placeholders of a part get the position that follows the text in
    front of it (plus what is given), and text goes on behind what the part spans.

    Args:
        n_tokens: tokens of the prompt.
        parts: (first token, tokens, own positions ``[axes, tokens]`` or None for 0, span) of images
            and videos, in order.
        axes: of a position.
    """
    rows, token, position = [], 0, 0
    for first, count, own, span in parts:
        rows.append(torch.arange(position, position + first - token).expand(axes, -1))
        position += first - token
        part = torch.full((axes, count), position)
        rows.append(part if own is None else part + own)
        token, position = first + count, position + span
    rows.append(torch.arange(position, position + n_tokens - token).expand(axes, -1))
    position += n_tokens - token
    return torch.cat(rows, 1), position - n_tokens
