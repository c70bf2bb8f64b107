"""Just enough of lmms-eval 0.7 to build and call the plugin's model without it."""

from __future__ import annotations

import contextlib
import sys
import types
from dataclasses import dataclass, field
from typing import Any


@dataclass
class TokenCounts:
    input_tokens: int | None = None
    output_tokens: int | None = None


@dataclass
class GenerationResult:
    text: Any
    token_counts: TokenCounts | None = None


@dataclass
class Instance:
    args: tuple[Any, ...]


@dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None


@dataclass
class CacheHook:
    seen: list[Any] = field(default_factory=list)

    def add_partial(self, kind, request, response):
        self.seen.append((kind, request, response))


class lmms:
    is_simple = True

    def __init__(self):
        self._rank, self._world_size = 0, 1
        self.cache_hook = CacheHook()
        self.task_dict = {}

    rank = property(lambda self: self._rank)
    world_size = property(lambda self: self._world_size)

    def clean(self):
        pass


class Accelerator:
    num_processes, process_index, device = 1, 0, "cpu"


def install(monkeypatch, logged):
    """Put stub modules into ``sys.modules``; ``log_metrics`` calls are appended to ``logged``."""
    info = types.SimpleNamespace(info=lambda text: None)
    modules = {
        "accelerate": {"Accelerator": Accelerator},
        "loguru": {"logger": info},
        "tqdm": {"tqdm": lambda **_: contextlib.nullcontext(types.SimpleNamespace(update=len_ok))},
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.api.instance": {
            "GenerationResult": GenerationResult,
            "Instance": Instance,
            "TokenCounts": TokenCounts,
        },
        "lmms_eval.api.model": {"lmms": lmms},
        "lmms_eval.models": {},
        "lmms_eval.models.registry_v2": {"ModelManifest": ModelManifest},
        "lmms_eval.models.model_utils": {},
        "lmms_eval.models.model_utils.gen_metrics": {
            "log_metrics": lambda **values: logged.append(values)
        },
    }
    for name, members in modules.items():
        module = types.ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    for name in [n for n in sys.modules if n == "earlytom.integrations.lmms_eval.model"]:
        monkeypatch.delitem(sys.modules, name)


def len_ok(n):
    assert n > 0
