"""Golden vectors of the methods that prune behind the projector: EVS, VidCom2, VisionZip.

Imported by ``tests.parity``, which holds the framework and the command line.
"""

from __future__ import annotations

import torch
from torch import Tensor

from earlytom.method import Method
from earlytom.methods import EVS, VidCom2
from earlytom.ops.contextual import Zipped, zip_frames
from earlytom.ops.select import top_per_frame
from earlytom.stages import VideoFeatures, VideoState
from tests.parity import Close, Copied, Outputs, Vector, column_means, kind, pool

TEXT_BEFORE, TEXT_AFTER, VISION_START, VISION_END, VIDEO = 1, 2, 900, 901, 902


def kept(method: Method, features: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
    """What the engine does at stage II: features ``[T, S, D]`` -> ``[T, S]`` bool."""
    n, size = features.shape[:2]
    video = VideoFeatures(features, None, grid or (1, size), VideoState.start(n))
    chosen = method.select_tokens(video)
    if chosen is None:
        return torch.ones(n, size, dtype=torch.bool)
    assert (chosen.index.diff() > 0).all()
    assert chosen.features is None
    return torch.zeros(n * size, dtype=torch.bool).index_fill(0, chosen.index, True).view(n, size)


def qwen_grid(v: Vector) -> tuple[int, int, int]:
    """(frames, height, width) of the merged tokens."""
    n, height, width = v["thw"].tolist()
    return n, height // v["spatial_merge_size"], width // v["spatial_merge_size"]


def qwen_mask(method: Method, v: Vector) -> Tensor:
    """Kept tokens of a flat Qwen video, ``[T, S]``."""
    n, *grid = qwen_grid(v)
    return kept(method, v["features"].unflatten(0, (n, -1)), (grid[0], grid[1]))


# ---------------------------------------------------------------------- EVS
@kind(
    "evs",
    needs="features thw spatial_merge_size q text_before text_after tokens_per_second "
    "second_per_grid",
)
def evs(v: Vector) -> Outputs:
    """EVS in vLLM, and the positions that vLLM gives to what is left."""
    mask = qwen_mask(EVS(policy="official", retention_ratio=1 - v["q"]), v).flatten()
    n, height, width = qwen_grid(v)
    seconds = v["tokens_per_second"] * v["second_per_grid"]
    frame = (torch.arange(n) * seconds).long()
    place = torch.cartesian_prod(frame, torch.arange(height), torch.arange(width))[mask]
    count, before, after = len(place), v["text_before"], v["text_after"]
    ids = [TEXT_BEFORE] * before + [VISION_START] + [VIDEO] * count
    ids += [VISION_END] + [TEXT_AFTER] * after
    start = before + 1  # of the video; the text behind it continues from its full width
    text = torch.arange(after + 1) + start + width
    positions = torch.cat([torch.arange(start).expand(3, -1), place.T + start], dim=1)
    positions = torch.cat([positions, text.expand(3, -1)], dim=1)
    return {
        "out_mask": mask,
        "out_n_retained": mask.sum(),
        "out_media_positions": torch.cat([place, torch.full((count, 1), width)], dim=1),
        "out_prompt_ids": torch.tensor(ids),
        "out_prompt_positions": positions,
        "out_mrope_delta": positions.max() + 1 - len(ids),
    }


# ---------------------------------------------------------------------- VidCom2
@kind("vidcom2_vllm", needs="features thw spatial_merge_size q")
def vidcom2_vllm(v: Vector) -> Outputs:
    """VidCom2 as in vLLM: an exact count."""
    mask = qwen_mask(VidCom2(policy="vllm", retention_ratio=1 - v["q"]), v)
    return {
        "out_mask": mask.flatten(),
        "out_n_retained": mask.sum(),
        "out_frame_counts": mask.sum(1),
    }


@kind("vidcom2", needs="features model base_scale")
def vidcom2(v: Vector) -> Outputs:
    """VidCom2, reference repository; LLaVA-Video appends the newlines of a frame to its tokens."""
    features = v["features"]
    mask = kept(VidCom2(policy="official", retention_ratio=v["base_scale"]), features)
    rows, index, counts = features.flatten(0, 1), mask.flatten().nonzero().flatten(), mask.sum(1)
    if v["model"] == "llava_vid":
        rows, side = v["grid_features"], 13
        counts = counts + side
        newlines = torch.arange(side) * (side + 1) + side
        index = torch.cat(
            [
                torch.cat([patch + patch // side, newlines]) + t * side * (side + 1)
                for t, patch in enumerate(row.nonzero().flatten() for row in mask)
            ]
        )
    return {
        "out_flat_index": index,
        "out_tokens": Copied(rows[index]),
        "out_frame_counts": counts,
    }


# ---------------------------------------------------------------------- VisionZip
def official_order(zipped: Zipped, frames: int) -> Close:
    """Dominant tokens in front of contextual ones in every frame; the former bit-equal."""
    dominant = zipped.dominant.view(frames, -1)
    order = (~dominant).byte().sort(dim=1, stable=True).indices
    tokens = zipped.features.unflatten(0, (frames, -1))
    tokens = tokens.gather(1, order[..., None].expand_as(tokens))
    return Close(tokens, copied=dominant.gather(1, order))


@kind("visionzip", needs="features attn metric spatial_tokens dominant_ratio pool")
def visionzip(v: Vector) -> Outputs:
    """VisionZip, adaptation to SigLIP."""
    features, score, keys = v["features"], v["attn"], v["metric"]
    outputs: Outputs = {}
    if v["pool"]:
        features, keys, score = pool(features), pool(keys), pool(score[..., None])[..., 0]
        outputs["out_pooled_features"] = Close(features, 2e-4, 2e-4)
        outputs["out_pooled_metric"] = Close(keys, 2e-4, 2e-4)
        outputs["out_pooled_attn"] = column_means(score)
    n, dominant = features.shape[0], int(v["spatial_tokens"] * v["dominant_ratio"])
    contextual = v["spatial_tokens"] - dominant
    zipped = zip_frames(features, score, keys, [dominant] * n, [contextual] * n, average=False)
    tokens = official_order(zipped, n)
    if v["pool"]:
        tokens = Close(tokens.value, 2e-4, 2e-4)
    index = zipped.index[zipped.dominant] % features.shape[1]
    return outputs | {
        "out_tokens": tokens,
        "out_dominant_index": index.view(n, dominant),
        "out_dominant_num": torch.tensor(dominant),
        "out_contextual_num": torch.tensor(contextual),
    }


@kind("visionzip_clip", needs="features attn_cls_row metric dominant_num contextual_num")
def visionzip_clip(v: Vector) -> Outputs:
    """VisionZip, original: the attention of the CLS token, which is kept as well."""
    features, score = v["features"], v["attn_cls_row"].sum(1)
    score[:, 0] = torch.inf
    n, dominant, contextual = features.shape[0], v["dominant_num"] + 1, v["contextual_num"]
    zipped = zip_frames(
        features, score, v["metric"], [dominant] * n, [contextual] * n, average=False
    )
    ranked = score.sort(dim=1, descending=True, stable=True).indices[:, :dominant]
    mask = top_per_frame(score, [dominant] * n)
    assert torch.equal(mask, torch.zeros_like(mask).scatter(1, ranked, True))
    return {
        "out_tokens": official_order(zipped, n),
        "out_dominant_index_by_attention": ranked,
    }
