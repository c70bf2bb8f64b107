"""One controller per compressed model: puts the hooks on and takes them off again.

Everything is attached to instances: forward hooks, private attention configs (probes) and one
override of ``get_video_features``. No class is patched and no forward is copied.
"""

from __future__ import annotations

import functools
import logging
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from earlytom.errors import ConfigError, UnsupportedModelError
from earlytom.hf.decoding import DecodeSide
from earlytom.hf.inner import InnerSide
from earlytom.hf.probe import Probe, takes_bias
from earlytom.hf.prompt import PromptSide
from earlytom.hf.vision import VisionSide
from earlytom.hf.weights import TokenWeights
from earlytom.method import Method
from earlytom.models import find_adapter, unwrap
from earlytom.models.base import Adapter
from earlytom.report import Report

logger = logging.getLogger(__name__)
CONTROLLER = "_earlytom"
_LAST: weakref.WeakKeyDictionary[nn.Module, Report] = weakref.WeakKeyDictionary()


class Controller:
    """Runs ``method`` on one live model.

    Raises:
        ConfigError: the method names layers that the model does not have.
        UnsupportedModelError: the model's layout rules the method out.
    """

    def __init__(self, adapter: Adapter, method: Method) -> None:
        self.adapter = adapter
        self.method = method
        weights = self._weights()
        self.vision = VisionSide(adapter, method, weights)
        depth = len(adapter.decoder_layers)
        points, decode = method.inner_points(depth), method.decode_layer(depth)
        self.prompt = PromptSide(
            adapter,
            method.resolved_positions() == "renumber",
            bool(points),
            decode is not None,
            weights,
        )
        self.inner = InnerSide(adapter, self.prompt, method, points) if points else None
        self.decoding = None if decode is None else DecodeSide(adapter, self.prompt, method, decode)
        if self.inner is not None:
            self.prompt.first = self.inner.at_embeddings
        self._check()
        self._handles: list[Any] = []
        self._probes: list[Probe] = []
        self._own_features: Any = None

    def _weights(self) -> TokenWeights | None:
        if not self.method.weighs_tokens:
            return None
        if takes_bias(self.adapter.attention(self.adapter.decoder_layers[0])):
            return TokenWeights(self.adapter, self.method.name)
        logger.warning(
            "%s counts all tokens alike: this attention implementation takes no weights",
            self.method.name,
        )
        return None

    def _check(self) -> None:
        self.adapter.check_encoder_layers(self.vision.points)
        if self.vision.score_layer is not None:
            self.adapter.check_encoder_layers([self.vision.score_layer])
        if self.inner is None and self.decoding is None:
            return
        if self.inner is not None and self.decoding is not None:
            raise ConfigError("a method cannot have both inner points and a decode layer")
        kinds = set(getattr(self.adapter.language_model.config, "layer_types", None) or [])
        if kinds - {"full_attention"}:
            raise UnsupportedModelError(
                f"stage III needs full attention in every decoder layer, found {sorted(kinds)}"
            )

    # ------------------------------------------------------------------ on and off
    def install(self) -> None:
        """Attach everything; on an error nothing stays attached."""
        try:
            self._install()
        except BaseException:
            self.remove()
            raise

    def _before(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def _install(self) -> None:
        adapter, vision, prompt = self.adapter, self.vision, self.prompt
        after = {p + 1 for p in vision.points}
        for i, layer in enumerate(adapter.layers):
            if i in after:
                self._before(layer, functools.partial(vision.before_layer, i))
        self._probes += vision.reuse.probes(vision.sinks())
        if vision.reuse.layer is not None:
            self._before(adapter.layers[vision.reuse.layer], vision.reuse.before_layer)
        vision.patches.install(self._handles)
        head = adapter.pooling_head if self.method.needs_head() else None
        if head is not None:
            self._handles.append(head.register_forward_hook(vision.capture_head, with_kwargs=True))
        for projector in adapter.projectors:
            self._before(projector, vision.before_projector)
            self._handles.append(projector.register_forward_hook(vision.after_projector))
        self._before(adapter.inner, prompt.before_model)
        self._before(adapter.language_model, prompt.before_language_model)
        if self.inner is not None:
            self.inner.install(self._handles)
        if self.decoding is not None:
            self.decoding.install(self._handles)
        for side in (self.inner, self.decoding):
            for i, sink in ({} if side is None else side.sinks()).items():
                self._probes.append(Probe(adapter.attention(adapter.decoder_layers[i]), sink))
        self._handles.append(
            adapter.language_model.register_forward_hook(
                self._after_language_model, with_kwargs=True, always_call=True
            )
        )
        inner = adapter.inner
        # an instance may already carry an override of its own (a LLaVA-Video layout)
        self._own_features = inner.__dict__.get("get_video_features")
        object.__setattr__(inner, CONTROLLER, self)
        object.__setattr__(inner, "get_video_features", _VideoFeatures(inner, self))

    def remove(self) -> None:
        """Detach everything; the model is bit-identical to before."""
        for handle in self._handles:
            handle.remove()
        for probe in self._probes:
            probe.remove()
        self._handles.clear()
        self._probes.clear()
        attributes = self.adapter.inner.__dict__
        if attributes.pop(CONTROLLER, None) is not None:
            del attributes["get_video_features"]
            if self._own_features is not None:
                attributes["get_video_features"] = self._own_features

    # ------------------------------------------------------------------ reports
    def report(self) -> Report:
        """Return the report of the running or last call, creating it if needed."""
        inner = self.adapter.inner
        if inner not in _LAST:
            self.new_report()
        return _LAST[inner]

    def new_report(self) -> None:
        """Start the report of a new call."""
        _LAST[self.adapter.inner] = Report(
            self.method.name, self.method.retention_ratio, self.method.resolved_positions()
        )

    def _after_language_model(self, module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        step = self.prompt.step
        self.prompt.after_language_model(module, args, kwargs, out)
        if step is not None and step.prompt and out is not None:
            self.report().prompt_columns = self.prompt.columns
            if self.inner is not None and self.inner.prefill is not None:
                report = self.report()
                report.inner = tuple(self.inner.prefill.columns)
                report.layer_tokens = self.inner.layer_tokens
                report.layer_total = sum(self.inner.prefill.videos.uncompressed)
        for side in (self.inner, self.decoding):
            if side is not None:
                side.finish()


class _VideoFeatures:
    """Stands in for ``inner.get_video_features`` (same signature) while a method is on."""

    def __init__(self, inner: nn.Module, controller: Controller) -> None:
        original: Any = inner.get_video_features
        self._original = original
        self._controller = controller
        functools.update_wrapper(self, original, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        controller = self._controller
        output = controller.vision.run(self._original, args, kwargs)
        controller.new_report()
        controller.report().videos = controller.vision.reports
        return output


def controller_of(model: Any) -> Controller | None:
    """Return the controller on ``model``, or None."""
    for module in unwrap(model).modules():
        found = module.__dict__.get(CONTROLLER)
        if isinstance(found, Controller):
            return found
    return None


def attach(model: Any, method: Method) -> Controller:
    """Put ``method`` on ``model``; a method that is on already is replaced."""
    adapter = find_adapter(model)
    controller = Controller(adapter, method)
    previous = controller_of(model)
    if previous is not None:
        previous.remove()
    try:
        controller.install()
    except BaseException:
        if previous is not None:
            previous.install()
        raise
    _forget_compiled(model)
    logger.debug("%s is on %s", method.name, type(adapter.inner).__name__)
    return controller


def detach(model: Any) -> None:
    """Take the method off ``model``; nothing happens if there is none."""
    controller = controller_of(model)
    if controller is not None:
        controller.remove()
        _forget_compiled(model)


def last_report(model: Any) -> Report | None:
    """Return the report of the last compressed call of ``model``, or None."""
    return _LAST.get(find_adapter(model).inner)


def _forget_compiled(model: Any) -> None:
    """Drop compiled graphs: dynamo does not guard on hooks, so old ones would ignore a change."""
    for module in unwrap(model).modules():
        if getattr(module, "_compiled_call_impl", None) is not None or hasattr(module, "_orig_mod"):
            torch.compiler.reset()
            return
