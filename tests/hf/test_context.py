"""Videos longer than the context: what is left of them is interpolated into it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import earlytom
from earlytom.hf.context import saved_positions, span_of, squeezed, video_room
from earlytom.method import Method
from earlytom.methods import EVS, Afterimage, FastV, HoliTom
from earlytom.models import find_adapter
from earlytom.models.llava_onevision import LlavaOnevision
from earlytom.models.qwen2_5_vl import Qwen25VL
from tests.families import FAMILIES, PROMPTS, VIDEO, Family, forward, generate, two_turns
from tests.image_families import IMAGE_FAMILIES

ROOM, CONTEXT = 35, 40  # seven eighths
SHARED = [*FAMILIES, *IMAGE_FAMILIES]
TOKENS = Afterimage(retention_ratio=0.25, encoder_budget=1.0)
CLOSE = {"atol": 5e-5, "rtol": 1e-4}


@pytest.fixture(scope="module", params=SHARED, ids=lambda f: f.name)
def owner(request: pytest.FixtureRequest) -> Family:
    family: Family = request.param
    return family


@pytest.fixture
def short(subject: nn.Module, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """The model, with a context shorter than its videos."""
    config = find_adapter(subject).language_model.config
    monkeypatch.setattr(config, "max_position_embeddings", CONTEXT)
    return subject


@contextmanager
def positions_seen(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the positions of every row of the prompts; enter it with the method on."""
    seen: list[Tensor] = []
    handle = find_adapter(model).language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.extend(_real_positions(**kwargs)), with_kwargs=True
    )
    try:
        yield seen
    finally:
        handle.remove()


def _real_positions(position_ids: Tensor, attention_mask: Any, **_: Any) -> list[Tensor]:
    if attention_mask is None:
        return list(position_ids)
    if attention_mask.dim() == 4:
        attention_mask = attention_mask[:, 0, -1] > -100
    return [row[mask.bool()] for row, mask in zip(position_ids, attention_mask, strict=True)]


# ---------------------------------------------------------------------------- places
@given(st.data())
def test_places_stay_apart_and_inside(data: st.DataObject) -> None:
    total = data.draw(st.integers(1, 200))
    place = sorted(data.draw(st.sets(st.integers(0, total - 1), min_size=1)))
    span = data.draw(st.integers(len(place), total + 5))
    found = squeezed(torch.tensor(place), total, span).tolist()
    if span >= total:
        assert found == place
        return
    assert found[0] >= 0
    assert found[-1] < span
    assert all(a < b for a, b in pairwise(found))
    for k, (old, new) in enumerate(zip(place, found, strict=True)):
        moved = new - old * span // total  # only to make room for tokens beside it
        assert moved <= k
        assert moved >= 0 or new == span - len(place) + k


def test_sparse_places_are_interpolated() -> None:
    assert squeezed(torch.tensor([0, 9, 40, 99]), 100, 50).tolist() == [0, 4, 20, 49]
    assert squeezed(torch.tensor([50, 51, 52, 98, 99]), 100, 50).tolist() == [25, 26, 27, 48, 49]


@pytest.mark.parametrize(
    ("total", "left", "room", "span"),
    [(100, 10, None, 100), (100, 10, 50, 50), (100, 60, 50, 60), (40, 10, 50, 40)],
)
def test_span_holds_what_is_left(total: int, left: int, room: int | None, span: int) -> None:
    assert span_of(total, left, room) == span


def test_rows_and_later_videos_count_for_themselves() -> None:
    # row 0: text, video of 8, text, video of 4, text; row 1: padding, then a video of 6, text
    visual = torch.zeros(2, 15, dtype=torch.bool)
    visual[0, 1:9] = visual[0, 10:14] = visual[1, 8:14] = True
    valid = ~visual
    valid[1, :8] = False
    valid[0, [1, 8, 12]] = valid[1, [8, 13]] = True
    saved = saved_positions(valid, visual, [12, 6], [8, 4, 6], 4)
    assert saved is not None
    place = torch.arange(15) - saved
    assert place[0][valid[0]].tolist() == [0, 1, 4, 5, 8, 10]
    assert (torch.arange(15) - 8 - saved[1])[valid[1]].tolist() == [0, 3, 4]
    assert saved_positions(valid, visual, [12, 6], [8, 4, 6], 8) is None


# ---------------------------------------------------------------------------- models
@pytest.mark.parametrize("method", [TOKENS, EVS(retention_ratio=0.25)], ids=lambda m: m.name)
@pytest.mark.parametrize("prompt", ["one_video", "two_videos", "batch_padded"])
def test_positions_of_a_prompt(
    owner: Family, short: nn.Module, method: Method, prompt: str
) -> None:
    inputs = owner.inputs(PROMPTS[prompt])
    with method(short), positions_seen(short) as seen:
        forward(short, inputs)
        report = earlytom.last_report(short)
    assert report.positions == "squeeze"
    for parts, row in zip(PROMPTS[prompt], seen, strict=True):
        places = (row - row[0]).tolist()
        assert places == sorted(set(places))
        text = sum(int(p[1:]) for p in parts if p[0] == "t") + 1
        # where frames have text between them, more than the room is left
        room = ROOM if owner in FAMILIES else (len(places) - text) // parts.count("v")
        assert places[-1] == text + parts.count("v") * room - 1


def test_what_fits_stays_where_it_was(
    owner: Family, subject: nn.Module, short: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = owner.inputs(PROMPTS["one_video"])
    explicit = Afterimage(retention_ratio=0.25, encoder_budget=1.0, positions="keep")
    with explicit(short):
        kept = forward(short, inputs).logits
        assert earlytom.last_report(short).positions == "keep"
    config = find_adapter(subject).language_model.config
    monkeypatch.setattr(config, "max_position_embeddings", 4096)
    with TOKENS(subject):
        assert torch.equal(forward(subject, inputs).logits, kept)


def test_nothing_moves_if_everything_stays(owner: Family, short: nn.Module) -> None:
    inputs = owner.inputs(PROMPTS["two_videos"])
    plain = forward(short, inputs).logits
    with Afterimage(retention_ratio=1.0, encoder_budget=1.0)(short):
        torch.testing.assert_close(forward(short, inputs).logits, plain, **CLOSE)
        assert earlytom.last_report(short).positions == "keep"


@pytest.mark.parametrize("prompt", ["batch_padded", "two_videos"])
def test_decode_equals_full_reforward(owner: Family, short: nn.Module, prompt: str) -> None:
    inputs = owner.inputs(PROMPTS[prompt])
    width = inputs["input_ids"].shape[1]
    with TOKENS(short):
        out = generate(short, inputs, return_dict_in_generate=True, output_logits=True)
        stepwise = torch.stack(out.logits, 1)
        full = owner.longer(inputs, out.sequences[:, :-1])
        for use_cache in (True, False):
            again = forward(short, full, use_cache=use_cache).logits
            torch.testing.assert_close(again[:, width - 1 :], stepwise, **CLOSE)


def test_batch_row_equals_row_alone(owner: Family, short: nn.Module) -> None:
    both = owner.inputs(PROMPTS["batch_padded"])
    with TOKENS(short):
        kw = {"return_dict_in_generate": True, "output_logits": True}
        together = torch.stack(generate(short, both, **kw).logits, 1)
        for row in range(2):
            alone = generate(short, owner.row_alone(both, row, [row]), **kw).logits
            torch.testing.assert_close(together[row], torch.stack(alone, 1)[0], **CLOSE)


def test_a_second_turn_goes_on_behind_the_first() -> None:
    family = FAMILIES[0]
    model = family.model()
    find_adapter(model).language_model.config.max_position_embeddings = CONTEXT
    with TOKENS(model), torch.no_grad():
        second, whole, both = two_turns(model, family)
        torch.testing.assert_close(second.logits[:, -1], whole, **CLOSE)
        more = torch.tensor([[5, 6]])
        third = model(input_ids=more, past_key_values=second.past_key_values)
        longer = {**both, "input_ids": torch.cat([both["input_ids"], more], 1)}
        longer["attention_mask"] = torch.ones_like(longer["input_ids"])
        expected = forward(model, longer).logits[:, -2:]
    torch.testing.assert_close(third.logits, expected, **CLOSE)


# ---------------------------------------------------------------------------- who has a limit
@pytest.mark.parametrize(
    ("method", "text", "room"),
    [
        (TOKENS, {"max_position_embeddings": 32768}, 28672),
        (EVS(), {"max_position_embeddings": 80}, 70),
        (HoliTom(), {"max_position_embeddings": 80}, None),  # renumbers
        (Afterimage(positions="keep"), {"max_position_embeddings": 80}, None),
        (FastV(), {"max_position_embeddings": 80}, None),
        (TOKENS, {}, None),
        (
            TOKENS,
            {"max_position_embeddings": 80, "rope_parameters": {"rope_type": "yarn"}},
            None,
        ),
        (TOKENS, {"max_position_embeddings": 80, "rope_scaling": {"type": "linear"}}, None),
    ],
)
def test_room(method: Method, text: dict[str, Any], room: int | None) -> None:
    assert video_room(LlavaOnevision, method, SimpleNamespace(**text)) == room
    assert video_room(Qwen25VL, method, SimpleNamespace(**text)) is None


def test_placeholders_are_read_only_where_somebody_has_to_know(host_copies: list[str]) -> None:
    """A video that fits costs no look at the device that it did not cost before."""
    model, inputs = FAMILIES[0].model(), FAMILIES[0].inputs(PROMPTS["one_video"])
    counts = []
    for positions in ("auto", "keep"):
        with EVS(retention_ratio=0.25, positions=positions)(model):
            host_copies.clear()
            forward(model, inputs)
            counts.append(len(host_copies))
    assert counts[0] == counts[1]
    assert int((inputs["input_ids"] == VIDEO).sum()) > 0
