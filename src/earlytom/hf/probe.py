"""Attention signals without eager attention.

A probed attention module gets a private copy of its config that names one extra attention function.
That function hands queries and keys to a sink and then calls the implementation the model was
loaded with, so outputs stay bit-identical and no attention map is stored.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

PROBE_NAME = "earlytom_probe"  # must not contain "flash": transformers routes such names elsewhere
_ATTR = "_earlytom_probe"
BIASED = ("sdpa", "eager")  # attention implementations that take a float mask

Sink = Callable[[Tensor, Tensor, Tensor | None, float, nn.Module], None]
Attend = Callable[[Tensor, Tensor, Tensor], Any]
Rewire = Callable[[Attend, Tensor, Tensor, Tensor, float | None], Any]


class Probe:
    """Watches the queries and keys of one attention module.

    Args:
        module: attention module with a ``config``.
        sink: called as ``sink(query, key, mask, scaling, module)`` with ``[batch, heads, n, d]``.
        rewire: called as ``rewire(attend, query, key, value, scaling)`` instead of ``attend(query,
            key, value)``, the implementation that the model was loaded with; returns what that
            returns. ``scaling`` is None unless attention is plain ``sdpa``: no mask, no dropout.
    """

    def __init__(
        self, module: nn.Module, sink: Sink | None = None, rewire: Rewire | None = None
    ) -> None:
        AttentionInterface.register(PROBE_NAME, _probed_attention)
        self.module = module
        self.sink = sink
        self.rewire = rewire
        self.config: Any = module.config
        private: Any = copy.copy(self.config)
        private._attn_implementation = PROBE_NAME
        object.__setattr__(module, "config", private)
        object.__setattr__(module, _ATTR, self)

    def remove(self) -> None:
        """Give the module its own config back."""
        self.remove_from(self.module)

    def remove_from(self, module: nn.Module) -> None:
        """Give the module, or a copy of it, its own config back."""
        object.__setattr__(module, "config", self.config)
        object.__delattr__(module, _ATTR)


def probe_of(module: nn.Module) -> Probe | None:
    """Return the probe on ``module``, or None."""
    probe: Probe | None = module.__dict__.get(_ATTR)
    return probe


def implementation_of(module: nn.Module) -> str:
    """Return the attention implementation that ``module`` runs, also below a probe."""
    probe = probe_of(module)
    config: Any = module.config if probe is None else probe.config
    return str(config._attn_implementation)


def takes_bias(module: nn.Module) -> bool:
    """Whether the attention implementation of ``module`` takes a mask of floats."""
    return implementation_of(module) in BIASED


def _probed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    probe: Probe = getattr(module, _ATTR)
    scaling = kwargs.get("scaling")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if probe.sink is not None:
        probe.sink(query, key, attention_mask, scaling, module)
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    # read at call time: set_attn_implementation() after compress() must keep working
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(probe.config._attn_implementation, eager)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Any:
        return attend(module, q, k, v, attention_mask, *args, **kwargs)

    if probe.rewire is None:
        return run(query, key, value)
    bare = attention_mask is None and not kwargs.get("dropout") and not args
    causal = kwargs.get("is_causal", getattr(module, "is_causal", False))
    plain = bare and not causal and probe.config._attn_implementation == "sdpa"
    return probe.rewire(run, query, key, value, scaling if plain else None)
