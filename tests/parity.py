"""Check golden vectors against this package: ``python tests/parity.py FILE.npz... [--json]``.

A vector is a ``.npz`` of inputs, hyper-parameters and ``out_*`` arrays that the official code
produced (format: docs of the golden vectors). Every ``out_*`` array must be reproduced. One line is
printed per output with its largest error; the exit status is 1 if anything differs, is missing or
cannot be read.

A kind of vector is one function, registered with the arrays that its files have::

    @kind("dycoke", needs="features k")
    def dycoke(v: Vector) -> Outputs:
        return {"out_tokens": Copied(...), "out_index": ...}

Tolerances: integers, bools and shapes exact, ``Copied`` tensors bit-equal, else 1e-4 absolute and
relative unless the function says otherwise with ``Close``. The function returns exactly the
``out_*`` arrays that its files must have: one that a file lacks is a failure too.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from earlytom.methods import EarlyTom
from earlytom.ops.plan import MergePlan
from earlytom.ops.received import received_attention
from earlytom.stages import VideoFeatures, VideoState


# ---------------------------------------------------------------------- framework
class Vector(dict[str, Any]):
    """The arrays of one file: tensors, 0-d arrays as Python values."""

    def __init__(self, path: Path) -> None:
        with np.load(path, allow_pickle=False) as data:
            arrays = {name: data[name] for name in data.files}
        super().__init__(
            (k, a.item() if a.ndim == 0 and not k.startswith("out_") else _tensor(a))
            for k, a in arrays.items()
            if not k.startswith("meta_")
        )

    @property
    def expected(self) -> dict[str, Any]:
        return {k: a for k, a in self.items() if k.startswith("out_")}


def _tensor(array: np.ndarray) -> Any:
    return torch.from_numpy(np.array(array)) if array.dtype.kind in "biuf" else array


@dataclass(frozen=True)
class Close:
    """A float output with its own tolerances; ``copied [rows] bool`` must be bit-equal."""

    value: Tensor
    atol: float = 1e-4
    rtol: float = 1e-4
    copied: Tensor | None = None


def Copied(value: Tensor) -> Close:
    """A float output that must be bit-equal."""
    return Close(value, 0.0, 0.0)


def column_means(value: Tensor) -> Close:
    """Attention column means: 1e-5 absolute."""
    return Close(value, 1e-5, 0.0)


Outputs = dict[str, Any]
KINDS: dict[str, tuple[frozenset[str], Callable[[Vector], Outputs]]] = {}


def kind(name: str, needs: str) -> Callable[..., Any]:
    """Register a function for files that have the arrays ``needs`` (blank separated)."""

    def register(function: Callable[[Vector], Outputs]) -> Callable[[Vector], Outputs]:
        KINDS[name] = (frozenset(needs.split()), function)
        return function

    return register


def find_kind(path: Path, vector: Vector) -> str:
    """Return the kind named by the file if its arrays fit, else the one whose arrays fit best."""
    fitting = [name for name, (needs, _) in KINDS.items() if needs <= vector.keys()]
    named = [name for name in fitting if path.name.startswith(name + "_")]
    if named:
        return max(named, key=len)
    most = max((len(KINDS[name][0]) for name in fitting), default=0)
    best = [name for name in fitting if len(KINDS[name][0]) == most]
    if len(best) != 1:
        found = f"could be any of {', '.join(best)}" if best else "its arrays fit none"
        raise ValueError(f"unknown kind of vector ({found}; known: {', '.join(sorted(KINDS))})")
    return best[0]


def compare(expected: Any, actual: Any) -> tuple[float, str]:
    """Return the largest absolute error and what is wrong, or an empty string."""
    spec = actual if isinstance(actual, Close) else Close(torch.as_tensor(actual))
    want, got = torch.as_tensor(expected), spec.value
    if want.shape != got.shape:
        return math.inf, f"shape {tuple(got.shape)} instead of {tuple(want.shape)}"
    if not want.is_floating_point():
        if got.is_floating_point():
            return math.inf, f"dtype {got.dtype} instead of {want.dtype}"
        wrong = int((want.long() != got.long()).sum())
        return float(wrong), f"{wrong} of {want.numel()} values differ" if wrong else ""
    want, got = want.double(), got.double()
    error = (want - got).abs()
    largest = float(error.max()) if error.numel() else 0.0
    # written so that NaN counts as wrong
    outside = int((~(error <= spec.atol + spec.rtol * want.abs())).sum())
    if outside:
        return largest, f"{outside} of {want.numel()} values beyond tolerance"
    if spec.copied is not None and not torch.equal(want[spec.copied], got[spec.copied]):
        return largest, "a copied row is not bit-equal"
    return largest, ""


def check_file(path: Path) -> dict[str, Any]:
    """Check one file; never raises. ``problems`` is empty if all is well."""
    result: dict[str, Any] = {"file": str(path), "kind": None, "outputs": {}, "problems": []}
    try:
        vector = Vector(path)
        result["kind"] = find_kind(path, vector)
        if not vector.expected:
            raise ValueError("the file has no out_* array to compare with")
        with torch.no_grad():
            outputs = KINDS[result["kind"]][1](vector)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as e:
        result["problems"].append(f"{type(e).__name__}: {e}")
        return result
    except Exception as e:  # a crash of the code under test is a finding, not an abort
        result["problems"].append(f"crashed with {type(e).__name__}: {e}")
        return result
    for name in sorted(outputs.keys() - vector.expected.keys()):
        result["problems"].append(f"{name}: missing in the file")
    for name, want in vector.expected.items():
        if name not in outputs:
            result["problems"].append(f"{name}: not produced")
            continue
        error, problem = compare(want, outputs[name])
        result["outputs"][name] = {"max_error": error, "ok": not problem}
        if problem:
            result["problems"].append(f"{name}: {problem}")
    return result


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Check golden vectors against earlytom.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.npz")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead")
    options = parser.parse_args(arguments)
    results = [check_file(path) for path in options.files]
    failed = sum(bool(r["problems"]) for r in results)
    if options.json:
        print(json.dumps({"files": len(results), "failed": failed, "results": results}))
        return int(failed > 0)
    for r in results:
        print(f"{'FAIL' if r['problems'] else 'ok  '} {r['file']} [{r['kind'] or '?'}]")
        for name, out in r["outputs"].items():
            print(f"       {'ok  ' if out['ok'] else 'FAIL'} {name}: {out['max_error']:.3g}")
        for problem in r["problems"]:
            print(f"       {problem}")
    print(f"{len(results) - failed} of {len(results)} files match")
    return int(failed > 0)


# ---------------------------------------------------------------------- EarlyTom
def official(v: Vector, **settings: Any) -> EarlyTom:
    """Build the method that a vector describes."""
    if "tau" in v:
        fuse = {"naive_mixing": "average"}.get(v["mode"], "weighted")
        settings |= {"tau": v["tau"], "ema": v["ema"], "max_window": v["max_window"], "fuse": fuse}
    if "retain_ratio" in v:
        settings["retention_ratio"] = v["retain_ratio"]
    if "merge_layers" in v:
        settings["merge_layers"] = tuple(v["merge_layers"].tolist())
    return EarlyTom(policy="official", **settings)


def merge_at(
    method: EarlyTom, x: Tensor, state: VideoState, point: int, layer: int
) -> tuple[Tensor, MergePlan]:
    """Do at one merge point what the engine does."""
    plan = method.merge_frames(x, state, point, x.shape[1])
    plan = MergePlan.identity(x.shape[0], ((0, x.shape[0] - 1),)) if plan is None else plan
    x = plan.apply(x)
    state.apply(plan, layer)
    method.finish_frames(x, state, point)
    return x, plan


def copied_rows(weights: Tensor) -> Tensor:
    return (weights == 1).any(dim=1)


@kind("earlytom_s1", needs="frames attn tau ema max_window mode last_layer")
def stage_one(v: Vector) -> Outputs:
    """One call of stage I."""
    x, last = v["frames"], bool(v["last_layer"])
    attention = v["attn"] if v["attn"].dim() == 4 else v["attn"][:, None]
    colmean = attention.mean(dim=(1, 2))
    state = VideoState.start(x.shape[0])
    state.received = colmean if last else None
    out, plan = merge_at(official(v, merge_layers=(0,) if last else (0, 1)), x, state, 0, 0)
    weights = plan.dense()
    return {
        "out_frames": Close(out, copied=copied_rows(weights)),
        "out_attn_colmean": column_means(plan.apply(colmean)),
        "out_merge_weights": weights,
        "out_merge_groups": torch.tensor(plan.groups),
        "out_groups": torch.tensor(state.groups if last else plan.groups),
    }


def run_encoder(
    v: Vector,
    x: Tensor,
    layer: Callable[[int, Tensor], Tensor],
    query_key: Callable[[int, Tensor], tuple[Tensor, Tensor, float]],
) -> tuple[Tensor, VideoState, EarlyTom]:
    """Run stage I inside an encoder, as the engine does."""
    method = official(v)
    points = method.merge_points(v["num_layers"])
    score_layer = method.score_layer(v["num_layers"])
    state = VideoState.start(x.shape[0])
    for number in range(v["num_layers"]):
        if number == score_layer:
            state.received = received_attention(*query_key(number, x))
        x = layer(number, x)
        if number in points:
            x, _ = merge_at(method, x, state, points.index(number), number)
    return x, state, method


def run_identity_encoder(v: Vector) -> tuple[Tensor, VideoState, EarlyTom]:
    """Identity layers whose attention is softmax(attn_scale (x wq)(x wk)^T)."""

    def query_key(number: int, x: Tensor) -> tuple[Tensor, Tensor, float]:
        x = x[:, None]
        return x @ v["wq"], x @ v["wk"], v["attn_scale"]

    return run_encoder(v, v["frames"], lambda number, x: x, query_key)


def encoder_outputs(x: Tensor, state: VideoState, atol: float) -> Outputs:
    assert state.received is not None
    return {
        "out_encoder_frames": Close(x, atol, atol),
        "out_attn_colmean": column_means(state.received),
        "out_groups": torch.tensor(state.groups),
        "out_n_frames_after": torch.tensor([p.n_output for p in state.plans]),
    }


@kind("earlytom_chain", needs="frames wq wk attn_scale merge_layers num_layers tau")
def chain(v: Vector) -> Outputs:
    """Stage I at several merge points."""
    x, state, _ = run_identity_encoder(v)
    outputs = encoder_outputs(x, state, 1e-4)
    outputs["out_frames"] = outputs.pop("out_encoder_frames")
    for k, plan in enumerate(state.plans):
        outputs[f"out_merge_groups_{k}"] = torch.tensor(plan.groups)
        outputs[f"out_merge_weights_{k}"] = plan.dense()
    return outputs


def pool(x: Tensor) -> Tensor:
    """Bilinear 2x pooling of square frames ``[N, S, D]``, as LLaVA-OneVision does."""
    side = math.isqrt(x.shape[1])
    image = x.transpose(1, 2).unflatten(2, (side, side))
    image = F.interpolate(image, size=(math.ceil(side / 2),) * 2, mode="bilinear")
    return image.flatten(2).transpose(1, 2)


def stage_two_outputs(
    method: EarlyTom, features: Tensor, received: Tensor, state: VideoState
) -> Outputs:
    size = features.shape[1]
    chosen = method.select_tokens(VideoFeatures(features, received, (1, size), state))
    rows = features.flatten(0, 1)
    index = torch.arange(rows.shape[0]) if chosen is None else chosen.index
    return {
        "out_tokens": Copied(rows[index]),
        "out_index": torch.stack([index // size, index % size], dim=1),
        "out_n_tokens": torch.tensor(index.numel()),
    }


def after_encoder(
    x: Tensor, state: VideoState, method: EarlyTom, frame_atol: float, atol: float
) -> Outputs:
    """Pooling and stage II."""
    assert state.received is not None
    outputs = encoder_outputs(x, state, frame_atol)
    features, received = pool(x), pool(state.received[..., None])[..., 0]
    outputs |= stage_two_outputs(method, features, received, state)
    outputs["out_tokens"] = Close(outputs["out_tokens"].value, atol, atol)
    outputs["out_pooled_features"] = Close(features, atol, atol)
    outputs["out_pooled_attn"] = column_means(received)
    return outputs


@kind("earlytom_full", needs="frames wq wk attn_scale merge_layers num_layers tau retain_ratio")
def full(v: Vector) -> Outputs:
    """Stage I, pooling, stage II."""
    return after_encoder(*run_identity_encoder(v), frame_atol=1e-4, atol=2e-4)


@kind("earlytom_enc", needs="embeddings num_layers num_heads layer_norm_eps merge_layers tau")
def encoder(v: Vector) -> Outputs:
    """The same with real SigLIP layers (transformers) and the stored weights."""
    from transformers import SiglipVisionConfig
    from transformers.models.siglip.modeling_siglip import SiglipEncoderLayer

    config = SiglipVisionConfig(
        hidden_size=v["embeddings"].shape[-1],
        intermediate_size=v["w:layers.0.mlp.fc1.weight"].shape[0],
        num_attention_heads=v["num_heads"],
        layer_norm_eps=v["layer_norm_eps"],
        hidden_act=v["hidden_act"],
    )
    config._attn_implementation = "sdpa"
    layers = []
    for number in range(v["num_layers"]):
        layer = SiglipEncoderLayer(config).eval()
        prefix = f"w:layers.{number}."
        weights = {k.removeprefix(prefix): w for k, w in v.items() if k.startswith(prefix)}
        layer.load_state_dict(weights)
        layers.append(layer)

    def query_key(number: int, x: Tensor) -> tuple[Tensor, Tensor, float]:
        attention = layers[number].self_attn
        x = layers[number].layer_norm1(x)
        heads = [
            project(x).unflatten(-1, (v["num_heads"], -1)).transpose(1, 2)
            for project in (attention.q_proj, attention.k_proj)
        ]
        return heads[0], heads[1], attention.scale

    x, state, method = run_encoder(
        v, v["embeddings"], lambda number, x: layers[number](x, attention_mask=None), query_key
    )
    return after_encoder(x, state, method, frame_atol=1e-3, atol=1e-3)


@kind("earlytom_s2", needs="features attn_colmean groups n_frames_in retain_ratio")
def stage_two(v: Vector) -> Outputs:
    """Stage II on given groups."""
    n = v["features"].shape[0]
    groups = tuple((int(a), int(b)) for a, b in v["groups"])
    # which input frames are gone does not matter here, only how many there were
    state = VideoState(v["n_frames_in"], tuple(range(n)), (1,) * n, groups=groups)
    return stage_two_outputs(official(v), v["features"], v["attn_colmean"], state)


@kind("earlytom_s3", needs="hidden attn_last_row visual_start visual_len merge_ratio")
def stage_three(v: Vector) -> Outputs:
    """Stage III."""
    hidden = v["hidden"][0]
    visual = span(hidden.shape[0], v["visual_start"], v["visual_len"])
    method = EarlyTom(policy="official", inner_merge_layer=2, inner_ratio=1 - v["merge_ratio"])
    merge = method.merge_inner(inner_state(hidden, visual, v["attn_last_row"]))
    if merge is None:
        return {"out_hidden": Copied(hidden[None]), "out_kept_index": torch.arange(len(hidden))}
    out = hidden[merge.index] if merge.hidden is None else merge.hidden
    return {"out_hidden": Close(out[None]), "out_kept_index": merge.index}


# kinds of the other methods; as a script this module must be found as tests.parity, too
if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    sys.modules["tests.parity"] = sys.modules["__main__"]
from tests import parity_encoder, parity_fastvid, parity_inner  # noqa: E402, F401, I001
from tests import parity_merging, parity_pruning, parity_sparse  # noqa: E402, F401
from tests.inner_states import inner_state, span  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
