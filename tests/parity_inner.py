"""Golden vectors of FastV and PyramidDrop, which prune inside the language model.

Imported by ``tests.parity``, which holds the framework and the command line.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

from earlytom.hf.inner import InnerSide
from earlytom.hf.prompt import PromptSide
from earlytom.methods import FastV, PyramidDrop
from earlytom.models.base import Adapter
from tests.inner_states import inner_state, span
from tests.parity import Close, Copied, Outputs, Vector, kind

VIDEO = 1


@kind("fastv", needs="hidden attn_last_row visual_start visual_len fastv_k fastv_r")
def fastv(v: Vector) -> Outputs:
    """The point alone, with the attention row that comes with the file."""
    hidden = v["hidden"][0]
    visual = span(len(hidden), v["visual_start"], v["visual_len"])
    method = FastV(
        policy="official", layer=v["fastv_k"], retention_ratio=1 - v["fastv_r"], budget="behind"
    )
    merge = method.merge_inner(inner_state(hidden, visual, v["attn_last_row"]))
    assert merge is not None
    return {"out_kept_index": merge.index, "out_hidden": Copied(hidden[merge.index][None])}


class Text(Adapter):
    """A bare language model whose "videos" are runs of one-token frames."""

    grid = (1, 1)

    def __init__(self, model: LlamaModel) -> None:
        super().__init__(nn.Identity())
        self.language_model = model

    @property
    def video_token_id(self) -> int:
        return VIDEO

    def frame_counts(self, arguments: dict[str, Any]) -> list[int]:
        counts: list[int] = arguments["pixel_values_videos"]
        return counts

    def placeholder_count(self, frames: list[int]) -> int:
        return sum(frames)


def identity_layers(v: Vector) -> LlamaModel:
    """Layers that return their input, but have the norm and projections of the file."""
    assert v["rope_theta"] == 10000
    stages, width = v["norm_weight"].shape
    config = LlamaConfig(
        hidden_size=width,
        num_attention_heads=v["num_heads"],
        intermediate_size=4,
        num_hidden_layers=stages + 1,
        rms_norm_eps=v["rms_norm_eps"],
        vocab_size=8,
        attn_implementation="sdpa",
    )
    model = LlamaModel(config).eval()
    for i, layer in enumerate(model.layers):
        layer.self_attn.o_proj.weight.data.zero_()
        layer.mlp.down_proj.weight.data.zero_()
        if i:
            layer.self_attn.q_proj.weight.data = v["q_proj"][i - 1]
            layer.self_attn.k_proj.weight.data = v["k_proj"][i - 1]
            layer.input_layernorm.weight.data = v["norm_weight"][i - 1]
    return model


@kind("pyramiddrop", needs="hidden q_proj k_proj norm_weight layer_list ratios text_len")
def pyramiddrop(v: Vector) -> Outputs:
    """The whole prefill through the engine, padding and positions included."""
    x, stages = v["hidden"], len(v["ratios"])
    model, outputs = identity_layers(v), Outputs()
    layers = tuple(range(1, stages + 1))  # layers are the identity: which ones does not matter
    method = PyramidDrop(policy="official", layers=layers, shares=tuple(v["ratios"].tolist()))
    spans = [
        span(x.shape[1], a, n) for a, n in zip(v["visual_start"], v["visual_len"], strict=True)
    ]
    mask = v["attention_mask"] if "attention_mask" in v else torch.ones(x.shape[:2]).bool()
    adapter = Text(model)
    prompt = PromptSide(adapter, renumber=True, inner=True)
    side = InnerSide(adapter, prompt, method, method.inner_points(stages + 1))
    prompt.first = side.at_embeddings
    handles: list[Any] = [
        model.register_forward_pre_hook(prompt.before_language_model, with_kwargs=True)
    ]
    side.install(handles)

    def watch(stage: int, module: nn.Module, args: Any, kwargs: Any) -> None:
        step = prompt.step
        assert step is not None
        assert step.index is not None
        assert step.mask is not None
        index, real = step.index, step.mask
        hidden, position = args[0], kwargs["position_ids"]
        for b in range(len(x)):
            outputs[f"out_kept_index_stage{stage}_sample{b}"] = index[b, real[b]]
        # ours are padded on the left, the released ones on the right
        outputs[f"out_hidden_stage{stage}"] = Close(to_right(hidden, real))
        outputs[f"out_position_ids_stage{stage}"] = to_right(position, real)
        if "attention_mask" in v:
            outputs[f"out_attention_mask_stage{stage}"] = to_right(real, real)

    for stage, i in enumerate(layers):
        model.layers[i].register_forward_pre_hook(
            lambda *a, _s=stage: watch(_s, *a), with_kwargs=True
        )
    ids = torch.stack(spans).long() * VIDEO
    lengths = v["visual_len"].tolist()
    prompt.before_model(model, (), {"input_ids": ids, "pixel_values_videos": lengths})
    model(inputs_embeds=x, attention_mask=mask.long(), use_cache=False)
    return outputs


def to_right(x: Tensor, real: Tensor) -> Tensor:
    """Move the padding of ``[batch, n, ...]`` from the left to the right; it becomes 0."""
    out = torch.zeros_like(x)
    for row, source, mask in zip(out, x, real, strict=True):
        row[: int(mask.sum())] = source[mask]
    return out
