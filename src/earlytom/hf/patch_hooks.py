"""Hooks of the vision encoder that let a layer run on fewer patch tokens.

Patches are reduced in front of a layer, behind it, or between its attention and its MLP. The last
needs no copy of the layer's forward: the second norm gets the tokens that are left, a hook on the
MLP adds its output to them and gives the layer zeros in the old shape, and a hook on the layer
returns the sum that was put aside.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from earlytom.clock import spanned
from earlytom.errors import UnsupportedModelError
from earlytom.ops.cells import gather_rows, home_patches

if TYPE_CHECKING:
    from earlytom.hf.patches import PatchSide

_INTERPOLATE = "interpolate_pos_encoding"
_INPUTS = ("hidden_states", "attention_mask")  # an encoder layer's arguments by position


class PatchHooks:
    """The hooks of one :class:`PatchSide`; what is on its way inside a layer stays in its call."""

    def __init__(self, side: PatchSide) -> None:
        self.side = side

    def install(self, handles: list[Any]) -> None:
        """Put the hooks on and add their handles to ``handles``."""
        side = self.side

        def pre(module: nn.Module, hook: Callable[..., Any], *bound: Any) -> None:
            hook = functools.partial(hook, *bound)
            handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

        def post(module: nn.Module, hook: Callable[..., Any], *bound: Any) -> None:
            # in front of the hooks that record hidden states for transformers
            hook = functools.partial(hook, *bound)
            handles.append(module.register_forward_hook(hook, prepend=True))

        if side.coarse is not None:
            pre(side.adapter.embeddings(), self.before_embeddings)
        for i, layer in enumerate(side.adapter.layers):
            reduces, rebuilds, inside = i in side.layers, i in side.rebuild, side.inside(i)
            if reduces or rebuilds or (side.proportional and i > side.layers[0]):
                pre(layer, self.before_layer, i)
            if inside:
                pre(side.adapter.second_norm(layer), self.before_norm, i)
                post(side.adapter.mlp(layer), self.after_mlp, layer)
            if inside or (reduces and side.place == "output"):
                post(layer, self.after_layer, i)

    @spanned("patches")
    def before_embeddings(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Pre-hook of the patch embeddings: frames of lower resolution."""
        side = self.side
        if side.call is None:
            return None
        assert side.coarse is not None
        pixels = args[0] if args else kwargs["pixel_values"]
        grid = side.adapter.encoder_grid(side.coarse)
        size = [n * side.adapter.patch_size for n in grid]
        small = nn.functional.interpolate(
            pixels.float(), size=size, mode="bilinear", antialias=True
        ).to(pixels.dtype)
        if _INTERPOLATE in inspect.signature(module.forward).parameters:  # others do it anyway
            kwargs = {**kwargs, _INTERPOLATE: True}
        return ((small,), kwargs) if args else ((), {**kwargs, "pixel_values": small})

    @spanned("patches")
    def before_layer(self, index: int, module: Any, args: Any, kwargs: Any) -> Any:
        """Pre-hook of an encoder layer: reduce, rebuild or weigh what it gets."""
        side, call = self.side, self.side.call
        if call is None:
            return None
        if module.training and getattr(module, "gradient_checkpointing", False):
            raise UnsupportedModelError(
                f"{side.method.name} reduces patches inside layers; switch gradient "
                "checkpointing of the vision encoder off"
            )
        inputs = {**dict(zip(_INPUTS, args, strict=False)), **kwargs}
        hidden, classes = inputs["hidden_states"], side.adapter.class_tokens
        if side.place == "input" and index in side.layers:
            hidden = side.reduce(index, hidden)
        if call.passed and index in side.rebuild:
            back = torch.cat([home_patches(v.owner, v.n_tokens) for v in call.videos])
            if classes:
                own = torch.arange(classes, device=back.device).expand(len(back), -1)
                back = torch.cat([own, back + classes], 1)
            call.back = back
            hidden = side.restored(hidden, classes)
        elif call.passed and side.proportional:
            side.check_attention(module)
            size = torch.cat([v.size for v in call.videos]).to(hidden.device)
            if classes:
                size = nn.functional.pad(size, (classes, 0), value=1.0)
            bias = size.log().to(hidden.dtype)[:, None, None, :]
            mask = inputs.get("attention_mask")
            inputs["attention_mask"] = bias if mask is None else mask + bias
        inputs["hidden_states"] = hidden
        return (*(inputs.pop(k) for k in _INPUTS[: len(args)]), *args[2:]), inputs

    @spanned("patches")
    def before_norm(self, index: int, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Pre-hook of the norm between attention and MLP: pass on the tokens that are left."""
        side, call = self.side, self.side.call
        if call is None:
            return None
        hidden = left = args[0]
        if call.back is not None:
            left = gather_rows(left, call.back.to(left.device))
            call.back = None
        if side.place == "attention" and index in side.layers:
            left = side.reduce(index, left)
        if left is hidden:
            return None
        call.kept = left
        call.output = hidden.new_zeros(()).expand(hidden.shape)
        return (left, *args[1:]), kwargs

    @spanned("patches")
    def after_mlp(
        self, layer: nn.Module, module: nn.Module, args: Any, output: Tensor
    ) -> Tensor | None:
        """Hook of the MLP: put the layer's result aside and add nothing to the old tokens."""
        call = self.side.call
        if call is None or call.kept is None:
            return None
        zeros = call.output
        call.output, call.kept = self.side.adapter.add_mlp(layer, call.kept, output), None
        return zeros

    @spanned("patches")
    def after_layer(self, index: int, module: nn.Module, args: Any, output: Tensor) -> Any:
        """Hook of an encoder layer: return what was put aside, and reduce behind the layer."""
        side, call = self.side, self.side.call
        if call is None:
            return None
        hidden = output if call.output is None else call.output
        call.output = None
        if side.place == "output" and index in side.layers:
            hidden = side.reduce(index, hidden)
        return hidden
