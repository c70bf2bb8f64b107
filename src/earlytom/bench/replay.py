"""Layers that remember: many methods look at the same clip, and most leave most layers alone.

While a :class:`Replay` is on, a layer that gets exactly the input of an earlier call (bit for bit,
masks and positions included) returns that call's output. Queries and keys that a probe saw are
handed to the probe of the method at hand. Layers in which a method changes something, and calls
that fill a cache, always run. So answers are those of the ordinary forward pass, and time is not:
nothing is timed while a replay is on.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from earlytom.hf.probe import Probe, probe_of
from earlytom.hf.vision import VisionSide
from earlytom.models.base import Adapter
from earlytom.override import Override

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
Signals = tuple[Tensor, Tensor, Tensor | None, float, nn.Module]


@dataclass
class _Call:
    """One remembered call of a layer.

    Attributes:
        inputs: its tensors, the hidden states first.
        digest: sum of the bits of the hidden states.
        output: what came out.
        signals: what its probe saw, or None if there was no probe.
        received: received attention of every video, computed from the signals, or None.
        keys: mean keys of every video, or None.
    """

    inputs: list[Tensor]
    digest: int
    output: Tensor
    signals: Signals | None = None
    received: list[Tensor | None] | None = None
    keys: list[Tensor | None] | None = None

    @property
    def bytes(self) -> int:
        """Memory it holds on to, at most."""
        held = [*self.inputs, self.output]
        held += [x for x in self.signals or () if isinstance(x, Tensor)]
        return sum(x.numel() * x.element_size() for x in held)


class Replay:
    """Lets the layers of one model remember their calls between two :meth:`clear`.

    The model must be bare (no method on) and must have been called once before.

    Args:
        adapter: the model.
        capacity: bytes to remember at most; the calls not used for longest are forgotten.
    """

    def __init__(self, adapter: Adapter, capacity: int = 640 << 20) -> None:
        self.adapter = adapter
        self.capacity = capacity
        self.hits = 0
        self._on = True
        self._held = 0
        self._overrides: list[Override] = []
        self._numbers = count()
        self._calls: OrderedDict[int, tuple[Any, _Call]] = OrderedDict()
        self._index: dict[Any, dict[int, _Call]] = {}
        layers = [*adapter.layers, *adapter.decoder_layers]
        self._modules: list[nn.Module] = [*layers, *adapter.projectors]
        self._attention = {layer: adapter.attention(layer) for layer in layers}
        self._parts = {m: [x for x in m.modules() if x is not m] for m in self._modules}
        self._bare = {module: self._hooks_inside(module) for module in self._modules}

    def __enter__(self) -> Replay:
        for module in self._modules:
            forward = functools.partial(self._forward, module, module.forward)
            self._overrides.append(Override(module, "forward", forward))
        return self

    def __exit__(self, *error: object) -> None:
        self.clear()
        while self._overrides:
            self._overrides.pop().remove()

    def clear(self) -> None:
        """Forget everything."""
        self._calls.clear()
        self._index.clear()
        self._held = 0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Run every layer inside the block."""
        self._on = False
        try:
            yield
        finally:
            self._on = True

    # ------------------------------------------------------------------ one call
    def _forward(
        self, module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        if not self._on or self._hooks_inside(module) != self._bare[module]:
            return forward(*args, **kwargs)
        taken = _tensors(args, kwargs)
        if taken is None or torch.is_grad_enabled():
            return forward(*args, **kwargs)
        inputs, rest = taken
        key = (module, rest, *((x.shape, x.dtype) for x in inputs))
        attention = self._attention.get(module)
        probe = None if attention is None else probe_of(attention)
        if probe is not None and probe.rewire is not None:
            return forward(*args, **kwargs)
        number, call, digest = self._find(key, inputs)
        if call is not None and (probe is None or call.signals is not None):
            self.hits += 1
            self._calls.move_to_end(number)
            if probe is not None:
                _feed(probe, call)
            return call.output
        output, signals = _run(forward, probe, args, kwargs)
        if isinstance(output, Tensor):
            if call is not None:
                self._forget(number)
            self._remember(key, _Call(inputs, digest, output, signals))
        return output

    def _hooks_inside(self, module: nn.Module) -> int:
        """Hooks on the parts of a module (not on itself)."""
        parts = self._parts[module]
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in parts)

    def _find(self, key: Any, inputs: list[Tensor]) -> tuple[int, _Call | None, int]:
        calls = self._index.get(key, {})
        for number, call in calls.items():
            if call.inputs[0] is inputs[0] and _equal(call.inputs[1:], inputs[1:]):
                return number, call, call.digest
        hidden = inputs[0].contiguous()
        digest = int(hidden.view(_INTEGERS[hidden.element_size()]).sum())
        for number, call in calls.items():
            if call.digest == digest and _equal(call.inputs, inputs):
                return number, call, digest
        return -1, None, digest

    def _remember(self, key: Any, call: _Call) -> None:
        number = next(self._numbers)
        self._calls[number] = (key, call)
        self._index.setdefault(key, {})[number] = call
        self._held += call.bytes
        while self._held > self.capacity and self._calls:
            self._forget(next(iter(self._calls)))

    def _forget(self, number: int) -> None:
        key, call = self._calls.pop(number)
        del self._index[key][number]
        self._held -= call.bytes


def _tensors(args: Any, kwargs: dict[str, Any]) -> tuple[list[Tensor], Any] | None:
    """Tensors among the arguments and everything else; None if that cannot be compared."""
    tensors: list[Tensor] = []
    rest: list[Any] = []
    hidden = kwargs.get("hidden_states")
    if isinstance(hidden, Tensor):
        tensors.append(hidden)
    named = [*enumerate(args), *sorted(kwargs.items())]
    for name, value in named:
        parts = value if isinstance(value, tuple) else (value,)
        for part in parts:
            if isinstance(part, Tensor):
                if part is not hidden:
                    tensors.append(part)
                rest.append((name, "tensor"))
            elif part is None or isinstance(part, (bool, int, float, str)):
                rest.append((name, part))
            else:  # a cache, for example
                return None
    return (tensors, tuple(rest)) if tensors else None


def _equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(x is y or torch.equal(x, y) for x, y in zip(a, b, strict=True))


def _run(
    forward: Callable[..., Any], probe: Probe | None, args: Any, kwargs: Any
) -> tuple[Any, Signals | None]:
    """Run a layer; also return what its probe saw."""
    sink = None if probe is None else probe.sink
    if probe is None or sink is None:
        return forward(*args, **kwargs), None
    seen: list[Signals] = []

    def watch(*signals: Any) -> None:
        seen.append(signals)
        sink(*signals)

    probe.sink = watch
    try:
        output = forward(*args, **kwargs)
    finally:
        probe.sink = sink
    return output, seen[0] if len(seen) == 1 else None


def _feed(probe: Probe, call: _Call) -> None:
    """Hand remembered signals to a probe; received attention is computed once."""
    sink = probe.sink
    if sink is None or call.signals is None:
        return
    side = getattr(sink, "__self__", None)
    plain = isinstance(side, VisionSide) and sink == side.capture
    if not plain or side is None or side.patches.active or side.call is None:
        sink(*call.signals)
        return
    videos, keys = side.call.videos, side.method.needs_keys()
    if call.received is None or (keys and call.keys is None):
        sink(*call.signals)
        call.received = [v.received for v in videos]
        call.keys = [v.keys for v in videos] if keys else call.keys
        return
    for v, video in enumerate(videos):
        video.received = call.received[v]
        if keys and call.keys is not None:
            video.keys = call.keys[v]
