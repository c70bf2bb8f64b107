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
from earlytom.hf.chunked import ChunkedEncoder
from earlytom.hf.compiled import CompiledTower, CompileSettings
from earlytom.hf.context import video_room
from earlytom.hf.decoding import DecodeSide
from earlytom.hf.image_frames import ImageSide
from earlytom.hf.images import ImageTokens
from earlytom.hf.inner import InnerSide
from earlytom.hf.options import Options
from earlytom.hf.packed import PackedVisionSide
from earlytom.hf.positions import positions_of
from earlytom.hf.probe import Probe, takes_bias
from earlytom.hf.prompt import PromptSide
from earlytom.hf.vision import VisionSide
from earlytom.hf.weights import TokenWeights
from earlytom.method import Method
from earlytom.models import find_adapter, unwrap
from earlytom.models.base import Adapter
from earlytom.models.image_frames import ImageFrames
from earlytom.override import Override
from earlytom.report import Report
from earlytom.stages import EMBEDDINGS

logger = logging.getLogger(__name__)
CONTROLLER = "_earlytom"
_LAST: weakref.WeakKeyDictionary[nn.Module, Report] = weakref.WeakKeyDictionary()


class Controller:
    """Runs ``method`` on one live model.

    Args:
        adapter: the model.
        method: the method.
        settings: how its vision encoder is compiled, None: not at all.
        options: how the method is run.

    Raises:
        ConfigError: the method names layers that the model does not have, or cannot be compiled.
        UnsupportedModelError: the model's layout rules the method out.
    """

    def __init__(
        self,
        adapter: Adapter,
        method: Method,
        settings: CompileSettings | None = None,
        options: Options | None = None,
    ) -> None:
        options = options or Options()
        self.adapter = adapter
        self.method = method
        weights = self._weights()
        side = PackedVisionSide if adapter.packed else VisionSide
        self.vision: VisionSide = side(adapter, method, weights, options.frames_per_chunk)
        depth = len(adapter.decoder_layers)
        points, decode = method.inner_points(depth), method.decode_layer(depth)
        self.prompt = PromptSide(
            adapter,
            positions_of(adapter, method) == "renumber",
            bool(points),
            decode is not None,
            weights,
            video_room(adapter, method, adapter.language_model.config),
        )
        self.prompt.shapes = self.vision.shapes
        self.image_tokens = ImageTokens(self.vision, self._new_images) if options.images else None
        self.images: ImageSide | None = None
        if isinstance(adapter, ImageFrames):
            self.images = ImageSide(adapter, self.vision, self._new_videos, self.image_tokens)
            self.prompt.find_videos = self.images.before_model
        self.inner = InnerSide(adapter, self.prompt, method, points) if points else None
        self.decoding = None if decode is None else DecodeSide(adapter, self.prompt, method, decode)
        if self.inner is not None:
            self.prompt.first = self.inner.at_embeddings
        self._check()
        self.compiled = None if settings is None else CompiledTower(self.vision, settings)
        self.chunked = ChunkedEncoder(self.vision) if options.frames_per_chunk else None
        self._handles: list[Any] = []
        self._probes: list[Probe] = []
        self._overrides: list[Override] = []
        self._report: Report | None = None

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
        self.adapter.check_encoder_layers(self.vision.points, first=EMBEDDINGS)
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
        if adapter.packed and after:  # what layers get besides states follows the frames left
            after = set(range(min(after), len(adapter.layers)))
        for i, layer in enumerate(adapter.layers):
            if i in after and i < adapter.usable_layers:  # later layers are not read
                self._before(layer, functools.partial(vision.before_layer, i))
        self._probes += vision.reuse.probes(vision.sinks())
        if vision.reuse.layer is not None:
            self._before(adapter.layers[vision.reuse.layer], vision.reuse.before_layer)
        vision.patches.install(self._handles)
        head = adapter.pooling_head if self.method.needs_head() else None
        if head is not None:
            self._handles.append(head.register_forward_hook(vision.capture_head, with_kwargs=True))
        self._before(adapter.entry, vision.before_projector)
        if adapter.pooler is not None and vision.patches.active:
            self._handles.append(adapter.pooler.register_forward_hook(vision.patches.after_pooler))
        for projector in adapter.projectors:
            self._handles.append(projector.register_forward_hook(vision.after_projector))
        if isinstance(vision, PackedVisionSide):
            for projector in adapter.deep_projectors:
                self._handles.append(projector.register_forward_hook(vision.after_deep))
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
        object.__setattr__(adapter.inner, CONTROLLER, self)
        self._stand_in(adapter.features_name, self._features)
        if self.image_tokens is not None:
            self.image_tokens.install(self._handles)
            if self.images is None:
                self._stand_in(adapter.images_name, self.image_tokens.run)
        if self.compiled is not None:
            self.compiled.install()
        if self.chunked is not None:
            self.chunked.install()

    def remove(self) -> None:
        """Detach everything; the model is bit-identical to before."""
        for handle in self._handles:
            handle.remove()
        for probe in self._probes:
            probe.remove()
        self._handles.clear()
        self._probes.clear()
        if self.compiled is not None:
            self.compiled.remove()
        if self.chunked is not None:
            self.chunked.remove()
        if self.image_tokens is not None:
            self.image_tokens.remove()
        self.adapter.inner.__dict__.pop(CONTROLLER, None)
        while self._overrides:
            self._overrides.pop().remove()

    def _stand_in(self, name: str, run: Callable[..., Any]) -> None:
        """Have ``run(original, args, kwargs)`` answer calls of a method of the model."""
        inner = self.adapter.inner
        # an instance may already carry an override of its own (a LLaVA-Video layout)
        self._overrides.append(Override(inner, name, _StandIn(getattr(inner, name), run)))

    def _features(self, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self.images is not None:
            return self.images.call(original, args, kwargs)
        output = self.vision.run(original, args, kwargs)
        self._new_videos()
        return output

    # ------------------------------------------------------------------ reports
    def report(self) -> Report:
        """Return the report of the running or last call, creating it if needed."""
        inner = self.adapter.inner
        if inner not in _LAST:
            self.new_report()
        return _LAST[inner]

    def new_report(self) -> None:
        """Start the report of a new call."""
        self._report = _LAST[self.adapter.inner] = Report(
            self.method.name, self.method.retention_ratio, self.vision.positions
        )

    def _new_videos(self) -> None:
        if not self._waits() or self.report().videos:
            self.new_report()
        self.report().videos = self.vision.reports

    def _new_images(self) -> None:
        if not self._waits() or self.report().images:
            self.new_report()
        assert self.image_tokens is not None
        self.report().images = tuple(self.image_tokens.counts)

    def _waits(self) -> bool:
        """Whether the last report is of this prompt's images or videos, so far."""
        last = _LAST.get(self.adapter.inner)
        return last is not None and last is self._report

    def _after_language_model(self, module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        step = self.prompt.step
        self.prompt.after_language_model(module, args, kwargs, out)
        if step is not None and step.prompt and out is not None:
            report = self.report()
            report.prompt_columns = self.prompt.columns
            if self.prompt.squeezed:
                report.positions = "squeeze"
            if self.inner is not None and self.inner.prefill is not None:
                report.inner = tuple(self.inner.prefill.columns)
                report.layer_tokens = self.inner.layer_tokens
                report.layer_total = sum(self.inner.prefill.videos.uncompressed)
        self._report = None  # the prompt has been read, or failed
        for side in (self.inner, self.decoding):
            if side is not None:
                side.finish()


class _StandIn:
    """Stands in for a method of a model (same signature) while a method is on."""

    def __init__(self, original: Callable[..., Any], run: Callable[..., Any]) -> None:
        self._original = original
        self._run = run
        functools.update_wrapper(self, original, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._run(self._original, args, kwargs)


def controller_of(model: Any) -> Controller | None:
    """Return the controller on ``model``, or None."""
    for module in unwrap(model).modules():
        found = module.__dict__.get(CONTROLLER)
        if isinstance(found, Controller):
            return found
    return None


def attach(
    model: Any,
    method: Method,
    settings: CompileSettings | None = None,
    options: Options | None = None,
) -> None:
    """Put ``method`` on ``model``; a method that is on already is replaced.

    Args:
        model: what holds a supported model.
        method: what to put on.
        settings: how its vision encoder is compiled, None: not at all.
        options: how the method is run.
    """
    put_on(model, Controller(find_adapter(model), method, settings, options))


def put_on(model: Any, controller: Controller) -> None:
    """Put a controller of this ``model`` on, instead of the one that is on."""
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
    logger.debug("%s is on %s", controller.method.name, type(controller.adapter.inner).__name__)


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
