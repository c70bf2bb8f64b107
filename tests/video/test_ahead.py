"""Reading ahead: same items, same errors, few items at a time, and never a thread left behind."""

import gc
import os
import signal
import threading
import weakref

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from earlytom.errors import VideoError
from earlytom.video import ReadAhead

PATIENCE = 30  # seconds until a test that hangs fails


def running():
    return [t.name for t in threading.enumerate() if t.name == "earlytom-read"]


@pytest.fixture(autouse=True)
def nothing_is_left_running():
    yield
    assert running() == []


@pytest.fixture
def ctrl_c():
    """Background shells start programs with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, before)


class Item:
    pass


def collect(items, got, until=None, error=None):
    """Put what ``items`` gives into ``got``; raise ``error`` at the item ``until``."""
    with items:
        for item in items:
            if item == until:
                raise error
            got.append(item)


def numbers(n, closed=None):
    try:
        yield from range(n)
    finally:
        if closed is not None:
            closed.append(threading.current_thread().name)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(0, 12), depth=st.integers(1, 6), stop=st.none() | st.integers(0, 12))
def test_same_items_in_order(n, depth, stop):
    closed, got = [], []
    with ReadAhead(numbers(n, closed), depth) as items:
        assert items.finished is None or n < depth
        for item in items:
            if item == stop:
                break
            got.append(item)
    assert got == list(range(n))[:stop]
    assert closed in (["earlytom-read"], [])  # [] if it was stopped before the first item
    assert closed or (stop == 0 and n > 0) or n == 0
    if stop is None:
        assert items.finished is not None
        assert list(items) == []
    assert running() == []


@pytest.mark.parametrize("place", [0, 1, 5])
def test_errors_come_where_they_happen(place):
    def broken():
        yield from range(place)
        raise VideoError("cannot decode it")

    items, got = ReadAhead(broken()), []
    with pytest.raises(VideoError, match="cannot decode it") as caught:
        collect(items, got)
    assert got == list(range(place))
    with pytest.raises(StopIteration):
        next(items)
    assert items.finished is None
    assert [f.name for f in caught.traceback][-1] == "broken"


def test_it_works_while_the_reader_works():
    """The second item is begun while the reader still has the first: else this would hang."""
    begun, reading = threading.Event(), threading.Event()

    def source():
        yield 0
        assert reading.wait(PATIENCE)
        begun.set()
        yield 1

    with ReadAhead(source(), depth=2) as items:
        assert next(items) == 0
        reading.set()
        assert begun.wait(PATIENCE)
        assert list(items) == [1]


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_few_items_at_a_time(depth):
    alive, most = weakref.WeakSet(), []

    def source():
        for _ in range(20):
            item = Item()
            alive.add(item)
            most.append(len(alive))
            yield item
            del item

    count = 0
    with ReadAhead(source(), depth) as items:
        for item in items:
            count += 1
            del item
    assert count == 20
    assert max(most) <= depth
    assert not alive


def test_errors_keep_no_item_alive():
    alive = weakref.WeakSet()

    def source(broken):
        for i in range(6):
            item = Item()
            alive.add(item)
            yield item
            if broken and i == 3:
                raise VideoError("damaged")  # its traceback refers to the item
            del item

    def leave(items, after):
        with items:
            for i, item in enumerate(items):
                del item
                if i == after:
                    raise RuntimeError

    gc.collect()
    gc.disable()  # reference counts alone must do
    try:
        for broken in (True, False):
            with pytest.raises((VideoError, RuntimeError)):
                leave(ReadAhead(source(broken)), 9 if broken else 2)
            assert not alive
    finally:
        gc.enable()


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt, GeneratorExit])
def test_reader_that_fails(kind):
    closed = []
    with pytest.raises(kind):
        collect(ReadAhead(numbers(10**9, closed)), [], until=7, error=kind)
    assert closed == ["earlytom-read"]


def test_interrupt_while_waiting_for_an_item(ctrl_c):
    closed, asked, left = [], threading.Event(), threading.Event()

    def source():
        try:
            yield 0
            assert asked.wait(PATIENCE)
            ctrl_c()
            assert left.wait(PATIENCE)
            yield 1
        finally:
            closed.append(True)

    def ask(items):
        asked.set()
        next(items)

    with ReadAhead(source()) as items:
        next(items)
        with pytest.raises(KeyboardInterrupt):
            ask(items)
        left.set()
    assert closed


def test_interrupt_while_waiting_for_the_end(ctrl_c):
    """A second Ctrl-C does not leave the thread behind; it is raised when the thread is done."""
    waiting, again = threading.Event(), threading.Event()

    def source():
        yield 0
        assert waiting.wait(PATIENCE)
        ctrl_c()
        assert again.wait(PATIENCE)
        yield 1

    class Ended(threading.Event):
        def wait(self, timeout=None):
            (again if waiting.is_set() else waiting).set()
            return super().wait(timeout)

    def fail():
        items = ReadAhead(source())
        items._ended = Ended()
        with items:
            next(items)
            raise RuntimeError("first")

    with pytest.raises(KeyboardInterrupt) as caught:
        fail()
    assert isinstance(caught.value.__context__, RuntimeError)


def test_errors_of_closing_are_logged(caplog):
    def stubborn():
        try:
            while True:
                yield 0
        finally:
            raise OSError("disk gone")

    with ReadAhead(stubborn()) as items:
        next(items)
    assert "disk gone" in caplog.text


def test_interrupt_while_starting(monkeypatch):
    started = []

    def start(self):
        original(self)
        started.append(self)
        raise KeyboardInterrupt

    original = threading.Thread.start
    closed = []
    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(KeyboardInterrupt), ReadAhead(numbers(10**9, closed)):
        pass
    started[0].join(PATIENCE)
    assert not started[0].is_alive()


def test_bad_depth():
    with pytest.raises(ValueError, match="depth must be >= 1"):
        ReadAhead(iter(()), 0)
