"""The vision encoder compiled for some numbers of frames (``earlytom.compile``).

While a video call is open, the tower's ``forward`` runs an :class:`EncoderGraph` and hands the
plans that it decided to the engine; everything behind the encoder goes on as usual. Any other call
runs the tower as it is, hooks included.
"""

from __future__ import annotations

import functools
import logging
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from earlytom.checks import check_choice, check_count
from earlytom.clock import span
from earlytom.errors import ConfigError, UnsupportedModelError
from earlytom.hf.encoder_graph import EncoderGraph, foreign_code
from earlytom.hf.vision import VideoCall, VisionSide
from earlytom.models.base import Adapter
from earlytom.override import Override

logger = logging.getLogger(__name__)
MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
_OWN_BUFFERS = ("default", "max-autotune-no-cudagraphs", None)
_ALLOWED = (
    "allowed: EarlyTom with policy budget and any selection but decoupled, and methods that act "
    "behind the encoder only"
)
# arguments that change what the tower computes; others are handed through and never looked at
_SPECIAL = ("interpolate_pos_encoding", "output_attentions")


@dataclass(frozen=True)
class CompileSettings:
    """How the encoder is compiled.

    Args:
        frames: numbers of frames of a video to compile for.
        backend: of ``torch.compile``: a name, or a callable.
        mode: of ``torch.compile``.

    Raises:
        ConfigError: a value out of range, or an unknown backend or mode.
    """

    frames: tuple[int, ...]
    backend: str | Callable[..., Any] = "inductor"
    mode: str | None = None

    def __post_init__(self) -> None:
        if not self.frames:
            raise ConfigError("frames must name at least one number of frames to compile for")
        for count in self.frames:
            check_count("frames", count)
        if isinstance(self.backend, str):
            known = torch.compiler.list_backends(exclude_tags=())
            check_choice("backend", self.backend, tuple(known))
        elif not callable(self.backend):
            raise ConfigError(f"backend must be a name or a callable, got {self.backend!r}")
        if self.mode is not None:
            check_choice("mode", self.mode, MODES)

    @property
    def replays(self) -> bool:
        """Whether results may lie in buffers that the next call overwrites (CUDA graphs)."""
        return self.backend == "cudagraphs" or self.mode not in _OWN_BUFFERS


class CompiledTower:
    """Stands in for the ``forward`` of the vision tower of ``vision``.

    Raises:
        ConfigError: the method cannot run with fixed shapes; the message names why.
        UnsupportedModelError: not a tower whose layers can be called one by one.
        BudgetError: the method cannot meet its budget with so many frames.
    """

    def __init__(self, vision: VisionSide, settings: CompileSettings) -> None:
        self.vision = vision
        self.settings = settings
        self.layers = vision.adapter.usable_layers
        _check_tower(vision.adapter)
        for frames in settings.frames:
            _check_method(vision, frames)
        self._compiled: dict[tuple[int, int], tuple[EncoderGraph, Callable[..., Any]]] = {}
        self._modules: list[nn.Module] = []
        self._original: Callable[..., Any] | None = None
        self._override: Override | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Copies start without compiled graphs: those hold the parameters of this model."""
        return self.__dict__ | {"_compiled": {}, "_modules": []}

    # ------------------------------------------------------------------ on and off
    def install(self) -> None:
        """Take the place of ``tower.forward`` (of this instance only)."""
        self._original = self.vision.adapter.tower.forward
        functools.update_wrapper(self, self._original, updated=())
        self._override = Override(self.vision.adapter.tower, "forward", self)

    def remove(self) -> None:
        """Give the tower its own ``forward`` back, unless somebody else took its place since."""
        if self._override is not None:
            if self.vision.adapter.tower.__dict__.get("forward") is self:
                self._override.remove()
            self._override = None

    # ------------------------------------------------------------------ calls
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the compiled encoder where it fits, else the tower itself."""
        call, original = self.vision.call, self._original
        assert original is not None
        if call is None:
            return original(*args, **kwargs)
        pixels = args[0] if args else kwargs["pixel_values"]
        modules = list(self.vision.adapter.tower.modules())
        reason = self._why_not(call, modules, args[1:], kwargs)
        if reason is not None:
            logger.debug("the encoder runs uncompiled: %s", reason)
            return original(*args, **kwargs)
        if modules != self._modules:  # e.g. adapters of PEFT were put in
            self._compiled.clear()
            self._modules = modules
        hidden = self._encode(call, pixels)
        # transformers leaves out hidden states that were not asked for in the same way
        states: list[Tensor | None] = [None] * (len(self.vision.adapter.layers) + 1)
        states[self.layers] = hidden
        return BaseModelOutputWithPooling(hidden_states=tuple(states))

    def _why_not(
        self, call: VideoCall, modules: list[nn.Module], rest: Any, kwargs: dict[str, Any]
    ) -> str | None:
        frames = set(call.frames)
        if len(frames) != 1 or not frames <= set(self.settings.frames):
            compiled = ", ".join(map(str, self.settings.frames))
            return f"videos of {sorted(frames)} frames, compiled for {compiled}"
        tensors = [k for k, v in kwargs.items() if isinstance(v, Tensor) and k != "pixel_values"]
        special = [k for k in _SPECIAL if kwargs.get(k)] + tensors
        if rest or special:
            return f"the call brings {', '.join(special) or 'more than pixels'}"
        if call.asked.get("output_hidden_states"):
            return "the call asks for all hidden states"
        if self.vision.reads_other_layer(call):
            return f"the call asks for vision_feature_layer={call.asked['vision_feature_layer']}"
        if modules[0].training:
            return "the encoder is in training mode"
        foreign = foreign_code(modules)
        return foreign and f"{foreign} of the encoder has a hook or forward of its own"

    def _encode(self, call: VideoCall, pixels: Tensor) -> Tensor:
        graph, run = self._for(call.frames[0], len(call.frames))
        copies = self.settings.replays and pixels.is_cuda
        if copies:
            torch.compiler.cudagraph_mark_step_begin()
        hidden, decisions, signals = run(pixels.contiguous())
        if copies:
            hidden, signals = hidden.clone(), tuple(x.clone() for x in signals)
        with span("merge"):
            plans = graph.read(decisions)
            score = -1 if graph.score_layer is None else graph.score_layer
            for v, state in enumerate(call.videos):
                for layer, plan in plans[v]:
                    if layer < score:
                        state.apply(plan, layer)
                if signals:
                    received, keys = (x.unflatten(0, (len(plans), -1))[v] for x in signals)
                    state.received = received
                    state.keys = keys if self.vision.method.needs_keys() else None
                for layer, plan in plans[v]:
                    if layer >= score:
                        state.apply(plan, layer)
        call.next_point = len(self.vision.points)
        return hidden

    # ------------------------------------------------------------------ graphs
    def _for(self, frames: int, videos: int) -> tuple[EncoderGraph, Callable[..., Any]]:
        """Return the graph of so many videos and its compiled form."""
        if (frames, videos) not in self._compiled:
            graph = self._graph(frames)
            compiled = torch.compile(
                _own_code(graph),
                fullgraph=True,
                dynamic=False,
                backend=self.settings.backend,
                mode=self.settings.mode,
            )
            self._compiled[frames, videos] = graph, compiled
        return self._compiled[frames, videos]

    def _graph(self, frames: int) -> EncoderGraph:
        adapter, points = self.vision.adapter, self.vision.points
        merges = self.vision.method.fixed_merges(frames, adapter.tokens_per_frame, self.layers)
        assert merges is not None  # checked before
        at = dict(zip(points, merges, strict=True))
        return EncoderGraph(adapter, at, frames, self.vision.score_layer)


def _own_code(graph: EncoderGraph) -> Callable[..., Any]:
    """Return ``graph.forward`` with a code object of its own.

    The compiler caches per code object and gives up after some entries: models, frame counts and
    numbers of videos must not share one.
    """
    function = EncoderGraph.forward
    own = types.FunctionType(function.__code__.replace(), function.__globals__, function.__name__)
    return types.MethodType(own, graph)


def _check_tower(adapter: Adapter) -> None:
    tower = adapter.tower
    kind = getattr(getattr(tower, "config", None), "model_type", type(tower).__name__)
    if kind != "siglip_vision_model" or adapter.packed or adapter.class_tokens:
        raise UnsupportedModelError(
            f"cannot compile the vision encoder {kind!r}; supported: siglip_vision_model"
        )
    foreign = foreign_code(list(tower.modules()))
    if foreign is not None:
        raise UnsupportedModelError(
            f"cannot compile the vision encoder: {foreign} has a hook or forward of its own (such "
            "as accelerate's for a model on several devices); remove it, or use compress"
        )


def _check_method(vision: VisionSide, frames: int) -> None:
    adapter, method = vision.adapter, vision.method
    why = None
    if vision.patches.active:
        why = "changes patches inside the encoder"
    elif vision.reuse.layer is not None:
        why = "computes a number of patches that depends on the video"
    elif method.needs_head() and adapter.pooling_head is not None:
        why = "needs the encoder's pooling head"
    elif method.fixed_merges(frames, adapter.tokens_per_frame, adapter.usable_layers) is None:
        why = "decides frames in a way that depends on the video"
    if why is not None:
        raise ConfigError(f"{method.name} {why}, which cannot be compiled; {_ALLOWED}")
