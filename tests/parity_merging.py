"""Kinds of golden vectors of the merging methods: HoliTom, DyCoke, PruneVid, PruMerge."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from earlytom.methods import DyCoke, HoliTom, PruMerge, PruneVid
from earlytom.methods.prunevid import token_groups
from earlytom.ops.cluster import contiguous_labels
from earlytom.ops.neighbours import by_score, merge_neighbours, outlier_share
from earlytom.ops.pairwise import decode_step, least_similar
from tests.parity import Close, Copied, Outputs, Vector, column_means, kind, pool


def places(index: Tensor, size: int) -> Tensor:
    return torch.stack([index // size, index % size], dim=1)


@kind("holitom", needs="features attn tau retain_ratio beta k max_window no_beta pool")
def holitom(v: Vector) -> Outputs:
    """Outer part, in the released order: per window static tokens, then dynamic ones by frame."""
    x, received, outputs = v["features"], v["attn"], Outputs()
    if v["pool"]:
        x, received = pool(x), pool(received[..., None])[..., 0]
        outputs["out_pooled_features"] = Close(x, 2e-4, 2e-4)
        outputs["out_pooled_attn"] = column_means(received)
    size = x.shape[1]
    method = HoliTom(
        policy="official",
        retention_ratio=v["retain_ratio"],
        tau=v["tau"],
        beta=None if v["no_beta"] else v["beta"],
        neighbours=v["k"],
        max_window=v["max_window"],
    )
    windows, _ = method.find_windows(x)
    static, dynamic = method.counts(windows, size, 0)
    _, values, _ = method.static_tokens(x, windows, static)
    index = method.dynamic_tokens(received, windows, dynamic)
    of_window = [sum(dynamic[a : b + 1]) for a, b in windows.groups]
    tokens, index_rows = [], []
    copied = zip(x.flatten(0, 1)[index].split(of_window), index.split(of_window), strict=True)
    for merged, (copies, where) in zip(values.split(static), copied, strict=True):
        tokens += [merged, copies]
        index_rows += [torch.full((len(merged), 2), -1), places(where, size)]
    rows = torch.cat(index_rows)
    atol = 2e-4 if v["pool"] else 1e-4
    return outputs | {
        "out_tokens": Close(torch.cat(tokens), atol, atol, None if v["pool"] else rows[:, 0] >= 0),
        "out_index": rows,
        "out_n_tokens": torch.tensor(len(rows)),
        "out_windows": torch.tensor(windows.groups),
        "out_total_reduced": torch.tensor(windows.removed),
        "out_rate": torch.tensor(method.official_rate(windows, size), dtype=torch.float64),
        "out_static_per_window": torch.tensor(windows.n_static),
        "out_tokens_per_window": torch.tensor(static) + torch.tensor(of_window),
    }


@kind("dycoke", needs="features k")
def dycoke(v: Vector) -> Outputs:
    """Temporal token merging, in the released order inside a frame."""
    x = v["features"]
    method = DyCoke(policy="official", merge_ratio=v["k"])
    reference, counts = method.official_counts(*x.shape[:2])
    index = least_similar(x, reference, counts)
    return {
        "out_tokens": Copied(x.flatten(0, 1)[index]),
        "out_index": places(index, x.shape[1]),
        "out_frame_counts": torch.tensor(counts),
    }


@kind("dycoke_dp", needs="attn_rows visual_start visual_len prompt_len p similarity_threshold")
def dycoke_dp(v: Vector) -> Outputs:
    """Which keys every decode step reads."""
    outputs, previous, similar, pruned = Outputs(), None, [], []
    for step, row in enumerate(v["attn_rows"]):
        row = row[:, : v["prompt_len"] + 1 + step]
        keep, previous, similarity = decode_step(
            row, previous, v["visual_start"], v["visual_len"], v["p"], v["similarity_threshold"]
        )
        outputs[f"out_keep_mask_step{step}"] = keep
        similar.append(similarity)
        pruned.append(similarity < v["similarity_threshold"])
    outputs["out_similarity"] = torch.stack(similar)
    outputs["out_pruned_this_step"] = torch.stack(pruned)
    return outputs


@kind("prunevid", needs="features tau cluster_ratio temporal_segment_ratio k_frames k_tokens")
def prunevid(v: Vector) -> Outputs:
    """Stage 1, in the released order: per segment static tokens, then dynamic ones by frame."""
    x = v["features"]
    settings = {
        "policy": "official",
        "tau": v["tau"],
        "cluster_ratio": v["cluster_ratio"],
        "temporal_segment_ratio": v["temporal_segment_ratio"],
    }
    raw = PruneVid(**settings, neighbours=v["k_frames"]).frame_labels(x)
    labels = contiguous_labels(raw)
    method = PruneVid(**settings, neighbours=v["k_tokens"])
    windows = method.find_windows(x, labels)
    _, rows, _, sizes = token_groups(x, windows)
    tokens, _ = method.cluster(rows, sizes, None).means(rows)
    return {
        "out_tokens": tokens,
        "out_frame_labels_raw": torch.tensor(raw),
        "out_frame_labels_refined": torch.tensor(labels),
        "out_segment_lengths": torch.tensor([len(list(g)) for _, g in itertools.groupby(labels)]),
    }


@kind(
    "prumerge", needs="features q k plus adaptive reduction_ratio grid_upper_bound num_neighbours"
)
def prumerge(v: Vector) -> Outputs:
    """PruMerge and PruMerge+ with their single-head class attention, in the released order."""
    x, q, k = v["features"], v["q"], v["k"]
    attention = torch.softmax((q[:, :1] @ k.mT) * x.shape[2] ** -0.5, dim=-1)[:, 0, 1:]
    score = attention.numpy()
    share = outlier_share(score) if v["adaptive"] else v["reduction_ratio"]
    method = PruMerge(
        policy="official",
        retention_ratio=v["reduction_ratio"],
        plus=bool(v["plus"]),
        adaptive=bool(v["adaptive"]),
        neighbours=v["num_neighbours"],
    )
    kept = method.official_places(by_score(score), score, v["grid_upper_bound"])
    values, extra = merge_neighbours(x, k[:, 1:], attention, kept, v["num_neighbours"])
    tokens = torch.cat([values.view(len(kept), -1, x.shape[2]), extra[:, None]], dim=1)
    return {
        "out_tokens": tokens,
        "out_index": torch.tensor(kept),
        "out_ratio_used": torch.tensor(share, dtype=torch.float64),
    }
