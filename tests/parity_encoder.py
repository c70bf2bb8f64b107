"""Golden vectors of the methods that reduce patch tokens inside the encoder.

ToMe, PiToMe, FiCoCo-V and the spatial merging of MustDrop. Imported by ``tests.parity``, which
holds the framework and the command line.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from earlytom.ops.bipartite import match_halves
from earlytom.ops.correlate import joined_heads
from earlytom.ops.correlate_released import ScoreGrid, released_layer
from earlytom.ops.energy import match_by_energy
from earlytom.ops.grouping import Grouping
from earlytom.ops.schedule import parse_rate
from earlytom.ops.spatial import match_windows, window_patches, window_similarity
from tests.parity import Outputs, Vector, kind


def membership(target: Tensor, m: int) -> Tensor:
    """``[B, n]`` targets -> 0/1 matrix ``[B, m, n]``."""
    return F.one_hot(target, m).mT


def sizes(v: Vector) -> Tensor:
    x = v["x"]
    return v["size"][..., 0] if "size" in v else torch.ones(x.shape[:2])


def behind_class_token(group: Grouping) -> Grouping:
    """Put a class token in front of a reduction of the other tokens."""
    first = torch.zeros_like(group.kept[:, :1])
    return Grouping(torch.cat([first, group.kept + 1], dim=1), group.source + 1, group.into + 1)


# ---------------------------------------------------------------------- ToMe
@kind("tome", needs="x metric r class_token distill_token")
def tome(v: Vector) -> Outputs:
    """One bipartite matching; more than half cannot be merged."""
    x = v["x"]
    protected = v["class_token"] + v["distill_token"]
    r = min(v["r"], (x.shape[1] - protected) // 2)
    group = match_halves(v["metric"], r, protected)
    out, size = group.merge(x, sizes(v))
    return {
        "out_x": out,
        "out_size": size[..., None],
        "out_source": membership(group.target(x.shape[1]), out.shape[1]),
    }


@kind("tome_vit", needs="x num_blocks num_heads r inflection prop_attn class_token layer_norm_eps")
def tome_vit(v: Vector) -> Outputs:
    """ToMe in a small ViT, between attention and MLP of every block."""
    x, heads, eps = v["x"], v["num_heads"], v["layer_norm_eps"]
    size = torch.ones(x.shape[:2])
    owner = torch.arange(x.shape[1]).expand(x.shape[:2])
    schedule, counts = parse_rate(v["num_blocks"], v["r"], v["inflection"]), []
    for block, rate in enumerate(schedule):

        def w(name: str, block: int = block) -> tuple[Tensor, Tensor]:
            prefix = f"w:{block}.{name}."
            return v[prefix + "weight"], v[prefix + "bias"]

        def norm(x: Tensor, name: str, w=w) -> Tensor:  # type: ignore[no-untyped-def]
            return F.layer_norm(x, x.shape[-1:], *w(name), eps)

        qkv = F.linear(norm(x, "norm1"), *w("attn.qkv")).unflatten(-1, (3, heads, -1))
        q, k, value = qkv.permute(2, 0, 3, 1, 4)
        bias = size.log()[:, None, None] if v["prop_attn"] else None
        mixed = F.scaled_dot_product_attention(q, k, value, bias)
        x = x + F.linear(mixed.transpose(1, 2).flatten(2), *w("attn.proj"))
        protected = int(v["class_token"])
        r = min(rate, (x.shape[1] - protected) // 2)
        group = match_halves(k.mean(1), r, protected)
        owner = group.target(x.shape[1]).gather(1, owner)
        x, size = group.merge(x, size)
        counts.append(x.shape[1])
        x = x + F.linear(F.gelu(F.linear(norm(x, "norm2"), *w("mlp.0"))), *w("mlp.2"))
    return {
        "out_x": x,
        "out_size": size[..., None],
        "out_source": membership(owner, x.shape[1]),
        "out_r_schedule": torch.tensor(schedule),
        "out_token_counts": torch.tensor(counts),
    }


# ---------------------------------------------------------------------- PiToMe
@kind("pitome", needs="x metric ratio margin alpha class_token use_bsm use_bsm_pitome")
def pitome(v: Vector) -> Outputs:
    """One matching by energy, or one of its two variants."""
    x, metric, first = v["x"], v["metric"], int(v["class_token"])
    n = x.shape[1] - first
    r = int(n - n * v["ratio"])
    if v["use_bsm"]:
        group = match_halves(metric, r, first)
    else:
        group = match_by_energy(
            metric[:, first:],
            r,
            v["margin"],
            v["alpha"],
            shifted=True,
            every_edge=v["use_bsm_pitome"],
        )
        if first:
            group = behind_class_token(group)
    out, size = group.merge(x, sizes(v))
    return {
        "out_x": out,
        "out_size": size[..., None],
        "out_x_mean": group.merge(x, torch.ones(x.shape[:2]))[0],
        "out_source": membership(group.target(x.shape[1]), out.shape[1]),
    }


# ---------------------------------------------------------------------- FiCoCo
@kind("ficoco_v", needs="hidden wq wk scale r num_layers beta quantile")
def ficoco_v(v: Vector) -> Outputs:
    """Layers of FiCoCo-V, each on what the one before left; a grid of 24 x 24."""
    x, outputs = v["hidden"][None], {}
    grid = ScoreGrid(1, (24, 24), x.device)
    for layer in range(v["num_layers"]):
        query, key = joined_heads(x[:, None] @ v["wq"], x[:, None] @ v["wk"], v["scale"])
        done = released_layer(x, query, key, v["r"], grid, v["beta"], v["quantile"])
        x = done.hidden
        outputs |= {
            f"out_discarded_{layer}": done.discarded[0],
            f"out_remaining_{layer}": done.remaining[0],
            f"out_targets_{layer}": done.targets[0],
            f"out_hidden_{layer}": done.hidden[0],
            f"out_size_{layer}": done.size[0],
        }
    return outputs


# ---------------------------------------------------------------------- MustDrop
@kind("mustdrop", needs="hidden window spatial_threshold retained_tokens")
def mustdrop(v: Vector) -> Outputs:
    """Spatial merging: windows above a threshold, or a fixed number of them."""
    first, x = v["hidden"][:, :1], v["hidden"][:, 1:]
    n, side = x.shape[1], int(x.shape[1] ** 0.5)
    a, b = v["window"].tolist()
    patches = window_patches((side, side), (a, b), x.device)
    similarity = window_similarity(x, patches)
    count = int((similarity >= v["spatial_threshold"]).sum(1).min())
    if v["retained_tokens"]:
        count = (n - v["retained_tokens"]) // (a * b - 1)
    ones = torch.ones(x.shape[:2])
    group = match_windows(similarity, patches, n, count)
    out, size = group.merge(x, ones)
    return {
        "out_hidden": torch.cat([first, out], dim=1),
        "out_size": torch.cat([ones[:, :1], size], dim=1)[..., None],
        "out_index_mask": torch.zeros_like(ones, dtype=torch.bool).scatter(1, group.kept, True),
        "out_n_windows_merged": torch.tensor(count),
    }
