"""Other versions of vLLM are left alone, and refuse our architectures with the reason."""

from __future__ import annotations

import logging
import sys
from types import ModuleType, SimpleNamespace

import pytest

from earlytom.errors import UnsupportedModelError
from earlytom.integrations import vllm as plugin
from earlytom.integrations.vllm.versions import unsupported


@pytest.mark.parametrize("version", ["0.32.0", "0.32.1", "0.32.0+cpu", "0.32.1.dev3"])
def test_supported(version: str) -> None:
    assert unsupported(version) is None


@pytest.mark.parametrize("version", ["0.31.9", "0.33.0", "1.0", "0.320.0", ""])
def test_unsupported(version: str) -> None:
    assert "works with vLLM 0.32.*" in str(unsupported(version))


class Registry:
    def __init__(self) -> None:
        self.models: dict[str, str] = {}

    def register_model(self, name: str, where: str) -> None:
        self.models[name] = where


def fake_vllm(monkeypatch: pytest.MonkeyPatch, version: str) -> Registry:
    module, registry = ModuleType("vllm"), Registry()
    module.__version__ = version  # type: ignore[attr-defined]
    module.ModelRegistry = registry  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.delitem(sys.modules, plugin.REFUSED.partition(":")[0], raising=False)
    return registry


def test_another_version_is_warned_about_and_refused_when_asked_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    registry = fake_vllm(monkeypatch, "0.33.1")
    with caplog.at_level(logging.WARNING):
        plugin.register()
        plugin.register()
    assert "found 0.33.1" in caplog.text
    assert set(registry.models) == set(plugin.ARCHITECTURES)
    module = plugin.REFUSED.partition(":")[0]
    assert set(registry.models.values()) == {plugin.REFUSED}
    with pytest.raises(UnsupportedModelError, match=r"found 0\.33\.1"):
        __import__(module)


def test_another_version_without_that_registry_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake_vllm(monkeypatch, "9.0")
    monkeypatch.setattr(sys.modules["vllm"], "ModelRegistry", SimpleNamespace())
    plugin.register()
    assert "cannot register" in caplog.text
