"""Golden vectors of the methods that prune inside the language model: SparseVLM, FrameFusion.

Imported by ``tests.parity``, which holds the framework and the command line.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from earlytom.methods.framefusion import FrameFusion, Progress
from earlytom.methods.sparsevlm import SparseVLM
from earlytom.ops.raters import recycle
from earlytom.stages import InnerState
from tests.parity import Close, Copied, Outputs, Vector, kind


def rotary_of(position: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """cos and sin ``[n, dim]``, base 10000."""
    angle = position[:, None] / 10000 ** (torch.arange(0, dim, 2) / dim)
    angle = torch.cat([angle, angle], 1)
    return angle.cos(), angle.sin()


def sparsevlm(v: Vector, version: str) -> Outputs:
    """Identity layers; attention is softmax(attn_scale (x wq)(x wk)^T), causal, without rotary."""
    x, start, length = v["hidden"][0], v["visual_start"], v["visual_len"]
    layers = tuple(v["pruning_layers"].tolist())
    method = SparseVLM(
        policy="official", version=version, layers=layers, kept=tuple(v["keep_list"].tolist())
    )
    patch = torch.full((len(x),), -1)
    patch[start : start + length] = torch.arange(length)
    position, memory, outputs = torch.arange(len(x)), dict[str, Any](), Outputs()

    def state(point: int, attention: Tensor | None = None) -> InnerState:
        return InnerState(
            point=point,
            layer=layers[point] + 1,
            n_layers=32,
            hidden=x,
            visual=patch >= 0,
            attention=attention,
            frame=torch.where(patch >= 0, 0, -1),
            patch=patch,
            entered=length,
            uncompressed=length,
            memory=memory,
            rotary=rotary_of(position, v["wq"].shape[2]),
        )

    method.inner_start(state(-1))
    outputs["out_text_raters"] = method.inner_queries(state(-1)) - start - length
    for stage in range(len(layers)):
        now = state(stage)
        queries = method.inner_queries(now)
        logits = (x[queries] @ v["wq"]) @ (x @ v["wk"]).mT * v["attn_scale"]
        later = torch.arange(len(x)) > queries[:, None]
        now = state(stage, logits.masked_fill(later, -torch.inf).softmax(-1))
        score, columns = method.score(now), (patch >= 0).nonzero().flatten()
        outputs[f"out_visual_score_stage{stage}"] = score[columns]
        kept, taken, made = method.counts(now)
        order = score[columns].sort(descending=True, stable=True).indices
        mask = torch.zeros(len(columns), dtype=torch.bool).index_fill(0, order[:kept], True)
        outputs[f"out_keep_mask_stage{stage}"] = mask
        if made:
            pruned = columns[~mask]
            order, _, means = recycle(x[pruned], score[pruned], taken, made)
            outputs[f"out_recycled_tokens_stage{stage}"] = Copied(x[pruned][order])
            outputs[f"out_merged_tokens_stage{stage}"] = means
        merge = method.merge_inner(now)
        assert merge is not None
        x = x[merge.index] if merge.hidden is None else merge.hidden
        patch, position = patch[merge.index], position[merge.index]
        if method.inner_positions == "renumber":
            position = torch.arange(len(x))
    outputs["out_hidden"] = Close(x)
    return outputs


NEEDS = "hidden wq wk attn_scale visual_start visual_len keep_list pruning_layers v2 "


@kind("sparsevlm_v15", needs=NEEDS + "recycle_fraction out_merged_tokens_stage0")
def sparsevlm_v15(v: Vector) -> Outputs:
    """Fixed counts, recycling, positions renumbered."""
    return sparsevlm(v, "v1.5")


@kind("sparsevlm_v2", needs=NEEDS + "out_keep_mask_stage2")
def sparsevlm_v2(v: Vector) -> Outputs:
    """Attention without the position bias, strongest heads, no recycling."""
    return sparsevlm(v, "v2.0")


@kind("framefusion", needs="hidden patch_type attn_by_token cost similarity_lower_bound num_steps")
def framefusion(v: Vector) -> Outputs:
    """All steps, identity in between."""
    x, patch, original = v["hidden"], v["patch_type"], torch.arange(len(v["hidden"]))
    method = FrameFusion(
        policy="official",
        retention_ratio=v["cost"],
        tau=v["similarity_lower_bound"],
        least_merged=v["ratio_lower_bound"],
    )
    tokens, memory, outputs = int((patch >= 0).sum()), dict[str, Any](), Outputs()
    lengths, merging_done, pruning_done = [len(x)], [], []
    for step in range(-1, v["num_steps"]):
        state = InnerState(
            point=step,
            layer=max(0, step - 1),
            n_layers=v["num_layers_constant"],
            hidden=x,
            visual=patch != -1,
            attention=v["attn_by_token"][:, None, original] if step > 0 else None,
            frame=(patch >= 0).long().cumsum(0) // v["patch_num"],
            patch=patch,
            entered=tokens,
            uncompressed=tokens,
            memory=memory,
        )
        if step < 0:
            method.inner_start(state)
            continue
        done = method.merge_inner(state)
        if done is not None:
            x = x[done.index] if done.hidden is None else done.hidden
            patch, original = patch[done.index], original[done.index]
        progress: Progress = memory["framefusion"]
        outputs[f"out_kept_index_step{step}"] = original
        outputs[f"out_hidden_step{step}"] = x
        lengths.append(len(x))
        merging_done.append(not progress.merging or progress.finished)
        pruning_done.append(progress.finished)
    return outputs | {
        "out_lengths": torch.tensor(lengths),
        "out_sparsity_list": torch.tensor(progress.sparsity, dtype=torch.float64),
        "out_finish_merging": torch.tensor(merging_done),
        "out_finish_pruning": torch.tensor(pruning_done),
    }
