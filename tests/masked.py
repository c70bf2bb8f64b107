"""Decoding with stage III against a plain loop over decoder layers: no cache, no hooks, only masks.

Columns that a method drops stay where they are and are hidden from the layers behind; the loop runs
over prompt and answer at once. What the method decided is recorded while it runs.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from earlytom.hf.engine import controller_of
from earlytom.method import Method
from earlytom.models import find_adapter
from earlytom.stages import InnerMerge, InnerState


class Record:
    """Decisions of one ``generate`` and what its prefill gave to layer 0."""

    def __init__(self, model: nn.Module, method: Method, patch: pytest.MonkeyPatch) -> None:
        self.model = model
        self.method = method
        self.merges: dict[int, list[InnerMerge | None]] = defaultdict(list)
        self.keeps: list[Tensor | None] = []
        self.embeddings: Tensor | None = None
        self.position: Tensor | None = None
        kind = type(method)
        merge, keep = kind.merge_inner, kind.decode_keep

        def merge_inner(m: Any, state: InnerState) -> InnerMerge | None:
            done = merge(m, state)
            self.merges[state.point].append(done)
            return done

        def decode_keep(m: Any, row: Tensor, memory: dict[str, Any]) -> Tensor | None:
            done = keep(m, row, memory)
            self.keeps.append(done)
            return done

        patch.setattr(kind, "merge_inner", merge_inner)
        patch.setattr(kind, "decode_keep", decode_keep)

    def watch_positions(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Pre-hook of the language model: positions of the prompt, of one axis or three."""
        if self.position is None:
            given = kwargs["position_ids"]
            given = given[-3:] if given.dim() == 3 else given
            batch = len(kwargs["inputs_embeds"])
            self.position = given.expand(*given.shape[:-2], batch, -1).clone()
            self.deep = self._deepstack(kwargs)

    def _deepstack(self, kwargs: Any) -> list[list[Tensor]]:
        """What early layers add to the columns: per layer and row ``[columns, dim]``."""
        visual, found = kwargs.get("visual_pos_masks"), []
        if visual is None:
            return []
        for features in kwargs["deepstack_visual_embeds"]:
            added = torch.zeros(*visual.shape, features.shape[-1])
            added[visual] = features
            found.append(list(added))
        return found

    def watch(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Pre-hook of decoder layer 0; put on behind the engine's own."""
        if self.embeddings is not None:
            return
        controller: Any = controller_of(self.model)
        step = controller.prompt.step
        self.embeddings = (args[0] if args else kwargs["hidden_states"]).clone()
        mask = None if step is None else step.mask
        if mask is None:  # nothing was compacted
            self.counts = [self.embeddings.shape[1]] * len(self.embeddings)
            self.visual: list[Tensor | None] = [None] * len(self.embeddings)
            return
        self.counts = mask.sum(1).tolist()
        videos = step.videos
        self.visual = [None if videos is None else v.clone() for v in videos.visual]

    def logits(self, row: int, seen: int, answer: Tensor) -> Tensor:
        """Logits ``[new, vocabulary]`` of one row.

        Args:
            row: of the batch.
            seen: rows with visual tokens in front of it.
            answer: ``[new - 1]`` tokens that were decoded and fed back.
        """
        assert self.embeddings is not None
        language: Any = find_adapter(self.model).language_model
        n = self.counts[row]
        assert self.position is not None
        prompt, position = self.embeddings[row, -n:], self.position[..., row, -n:]
        x = torch.cat([prompt, self.model.get_input_embeddings()(answer)])  # type: ignore[operator]
        total, new = len(x), len(answer)
        behind = position[..., -1:] + 1 + torch.arange(new)
        position = torch.cat([position, behind], -1)
        alive = torch.ones(total, dtype=torch.bool)
        points = self.method.inner_points(len(language.layers))
        asked = bool(self.visual[row] is not None and self.visual[row].any())  # type: ignore[union-attr]
        front = {(p.layer, p.after_attention): i for i, p in enumerate(points)} if asked else {}
        front.pop((0, False), None)  # the embeddings were recorded behind it
        from_layer = self.method.decode_layer(len(language.layers))

        def act(at: tuple[int, bool], x: Tensor) -> Tensor:
            nonlocal alive, position
            done = self.merges[front[at]][seen] if at in front else None
            if done is None:
                return x
            present = alive.nonzero().flatten()
            kept = torch.cat([present[done.index], torch.arange(n, total)])
            if done.hidden is not None:
                x = x.index_copy(0, present[done.index], done.hidden)
            alive = torch.zeros_like(alive).index_fill(0, kept, True)
            if self.method.inner_positions == "renumber":
                position = position[0] + alive.long().cumsum(0) - 1
            return x

        for i, layer in enumerate(language.layers):
            x = act((i, False), x)
            mask = torch.ones(total, total, dtype=torch.bool).tril() & alive
            mask |= torch.eye(total, dtype=torch.bool)  # rows of hidden columns: anything finite
            if from_layer is not None and i >= from_layer:
                mask = self._decode_mask(mask, row, n, new)
            states = layer.input_layernorm(x)[None]
            rope = language.rotary_emb(states, position.unsqueeze(-2))
            bias = torch.zeros(total, total).masked_fill(~mask, torch.finfo(x.dtype).min)
            attended = layer.self_attn(
                hidden_states=states, position_embeddings=rope, attention_mask=bias[None, None]
            )[0][0]
            x = act((i, True), x + attended)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
            if i < len(self.deep):
                x = torch.cat([x[:n] + self.deep[i][row][-n:], x[n:]])
        out: Tensor = self.model.lm_head(language.norm(x))[n - 1 :]  # type: ignore[operator]
        return out

    def _decode_mask(self, mask: Tensor, row: int, n: int, new: int) -> Tensor:
        visual = self.visual[row]
        if visual is None or not visual.any():
            return mask
        with_video = [b for b, v in enumerate(self.visual) if v is not None and v.any()]
        columns = visual[-n:].nonzero().flatten()
        for t in range(new):
            keep = self.keeps[t * len(with_video) + with_video.index(row)]
            if keep is not None:
                mask[n + t, columns[~keep]] = False
        return mask


def check(model: nn.Module, record: Record, out: Any, width: int) -> None:
    """Compare the logits of ``generate`` with the masked loop, row by row.

    Args:
        model: with the method still on it; its hooks do nothing outside of a forward.
        record: filled by the ``generate`` that returned ``out``.
        out: with ``logits``, one per new token.
        width: length of the prompt.
    """
    stepwise = torch.stack(out.logits, 1)
    seen = 0
    with torch.no_grad():
        for row in range(len(stepwise)):
            answer = out.sequences[row, width : width + len(out.logits) - 1]
            expected = record.logits(row, seen, answer)
            torch.testing.assert_close(stepwise[row], expected, atol=5e-5, rtol=1e-4)
            visual = record.visual[row]
            seen += bool(visual is not None and visual.any())


def recorded(model: nn.Module, method: Method, patch: pytest.MonkeyPatch) -> tuple[Record, Any]:
    """Put a recorder on ``model``, whose method is on already; returns it and its hook."""
    record = Record(model, method, patch)
    language: Any = find_adapter(model).language_model
    hooks = contextlib.ExitStack()
    for module, hook in ((language, record.watch_positions), (language.layers[0], record.watch)):
        hooks.enter_context(module.register_forward_pre_hook(hook, with_kwargs=True))
    return record, hooks
