"""Model families of other packages. That an adapter works is tested by docs/add-a-family.md."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from types import SimpleNamespace

import pytest
from torch import nn

from earlytom import models, plugins
from earlytom.errors import ConfigError, UnsupportedModelError
from earlytom.models import Adapter, find_adapter, register_family, supported_model_types


class Mine(Adapter):
    """An adapter."""

    model_types = ("mine",)


class MineToo(Adapter):
    """Another one for the same models."""

    model_types = ("other", "mine")


class Model(nn.Module):
    """As much of a model as is needed to be found."""

    def __init__(self, kind: str = "mine") -> None:
        super().__init__()
        self.config = SimpleNamespace(model_type=kind)
        self.language_model = nn.Linear(1, 1)

    def get_video_features(self) -> None: ...


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what a test registers."""
    monkeypatch.setattr(models, "_OTHERS", [])
    fresh = plugins.Plugins("earlytom.families", "model family", models._register)
    monkeypatch.setattr(models, "_PLUGINS", fresh)


def announce(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    entry = EntryPoint(name, value, "earlytom.families")
    monkeypatch.setattr(plugins, "entry_points", lambda group: [entry])


def test_decorator() -> None:
    with pytest.raises(UnsupportedModelError, match="'mine' is not supported"):
        find_adapter(Model())
    assert register_family(Mine) is Mine
    assert register_family(Mine) is Mine, "registering again changes nothing"
    assert type(find_adapter(nn.Sequential(Model()))) is Mine
    assert supported_model_types().count("mine") == 1


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (MineToo, r"model type 'mine' is taken by .*\.Mine$"),
        (type("Nothing", (Adapter,), {}), "needs a class attribute `model_types`"),
        (
            type("Llava", (Adapter,), {"model_types": ("llava_onevision",)}),
            "model type 'llava_onevision' is taken by earlytom.models.llava_onevision",
        ),
        (Model, "is not a subclass of earlytom.models.Adapter"),
        (3, "is not a subclass of earlytom.models.Adapter"),
    ],
)
def test_what_is_refused(bad: object, message: str) -> None:
    register_family(Mine)
    with pytest.raises(ConfigError, match=message):
        register_family(bad)
    assert [Mine] == models._OTHERS


def test_a_new_version_of_a_class_replaces_the_old_one() -> None:
    """As a cell of a notebook does that is run twice."""
    register_family(Mine)
    again = type("Mine", (Adapter,), {"model_types": ("mine",), "__module__": __name__})
    again.__qualname__ = "Mine"
    register_family(again)
    assert [again] == models._OTHERS


def test_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    announce(monkeypatch, "mine", f"{__name__}:Mine")
    assert type(find_adapter(Model())) is Mine
    assert "mine" in supported_model_types()


def test_broken_entry_point(monkeypatch: pytest.MonkeyPatch, caplog: object) -> None:
    announce(monkeypatch, "mine", "no_such_module:Mine")
    reason = "model family 'mine' of an unknown package cannot be loaded .ModuleNotFoundError"
    for _ in range(2):
        with pytest.raises(UnsupportedModelError, match=reason):
            find_adapter(Model())
    assert len(caplog.records) == 1, "one warning"
    with pytest.raises(UnsupportedModelError, match="'else' is not supported"):
        find_adapter(Model("else"))


def test_entry_point_that_brings_another_model_type(monkeypatch: pytest.MonkeyPatch) -> None:
    announce(monkeypatch, "else", f"{__name__}:Mine")
    with pytest.raises(UnsupportedModelError, match="registers no family of that model type"):
        find_adapter(Model("else"))
