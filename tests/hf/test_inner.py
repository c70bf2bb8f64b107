"""Points inside the language model: what methods see there, and how decoding goes on behind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import earlytom
from earlytom.errors import ConfigError, UnsupportedModelError
from earlytom.method import Method
from earlytom.methods import FastV, PyramidDrop
from earlytom.stages import InnerMerge, InnerPoint, InnerState, TokenSelection, VideoFeatures
from tests.families import FRAMES, PROMPTS, Family, forward, generate
from tests.hf.test_cost import _Shapes
from tests.masked import check, recorded

ONEVISION, GRID = (
    Family("llava_onevision"),
    Family("llava_video", tokens_per_frame=4, newlines_per_video=FRAMES * 2),
)


@dataclass(frozen=True, kw_only=True)
class Halves(Method):
    """At every point keep the half of the visual columns that is looked at most.

    ``blur`` adds a little of the mean to every column left, so that hidden states change, too.
    """

    name: ClassVar[str] = "halves"
    retention_ratio: float = 1.0
    points: tuple[InnerPoint, ...] = (InnerPoint(2),)
    renumber: bool = False
    blur: float = 0.0
    queries: int = 1
    drop_newlines: bool = True

    def inner_points(self, n_layers: int) -> tuple[InnerPoint, ...]:
        return self.points

    @property
    def inner_positions(self) -> str:
        return "renumber" if self.renumber else "keep"

    def select_tokens(self, video: VideoFeatures) -> TokenSelection | None:
        if self.retention_ratio == 1:
            return None
        total = video.features.shape[0] * video.features.shape[1]
        return TokenSelection(torch.arange(0, total, round(1 / self.retention_ratio)))

    def inner_queries(self, state: InnerState) -> Tensor | None:
        n = state.hidden.shape[0]
        return None if self.queries == 1 else torch.arange(n - self.queries, n)

    def merge_inner(self, state: InnerState) -> InnerMerge | None:
        seen = state.attention
        score = state.hidden[:, 0] if seen is None else seen.mean((0, 1))
        candidates = state.visual if self.drop_newlines else state.patch >= 0
        count = int(candidates.sum())
        order = torch.where(candidates, score, torch.inf).sort(descending=True, stable=True)
        index = order.indices[: len(score) - count // 2].sort().values
        hidden = state.hidden[index]
        return InnerMerge(index, hidden + self.blur * hidden.mean(0) if self.blur else None)


@dataclass(frozen=True, kw_only=True)
class Fading(Method):
    """Every decode step hides the columns that the steps so far looked at least, on average."""

    name: ClassVar[str] = "fading"
    retention_ratio: float = 1.0
    layer: int = 1

    def decode_layer(self, n_layers: int) -> int:
        return self.layer

    def decode_keep(self, last_row: Tensor, memory: dict[str, Any]) -> Tensor:
        memory["sum"] = memory.get("sum", 0) + last_row.mean(0)
        score: Tensor = memory["sum"]
        order = score.sort(descending=True, stable=True).indices
        return torch.zeros_like(score).bool().index_fill(0, order[: len(score) // 4], True)


P = InnerPoint
METHODS: dict[str, Halves] = {
    "two": Halves(points=(P(1), P(3)), blur=0.3),
    "own": Halves(points=(P(1, "own"), P(2, "own"), P(3, "own")), retention_ratio=0.5),
    "renumber": Halves(points=(P(1, "own"), P(3)), renumber=True),
    "renumber-outer-keep": Halves(
        points=(P(1), P(2, "own")), renumber=True, retention_ratio=0.5, positions="keep"
    ),
    "after": Halves(points=(P(0, "own", True), P(2, "own", True)), blur=0.2),
    "after-last": Halves(points=(P(3, "own", True),)),
    "after-renumber": Halves(points=(P(0, "none", True), P(2)), renumber=True),
    "embeddings": Halves(points=(P(0, "none"), P(0, "own", True), P(2, "own")), blur=0.2),
    "both": Halves(points=(P(1, "own"), P(1, "own", True)), queries=3),
    "fastv": Halves(points=(P(2),), queries=2, drop_newlines=False),
}


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    return ONEVISION.model(attn=request.param)


@pytest.fixture(scope="module")
def sdpa() -> nn.Module:
    return ONEVISION.model()


@pytest.fixture(autouse=True)
def _always_restored(sdpa: nn.Module) -> Iterator[None]:
    yield
    earlytom.restore(sdpa)


# ---------------------------------------------------------------------- decoding
@pytest.mark.parametrize("prompt", ["one_video", "batch_padded", "batch_mixed", "text_only"])
@pytest.mark.parametrize("name", METHODS)
def test_decode_equals_the_masked_reference(
    model: nn.Module, name: str, prompt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = ONEVISION.inputs(PROMPTS[prompt])
    with METHODS[name](model):
        record, handle = recorded(model, METHODS[name], monkeypatch)
        with handle:
            out = generate(model, inputs, return_dict_in_generate=True, output_logits=True)
        check(model, record, out, inputs["input_ids"].shape[1])


def test_the_reference_notices_wrong_positions_and_masks(
    sdpa: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = ONEVISION.inputs(PROMPTS["one_video"])
    with METHODS["renumber"](sdpa):
        record, handle = recorded(sdpa, METHODS["renumber"], monkeypatch)
        with handle:
            out = generate(sdpa, inputs, return_dict_in_generate=True, output_logits=True)
        width = inputs["input_ids"].shape[1]
        check(sdpa, record, out, width)
        record.method = Halves(points=METHODS["renumber"].points)  # keeps positions
        with pytest.raises(AssertionError):
            check(sdpa, record, out, width)
        record.method = METHODS["renumber"]
        record.merges[1] = [None]
        with pytest.raises(AssertionError):
            check(sdpa, record, out, width)


@pytest.mark.parametrize("inputs", ["two_videos", "batch_mixed"])
@pytest.mark.parametrize("name", METHODS)
def test_caches_and_searches_agree(sdpa: nn.Module, name: str, inputs: str) -> None:
    given = ONEVISION.inputs(PROMPTS[inputs])
    with METHODS[name](sdpa):
        expected = generate(sdpa, given)
        static = generate(sdpa, given, cache_implementation="static", disable_compile=True)
        assert torch.equal(static, expected)
        beams = generate(sdpa, given, num_beams=3, num_return_sequences=3)
        assert torch.equal(beams, generate(sdpa, given, num_beams=3, num_return_sequences=3))


@pytest.mark.parametrize("renumber", [False, True])
def test_assisted_decoding_equals_greedy(sdpa: nn.Module, renumber: bool) -> None:
    """Candidates are part of the first forward, so decisions must not depend on the last query."""
    points = (P(1, "none"), P(1, "none", True), P(3, "none"))
    given = ONEVISION.inputs(PROMPTS["two_videos"])
    with Halves(points=points, renumber=renumber, retention_ratio=0.5)(sdpa):
        expected = generate(sdpa, given, max_new_tokens=12)
        got = generate(sdpa, given, prompt_lookup_num_tokens=3, max_new_tokens=12)
    assert torch.equal(got[:, : expected.shape[1]], expected)


BY_NAME = {**METHODS, "fading": Fading(), "fading-late": Fading(layer=3)}


@pytest.mark.parametrize("name", BY_NAME)
def test_beams_equal_a_loop_over_beams(sdpa: nn.Module, name: str) -> None:
    """Scores of the sequences that beam search returns, computed one by one."""
    inputs = ONEVISION.inputs(PROMPTS["one_video"])
    width = inputs["input_ids"].shape[1]
    with BY_NAME[name](sdpa), torch.no_grad():
        out = generate(
            sdpa, inputs, num_beams=3, num_return_sequences=3, return_dict_in_generate=True,
            output_scores=True, length_penalty=0.0,
        )  # fmt: skip
        for sequence, score in zip(out.sequences, out.sequences_scores, strict=True):
            state, total = sdpa(**inputs, use_cache=True), torch.zeros(())
            for token in sequence[width:]:
                logits = state.logits[0, -1].float()
                total += logits.log_softmax(-1)[token]
                state = sdpa(
                    input_ids=token.view(1, 1),
                    past_key_values=state.past_key_values,
                    use_cache=True,
                )
            torch.testing.assert_close(total, score, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", METHODS)
def test_second_turn_as_text_equals_decoding_it(sdpa: nn.Module, name: str) -> None:
    """Text on the cache in one step, or token by token; then once more after a padded batch."""
    for prompt in ("one_video", "batch_padded"):
        inputs = ONEVISION.inputs(PROMPTS[prompt])
        batch = len(inputs["input_ids"])
        g = torch.Generator().manual_seed(3)
        text = torch.randint(2, 100, (batch, 5), generator=g)
        with METHODS[name](sdpa), torch.no_grad():
            first = sdpa(**inputs, use_cache=True).past_key_values
            at_once = sdpa(input_ids=text, past_key_values=first, use_cache=True).logits
            cache, singly = sdpa(**inputs, use_cache=True).past_key_values, []
            for token in text.split(1, 1):
                out = sdpa(input_ids=token, past_key_values=cache, use_cache=True)
                singly.append(out.logits)
        torch.testing.assert_close(at_once, torch.cat(singly, 1), atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_a_second_video_sees_the_columns_left_of_the_first(sdpa: nn.Module, name: str) -> None:
    """The second turn in one forward, against the same forward with the cache cut by hand."""
    both = ONEVISION.inputs([["t3", "v", "t4", "v", "t2"]])
    ids, pixels = both["input_ids"], both["pixel_values_videos"]
    cut = 1 + 3 + 73 + 4
    seen: list[InnerState] = []
    with METHODS[name](sdpa), torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        merge = Halves.merge_inner

        def spy(m: Any, state: InnerState) -> InnerMerge | None:
            seen.append(state)
            return merge(m, state)

        patch.setattr(Halves, "merge_inner", spy)
        first = sdpa(input_ids=ids[:, :cut], pixel_values_videos=pixels[:1], use_cache=True)
        lengths = [layer.keys.shape[-2] for layer in first.past_key_values.layers]
        second = sdpa(
            input_ids=ids[:, cut:],
            pixel_values_videos=pixels[1:],
            past_key_values=first.past_key_values,
            use_cache=True,
        )
        added = [
            layer.keys.shape[-2] - n
            for layer, n in zip(second.past_key_values.layers, lengths, strict=True)
        ]
    points = METHODS[name].points
    assert len(seen) == 2 * len(points)
    assert second.logits.isfinite().all()
    assert second.past_key_values.get_seq_length() == ids.shape[1]
    for state in seen[len(points) :]:
        assert int(state.visual.sum()) == state.n_visual
        assert state.frame.max() < FRAMES, "frames of the second turn count from 0"
        if state.attention is not None:
            assert state.attention.shape[-1] == state.hidden.shape[0]
            assert (state.attention.sum(-1) < 0.999).all(), "the first turn gets its share"
    assert added == sorted(added, reverse=True)
    if name != "after-last":
        assert added[-1] < added[0] or name == "embeddings"


def test_a_decode_stage_leaves_the_cache_whole(sdpa: nn.Module, host_copies: list[str]) -> None:
    inputs, token = ONEVISION.inputs(PROMPTS["batch_padded"]), torch.tensor([[5], [6]])
    with torch.no_grad():
        plain = sdpa(**inputs, use_cache=True)
        mask = torch.cat([inputs["attention_mask"], torch.ones(2, 1).long()], 1)
        cache = plain.past_key_values
        host_copies.clear()
        full = sdpa(input_ids=token, past_key_values=cache, attention_mask=mask, use_cache=True)
        copies = len(host_copies)
        with Fading()(sdpa):
            first = sdpa(**inputs, use_cache=True)
            cache = first.past_key_values
            host_copies.clear()
            step = sdpa(input_ids=token, past_key_values=cache, use_cache=True)
            assert len(host_copies) <= copies
            widths = [layer.keys.shape[-2] for layer in cache.layers]
            again = sdpa(input_ids=token, past_key_values=cache, use_cache=True)
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(first.logits[real], plain.logits[real], atol=5e-5, rtol=1e-4)
    assert not torch.allclose(step.logits, full.logits, atol=1e-3)
    assert len(set(widths)) == 1
    assert again.logits.isfinite().all()


def test_steps_of_several_tokens_see_everything(sdpa: nn.Module) -> None:
    inputs, text = ONEVISION.inputs(PROMPTS["one_video"]), torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        cache = sdpa(**inputs, use_cache=True).past_key_values
        expected = sdpa(input_ids=text, past_key_values=cache, use_cache=True).logits
        with Fading()(sdpa):
            cache = sdpa(**inputs, use_cache=True).past_key_values
            got = sdpa(input_ids=text, past_key_values=cache, use_cache=True).logits
    torch.testing.assert_close(got, expected, atol=5e-5, rtol=1e-4)


def test_a_decode_layer_must_exist(sdpa: nn.Module) -> None:
    for layer in (0, 4):
        with pytest.raises(ConfigError, match=rf"decode layer {layer} .*1\.\.3"):
            earlytom.compress(sdpa, Fading(layer=layer))


# ---------------------------------------------------------------------- what methods see
def spied(
    model: nn.Module, method: Halves, inputs: dict[str, Any], patch: pytest.MonkeyPatch
) -> list[InnerState]:
    states: list[InnerState] = []
    merge = type(method).merge_inner

    def spy(m: Any, state: InnerState) -> InnerMerge | None:
        states.append(state)
        return merge(m, state)

    patch.setattr(type(method), "merge_inner", spy)
    with method(model):
        forward(model, inputs)
    return states


@pytest.mark.parametrize("family", [ONEVISION, GRID], ids=lambda f: f.name)
def test_frames_and_patches_of_the_columns(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = family.inputs(PROMPTS["batch_mixed"])
    points = (P(0, "none"), P(2))
    states = spied(family.model(), Halves(points=points), inputs, monkeypatch)
    first, size = states[:2], family.tokens_per_frame
    for state, videos in zip(first, (1, 2), strict=True):
        frames = FRAMES * videos
        assert state.entered == state.uncompressed == state.n_tokens == frames * size
        assert state.n_visual == state.n_tokens + videos * family.newlines_per_video
        assert int((state.patch == -2).sum()) == videos * family.newlines_per_video
        inside = state.patch >= 0
        want = torch.arange(frames * size)
        assert torch.equal(state.frame[inside], want // size)
        assert torch.equal(state.patch[inside], want % size)
        assert torch.equal(state.visual, state.patch != -1)
        assert (state.frame[~inside] == -1).all()
    for before, after in zip(first, states[2:], strict=True):
        assert after.point == 1
        assert after.memory is before.memory
        assert after.entered == before.entered
        assert int((after.patch >= 0).sum()) == after.n_tokens < before.n_tokens
        places = [(int(f), int(p)) for f, p in zip(after.frame, after.patch, strict=True) if p >= 0]
        assert places == sorted(set(places))


def test_uncompressed_counts_what_selection_dropped(
    sdpa: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = Halves(retention_ratio=0.5)
    (state,) = spied(sdpa, method, ONEVISION.inputs(PROMPTS["one_video"]), monkeypatch)
    assert (state.entered, state.uncompressed) == (FRAMES * 9 // 2, FRAMES * 9)


@pytest.mark.parametrize(("point", "layer"), [(P(2), 1), (P(2, "own"), 2), (P(2, "own", True), 2)])
def test_rows_are_those_of_the_attention_map(
    point: InnerPoint, layer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Grouped queries, causal mask, padding: against the maps of an eager model."""
    eager, inputs = ONEVISION.model(attn="eager"), ONEVISION.inputs(PROMPTS["batch_padded"])
    with torch.no_grad():
        maps = eager.model(**inputs, output_attentions=True).attentions[layer]
    keep_all = Halves(points=(point,), queries=4)
    monkeypatch.setattr(Halves, "merge_inner", lambda m, s: None)
    states = spied(eager, keep_all, inputs, monkeypatch)
    assert len(states) == 2
    for row, state in zip(maps, states, strict=True):
        n = state.hidden.shape[0]
        assert state.attention is not None
        torch.testing.assert_close(state.attention, row[:, -4:, -n:], atol=1e-5, rtol=1e-4)
        assert (state.attention[:, 0, -3:] == 0).all()


def test_rotary_of_the_columns(sdpa: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    rotary = sdpa.model.language_model.rotary_emb
    inputs = ONEVISION.inputs(PROMPTS["batch_padded"])
    for renumber in (False, True):
        method = Halves(points=(P(1, "own"), P(2, "own")), renumber=renumber)
        with pytest.MonkeyPatch.context() as patch:
            states = spied(sdpa, method, inputs, patch)
        for state in states[2:]:
            n = state.hidden.shape[0]
            assert state.rotary is not None
            cos, _ = rotary(state.hidden[None], torch.arange(n)[None])
            assert torch.allclose(state.rotary[0], cos[0]) == renumber


# ---------------------------------------------------------------------- cost and report
def test_no_attention_map(sdpa: nn.Module) -> None:
    inputs = ONEVISION.inputs(PROMPTS["one_video"])
    with METHODS["own"](sdpa), _Shapes() as shapes:
        forward(sdpa, inputs)
    report = earlytom.last_report(sdpa)
    assert report is not None
    widths = {n for _, *pair in report.inner for n in pair}
    assert len(widths) == 4
    assert not [s for s in shapes.seen if len(s) >= 2 and s[-1] == s[-2] and s[-1] in widths]


@pytest.mark.parametrize("name", ["fastv", "pyramiddrop", "two"])
def test_host_copies(sdpa: nn.Module, name: str, host_copies: list[str]) -> None:
    """One per point at most in a prefill, none in a decode step."""
    methods: dict[str, Method] = {
        "fastv": FastV(retention_ratio=0.5),
        "pyramiddrop": PyramidDrop(retention_ratio=0.5),
        "two": Halves(points=METHODS["two"].points),
    }
    inputs = ONEVISION.inputs(PROMPTS["batch_padded"])
    outer = Halves(points=(), retention_ratio=0.5)
    points = len(methods[name].inner_points(4))

    def prefill() -> Any:
        host_copies.clear()
        with torch.no_grad():
            return sdpa(**inputs, use_cache=True)

    with outer(sdpa):
        prefill()
        plain = len(host_copies)
    with methods[name](sdpa):
        cache = prefill().past_key_values
        own = 2 * points if name == "two" else 0  # this toy counts for itself
        assert len(host_copies) - plain <= points + own, host_copies
        token = torch.tensor([[5], [6]])
        host_copies.clear()
        with torch.no_grad():
            sdpa(input_ids=token, past_key_values=cache, use_cache=True)
        mine = len(host_copies)
    with torch.no_grad():
        cache = sdpa(**inputs, use_cache=True).past_key_values
        host_copies.clear()
        mask = torch.cat([inputs["attention_mask"], torch.ones(2, 1).long()], 1)
        sdpa(input_ids=token, past_key_values=cache, attention_mask=mask, use_cache=True)
    assert mine <= len(host_copies)


def test_layer_average_of_the_report(sdpa: nn.Module) -> None:
    inputs = ONEVISION.inputs(PROMPTS["batch_mixed"])
    total = 3 * FRAMES * 9
    method = Halves(points=(P(1), P(2, "own", True)), drop_newlines=False, retention_ratio=0.5)
    with method(sdpa):
        generate(sdpa, inputs)
    report = earlytom.last_report(sdpa)
    assert report is not None
    # every row is halved by itself; the MLP of layer 2 sees less, but the layer was entered full
    assert report.layer_tokens == (total // 2, total // 4, total // 4, total // 8)
    assert report.layer_total == total
    assert report.llm_retention == pytest.approx((1 / 2 + 1 / 4 + 1 / 4 + 1 / 8) / 4)
    assert [layer for layer, _, _ in report.inner] == [1, 2]
    assert report.to_dict()["llm_retention"] == report.llm_retention
    with Halves(points=(), retention_ratio=0.5)(sdpa):
        forward(sdpa, inputs)
    report = earlytom.last_report(sdpa)
    assert report is not None
    assert report.llm_retention == report.achieved_retention == 0.5


def test_hidden_states_are_those_of_the_columns_left(sdpa: nn.Module) -> None:
    inputs = ONEVISION.inputs(PROMPTS["one_video"])
    n = inputs["input_ids"].shape[1]
    with METHODS["after"](sdpa), torch.no_grad():
        states = sdpa(**inputs, output_hidden_states=True).hidden_states
    widths = [s.shape[1] for s in states]
    assert widths[0] == n
    assert widths[1] < n
    assert widths[3] < widths[2] == widths[1]


# ---------------------------------------------------------------------- refused
@pytest.mark.parametrize(
    ("points", "match"),
    [
        ((P(4),), r"inner layer 4 is out of range.*1\.\.3"),
        ((P(0),), r"inner layer 0 .*1\.\.3"),
        ((P(0, "own"),), r"inner layer 0 .*1\.\.3"),
        ((P(4, "own", True),), r"inner layer 4 .*0\.\.3"),
        ((P(2), P(1)), "ascending"),
        ((P(2), P(2)), "ascending"),
        ((P(1, "previous", True),), '"own" or "none"'),
        ((P(1, "own", True), P(2)), "cannot look at"),
        ((P(1, "next"),), "none, previous, own"),
    ],
)
def test_points_that_cannot_be_served(
    sdpa: nn.Module, points: tuple[InnerPoint, ...], match: str
) -> None:
    with pytest.raises(ConfigError, match=match):
        earlytom.compress(sdpa, Halves(points=points))


def test_a_cache_of_another_method_is_refused(sdpa: nn.Module) -> None:
    inputs = ONEVISION.inputs(PROMPTS["one_video"])
    token = torch.tensor([[7]])
    with METHODS["two"](sdpa), torch.no_grad():
        cache = sdpa(**inputs, use_cache=True).past_key_values
    with METHODS["own"](sdpa), torch.no_grad(), pytest.raises(UnsupportedModelError, match="cache"):
        sdpa(input_ids=token, past_key_values=cache, use_cache=True)
