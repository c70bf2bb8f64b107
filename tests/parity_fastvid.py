"""Golden vectors of FastVID. Imported by ``tests.parity``, which holds the framework."""

from __future__ import annotations

import torch

from earlytom.methods import FastVID
from earlytom.ops.anchors import cut_frames, probe_attention
from earlytom.stages import VideoFeatures, VideoState
from tests.parity import Close, Outputs, Vector, column_means, kind, pool


@kind("fastvid", needs="features frame_attn frame_vectors dyseg_c dyseg_tau stprune_d dtm_p")
def fastvid(v: Vector) -> Outputs:
    """FastVID, LLaVA-OneVision version: the whole prompt, position ids are original places."""
    features, vectors = v["features"], v["frame_vectors"]
    n, size = features.shape[:2]
    method = FastVID(
        policy="official",
        retention_ratio=v["retention_ratio"],
        segments=v["dyseg_c"],
        tau=v["dyseg_tau"],
        context_share=v["stprune_d"],
        anchor_step=v["dtm_p"],
        beta=v["dtm_beta"],
    )
    state = VideoState.start(n)
    chosen = method.select_tokens(
        VideoFeatures(
            features, None, (1, size), state, frame_vectors=vectors, probe=v["frame_attn"]
        )
    )
    assert chosen is not None
    assert chosen.features is not None
    index, values = chosen.index, chosen.features
    before, after = v["text_before"], v["text_after"]
    own = features.flatten(0, 1)[index]
    changed = (values - own).abs().amax(1) > 1e-3
    similar = torch.cosine_similarity(vectors[:-1], vectors[1:], dim=1).numpy()
    groups = cut_frames(similar, v["dyseg_c"], v["dyseg_tau"])
    start = torch.arange(len(before))
    behind = torch.arange(len(after)) + len(before) + n * size
    text = torch.ones(len(before), dtype=torch.bool), torch.ones(len(after), dtype=torch.bool)
    return {
        "out_hidden": Close(
            torch.cat([before, values, after]), copied=torch.cat([text[0], ~changed, text[1]])
        ),
        "out_kept_index": torch.cat([start, index + len(before), behind]),
        "out_video_index": torch.stack([index // size, index % size], 1),
        "out_frame_counts": (index // size).bincount(minlength=n),
        "out_is_merged": changed,
        "out_segment_sizes": torch.tensor([b - a + 1 for a, b in groups]),
    }


@kind("fastvid_head", needs="features num_heads layer_norm_eps w:probe w:post_layernorm.weight")
def fastvid_head(v: Vector) -> Outputs:
    """The attention-pooling head of SigLIP (transformers) and the attention of its probe."""
    from transformers import SiglipVisionConfig
    from transformers.models.siglip.modeling_siglip import SiglipMultiheadAttentionPoolingHead

    dim, eps = v["features"].shape[-1], v["layer_norm_eps"]
    config = SiglipVisionConfig(
        hidden_size=dim,
        intermediate_size=v["w:mlp.fc1.weight"].shape[0],
        num_attention_heads=v["num_heads"],
        layer_norm_eps=eps,
        hidden_act="gelu_pytorch_tanh",
    )
    weights = {k[2:]: w for k, w in v.items() if k.startswith("w:")}
    norm = [weights.pop(f"post_layernorm.{k}") for k in ("weight", "bias")]
    head = SiglipMultiheadAttentionPoolingHead(config).eval()
    head.load_state_dict(weights)
    hidden = torch.nn.functional.layer_norm(v["features"], (dim,), *norm, eps)
    inner = head.attention
    attention = probe_attention(
        hidden, head.probe, inner.in_proj_weight, inner.in_proj_bias, inner.num_heads
    )
    return {
        "out_frame_vectors": Close(head(hidden)),
        "out_probe_attn": column_means(attention),
        "out_pooled_attn": column_means(pool(attention[..., None])[..., 0]),
    }
