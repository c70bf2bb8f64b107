"""The vision encoder with its merge points as one pure tensor function of fixed shapes.

It calls the embeddings and layers of the model itself, seen without their hooks: hooks are Python
that a compiler cannot take in, and the merges that they would make are part of the function.
"""

from __future__ import annotations

import copy
import functools
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from earlytom.hf.probe import probe_of
from earlytom.models.base import Adapter
from earlytom.ops.budget import plan_of_first
from earlytom.ops.device_plan import FixedMerge
from earlytom.ops.plan import MergePlan
from earlytom.ops.received import received_attention
from earlytom.ops.similarity import worst_patches
from earlytom.ops.tensors import not_finite
from earlytom.stages import EMBEDDINGS

M = TypeVar("M", bound=nn.Module)
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


class EncoderGraph(nn.Module):
    """The encoder of ``adapter`` for videos of ``frames`` frames, up to the last usable layer.

    It shares all parameters and buffers with the model. ``torch.compile(fullgraph=True,
    dynamic=False)`` and CUDA graphs take it: no shape depends on what a video shows, nothing is
    read by the host, no constant is copied to the device.

    Args:
        adapter: the model.
        merges: what happens after which encoder layer (-1: the patch embeddings); a merge that
            leaves at least as many frames as there are is none.
        frames: frames of every video.
        score_layer: layer whose received attention and keys are results too, or None.
    """

    def __init__(
        self,
        adapter: Adapter,
        merges: Mapping[int, FixedMerge],
        frames: int,
        score_layer: int | None = None,
    ) -> None:
        super().__init__()
        self.frames = frames
        self.embeddings = without_hooks(adapter.embeddings())
        used = adapter.layers[: adapter.usable_layers]
        self.layers = nn.ModuleList(without_hooks(layer) for layer in used)
        self.merges: dict[int, FixedMerge] = {}
        for layer, merge in sorted(merges.items()):
            if merge.target < frames:
                self.merges[layer] = merge
                frames = merge.target
        height, width = adapter.patch_grid or (0, 0)
        self._worst = {
            i: worst_patches(m.worst_share, height * width) for i, m in self.merges.items()
        }
        self.score_layer = score_layer
        self._noted: dict[str, Tensor] = {}
        if score_layer is not None:
            self._attention: Any = adapter.attention(self.layers[score_layer])
            for name in ("q_proj", "k_proj"):
                hook = functools.partial(self._note, name)  # on the view, not on the model
                self._attention.get_submodule(name).register_forward_hook(hook)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Encode ``pixels [videos * frames, 3, height, width]``.

        Returns:
            ``[videos * frames left, patches, dim]`` in the dtype of the model; decisions
            ``[videos, 1 or more]`` int64 for :meth:`read`; of the score layer, if there is one, the
            received attention ``[videos * frames there, patches]`` float32 and the head-mean keys
            ``[videos * frames there, patches, head dim]``.
        """
        hidden = self.embeddings(pixels)
        videos = pixels.shape[0] // self.frames
        counts = torch.ones(videos, self.frames, dtype=torch.int64, device=hidden.device)
        decided: list[Tensor] = []
        signals: tuple[Tensor, ...] = ()
        for i in range(EMBEDDINGS, len(self.layers)):
            if i != EMBEDDINGS:
                hidden = self.layers[i](hidden, None)
            if i == self.score_layer:
                signals = self._signals()
            if i not in self.merges:
                continue
            rows = hidden.unflatten(0, (videos, -1))
            seen = rows.detach()
            norms = torch.linalg.vector_norm(seen, dim=-1, dtype=torch.float32)
            plan = self.merges[i].plan(seen, counts, self._worst[i])
            hidden, counts = plan.apply(rows).flatten(0, 1), plan.counts
            decided += [torch.isfinite(norms).flatten(1).all(1, keepdim=True).long(), plan.first]
        return hidden, torch.cat(decided, 1) if decided else counts[:, :1], signals

    def _note(self, name: str, module: nn.Module, args: Any, output: Tensor) -> None:
        self._noted[name] = output.detach()

    def _signals(self) -> tuple[Tensor, Tensor]:
        heads = (self._attention.num_heads, self._attention.head_dim)
        query, key = (
            self._noted.pop(name).unflatten(-1, heads).transpose(1, 2)
            for name in ("q_proj", "k_proj")
        )
        with torch.no_grad():
            return received_attention(query, key, self._attention.scale), key.mean(1)

    def read(self, decisions: Tensor) -> list[list[tuple[int, MergePlan]]]:
        """Return per video the layer and plan of every merge: one copy to the host.

        Raises:
            VideoError: hidden states at a merge point were NaN or infinite.
        """
        if not self.merges:
            return [[] for _ in range(decisions.shape[0])]
        return [list(self._plans(row)) for row in decisions.tolist()]

    def _plans(self, row: Sequence[int]) -> Iterator[tuple[int, MergePlan]]:
        counts, at = [1] * self.frames, 0
        for layer, merge in self.merges.items():
            if not row[at]:
                raise not_finite(len(counts))
            plan = plan_of_first(row[at + 1 : at + 1 + merge.target], counts, merge.fuse)
            counts = [sum(counts[i] for i in members) for members in plan.members]
            at += 1 + merge.target
            yield layer, plan


def without_hooks(module: M) -> M:
    """Return a view of ``module`` that runs without hooks and probes, in evaluation mode.

    Modules are copied, their parameters and buffers are not: what is loaded into or moved in the
    original is seen here too. Modules that are replaced later are not.
    """
    view = copy.copy(module)
    state: dict[str, Any] = view.__dict__
    state.update({name: OrderedDict() for name in _HOOKS})
    state |= {"training": False, "_compiled_call_impl": None}
    probe = probe_of(module)
    if probe is not None:
        probe.remove_from(view)
    children = module.__dict__["_modules"].items()
    state["_modules"] = {k: m if m is None else without_hooks(m) for k, m in children}
    return view


def foreign_code(modules: Sequence[nn.Module]) -> str | None:
    """Name a module that carries a hook or forward of somebody else, or None.

    Hooks of this package and those by which transformers records outputs do not count.

    Args:
        modules: the tower and all that is below it; what is on the tower itself runs anyway.
    """
    for module in modules[1:]:
        state = module.__dict__
        if "forward" in state and not _is_ours(state["forward"]):
            return next(name for name, m in modules[0].named_modules() if m is module)
        for kind in _HOOKS:
            if state[kind] and not all(map(_known, state[kind].values())):
                return next(name for name, m in modules[0].named_modules() if m is module)
    return None


def _is_ours(forward: Any) -> bool:
    return type(forward).__module__.partition(".")[0] == "earlytom"  # goes with its method


def _known(hook: Any) -> bool:
    while hasattr(hook, "func"):  # functools.partial
        hook = hook.func
    return str(getattr(hook, "__module__", "")).partition(".")[0] in ("earlytom", "transformers")
