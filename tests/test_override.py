from types import SimpleNamespace

from torch import nn

from earlytom.override import Override


def test_own_attributes_come_back():
    module = nn.Linear(2, 2)
    plain = set(module.__dict__)
    outer = Override(module, "forward", "first")
    inner = Override(module, "forward", "second")
    assert module.forward == "second"
    inner.remove()
    assert module.forward == "first"
    outer.remove()
    assert set(module.__dict__) == plain
    assert module.forward.__func__ is nn.Linear.forward


def test_removing_twice_changes_nothing():
    owner = SimpleNamespace(forward="own")
    override = Override(owner, "forward", "other")
    override.remove()
    override.remove()
    assert owner.forward == "own"
