"""Placeholders of compressed videos, counted before anything is encoded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.processing import PromptReplacement

from earlytom._version import __version__
from earlytom.errors import BudgetError, ConfigError
from earlytom.integrations.vllm.item import FIELD, VideoItem, from_tensor, to_tensor
from earlytom.integrations.vllm.settings import RATIO, served_method, split_ratio, table_length
from earlytom.method import Method

if TYPE_CHECKING:
    from earlytom.stages import Shape


class CompressingProcessor:
    """Goes in front of vLLM's processor of a model family.

    A request may bring ``retention_ratio`` among its ``mm_processor_kwargs``; no other part of
    vLLM or transformers gets to see it. Videos that come as embeddings are left alone.

    A subclass says what it knows of every video (:meth:`_videos`).
    """

    # ------------------------------------------------------------------ of a family
    def _videos(self, outputs: Mapping[str, Any]) -> list[tuple[Shape, float]]:
        """Return shape, and seconds between frames, of every video in a processor's outputs."""
        raise NotImplementedError

    def _encoder_layers(self) -> int:
        """Return the layers of the vision encoder."""
        raise NotImplementedError

    def _video_token(self) -> int:
        """Return the id of the placeholder."""
        raise NotImplementedError

    def _extra_tokens(self) -> int:
        """Return how many tokens behind its visual ones a video has."""
        return 0

    def _lead(self, item: VideoItem) -> int:
        """Return how far text behind a video stands beyond the number of its placeholders."""
        raise NotImplementedError

    # ------------------------------------------------------------------ what vLLM calls
    @cached_property
    def _method(self) -> Method | None:
        return served_method(self.info.get_hf_config())  # type: ignore[attr-defined]

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, Any]) -> Any:
        ratio, rest = split_ratio(hf_kwargs)
        outputs = super()._apply_hf_processor_main(mm_items, rest)  # type: ignore[misc]
        method, layers = self._method, self._encoder_layers()
        items = [
            VideoItem.plan(method, ratio, frames, grid, layers, seconds)
            for (frames, grid), seconds in self._videos(outputs)
        ]
        if items and method is not None:
            outputs[FIELD] = to_tensor(items)
        return outputs

    def _get_mm_fields_config(
        self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, Any]
    ) -> Mapping[str, MultiModalFieldConfig]:
        _, rest = split_ratio(hf_processor_mm_kwargs)
        fields = super()._get_mm_fields_config(hf_inputs, rest)  # type: ignore[misc]
        return {**fields, FIELD: MultiModalFieldConfig.batched("video", keep_on_cpu=True)}

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, Any], out_mm_kwargs: Any
    ) -> Sequence[Any]:
        _, rest = split_ratio(hf_processor_mm_kwargs)
        updates = super()._get_prompt_updates(mm_items, rest, out_mm_kwargs)  # type: ignore[misc]
        return [self._counted(u, out_mm_kwargs) if u.modality == "video" else u for u in updates]

    def _counted(self, update: Any, out_mm_kwargs: Any) -> PromptReplacement:
        """Return the stock ``update`` of videos with the counts that were agreed on."""
        token, extra, usual = self._video_token(), self._extra_tokens(), update.replacement

        def replacement(index: int) -> Any:
            found = item_of(out_mm_kwargs["video"][index])
            if found is None or found.whole:
                return usual(index) if callable(usual) else usual
            return [token] * (found.tokens + extra)

        return PromptReplacement(modality="video", target=update.target, replacement=replacement)

    def _get_mm_hashes(self, inputs: Any) -> Any:
        """Method and version belong to the identity of an encoded video.

        The ratio of a request does anyway, as one of its processor arguments.
        """
        hashes = super()._get_mm_hashes(inputs)  # type: ignore[misc]
        method = self._method
        if method is None or "video" not in hashes:
            return hashes
        own = json.dumps([method.to_dict(), __version__], sort_keys=True)
        videos = [hashlib.sha256(f"{h} {own}".encode()).hexdigest() for h in hashes["video"]]
        return {**hashes, "video": videos}

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        """Process a request.

        A server that takes ratios from requests has to let all processor arguments through
        (``--trust-request-mm-kwargs``). Some of them, as another picture size, would end it.

        Raises:
            ConfigError: its retention ratio is out of range, compression is off, or it brings
                processor arguments that are not those of the server.
            BudgetError: a video cannot be compressed as asked, or ends beyond what the model's
                position table holds.
        """
        ratio, rest = split_ratio(inputs.hf_processor_mm_kwargs)
        config = self.info.ctx.model_config.get_multimodal_config()  # type: ignore[attr-defined]
        usual = config.mm_processor_kwargs or {}
        changed = sorted(k for k, v in rest.items() if k not in usual or usual[k] != v)
        if changed:
            raise ConfigError(
                f"a request may set {RATIO} only in mm_processor_kwargs, got {', '.join(changed)}"
            )
        if self._method is None and ratio not in (None, 1):
            raise ConfigError(f"compression is off on this server; leave {RATIO} out")
        result = super().apply(inputs, timing_ctx)  # type: ignore[misc]
        found = [item_of(item) for item in result["mm_kwargs"].get("video", ()) if item is not None]
        lead = sum(self._lead(item) for item in found if item is not None)
        context = self.info.ctx.model_config  # type: ignore[attr-defined]
        table = table_length(context.hf_text_config)
        if lead > 0 and lead + context.max_model_len > table:
            raise BudgetError(
                f"the videos of this request reach position {lead + context.max_model_len}, beyond "
                f"{table}; send fewer frames"
            )
        return result


def item_of(data: Any) -> VideoItem | None:
    """Return what was agreed on for a video of a request, None if nothing was."""
    field = data.get(FIELD) if data is not None else None
    return None if field is None else from_tensor(field.data)[0]
