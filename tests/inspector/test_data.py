"""What is shown is what the engine recorded."""

from __future__ import annotations

import json

import pytest
import torch

from earlytom import EarlyTom
from earlytom.errors import ConfigError
from earlytom.inspect import inspect_video
from earlytom.inspect.signals import find_sinks, scatter
from earlytom.inspect.states import borders, leaving, patch_states
from earlytom.ops.segment import segment_official, segment_stream
from earlytom.ops.similarity import FrameBand
from earlytom.pipeline import VideoQA
from earlytom.trace import note, tracing
from earlytom.video import load_video
from tests.inspector.conftest import SHOWN

TOKENS = "Tokens for the language model"
# their tokens stand for patches from here and there: see the map of patches
PLACED = ("tome", "tome-falling", "ficoco", "resize", "mustdrop", "compose-tome-fastv")
PATCHES = "Patches in the encoder, by token"


@pytest.fixture(params=SHOWN)
def run(request, found):
    return next(r for r in found.runs if r.label == request.param)


def maps(run):
    return {m.title: m for m in run.maps}


def test_all_methods_are_there(found):
    assert not found.skipped
    assert [r.label for r in found.runs] == list(SHOWN)
    assert found.pictures.shape[0] == len(found.seconds) == 8
    json.dumps(found.to_dict(), allow_nan=False)


def test_kept_tokens_are_those_of_the_report(run):
    tokens = maps(run).get(TOKENS)
    if tokens is None:
        assert run.label in PLACED
        return
    entered = {
        (frame, patch)
        for frame, row in enumerate(tokens.states)
        for patch, letter in enumerate(row)
        if letter in "kl" and frame in run.report.first
    }
    assert entered == {(frame, patch) for frame, patch, _ in run.report.provenance()}
    inner = run.answer.report.layer_tokens
    stay = sum(tokens.states[f].count("k") for f in run.report.first)
    assert stay == (inner[-1] if inner else run.report.tokens_out)


def test_cells_of_merged_frames_follow_the_weights(run):
    if TOKENS not in maps(run) or not run.report.plans:
        return
    whole = torch.eye(run.report.frames_in, dtype=torch.float64)
    for plan in run.report.plans:
        whole = plan.dense() @ whole
    states = maps(run)[TOKENS].states
    gone = set(range(run.report.frames_in)) - set(run.report.first)
    for j, first in enumerate(run.report.first):
        for frame in sorted(gone):
            if whole[j, frame] > 0:
                assert states[frame] == states[first].replace("k", "m")
    for frame in gone:
        if not whole[:, frame].any():
            assert set(states[frame]) <= set("sld")


def test_weights_of_every_merge_sum_to_one(run):
    assert len(run.steps) == len(run.report.plans)
    for step, left in zip(run.steps, run.report.frames_per_merge_point, strict=True):
        assert len(step.members) == left
        for weights in step.weights:
            assert sum(weights) == pytest.approx(1.0)
    if run.steps:
        last = run.steps[-1]
        assert tuple(last.before[m[0]] for m in last.members) == run.report.first


def test_flow_is_that_of_the_report(run):
    flow = {what: (full, method) for what, full, method in run.flow()}
    report = run.report
    assert flow["frames out of the encoder"] == (8, report.frames_out)
    tokens = flow["visual tokens into the language model"]
    assert tokens == (report.tokens_in, report.tokens_out)
    assert flow["columns of the prompt, text included"] == run.answer.report.prompt_columns
    assert flow["patches its last layer computed"][0] == 8 * 16
    if run.answer.report.layer_tokens:
        assert flow["visual tokens in its last layer"][1] == run.answer.report.layer_tokens[-1]


def test_computed_patches_are_those_of_the_report(found):
    run = next(r for r in found.runs if r.label == "afterimage")
    drawn = maps(run)["Patches computed in the encoder"]
    assert "".join(drawn.states).count("f") == run.report.reuse[1]
    assert drawn.states[0] == "f" * 16  # the first frame has nothing to reuse
    assert drawn.grid == (4, 4)


@pytest.mark.parametrize(
    ("label", "letters"),
    [
        ("tome", "m"),
        ("tome-falling", "dm"),
        ("mustdrop", "dkm"),
        ("ipcv", "dk"),
        ("compose-tome-fastv", "dklm"),
    ],
)
def test_patches_inside_the_encoder(found, label, letters):
    run = next(r for r in found.runs if r.label == label)
    drawn = maps(run)[PATCHES]
    assert drawn.grid == (4, 4)
    assert all(len(row) == 16 for row in drawn.states)
    text = "".join(drawn.states)
    assert "".join(sorted(set(text))) == letters
    assert text.count("k") <= 8 * run.report.patch_reductions[-1][1]
    assert any(drawn.borders) == (label != "tome")  # here one token is left of a frame


def test_curves(found):
    runs = {r.label: r for r in found.runs}
    official = runs["earlytom-official"]
    assert len(official.curves) == 3  # two merge points, and the selection
    for curve in official.curves:
        assert curve.threshold == 0.5
        assert len(curve.similarity) == len(curve.average) == len(curve.frames) - 1
        assert curve.groups[-1][1] == len(curve.frames) - 1
    first = official.curves[0]
    assert first.frames == tuple(range(8))
    assert first.average[0] == pytest.approx(0.9 * first.similarity[0] + 0.1)
    assert official.steps[0].groups == first.groups
    budget = runs["earlytom-budget"].curves
    assert budget
    assert all(c.threshold is None and c.average is None for c in budget)
    assert not runs["visionzip"].curves


def test_attention_is_relative_to_the_mean(found):
    run = next(r for r in found.runs if r.label == "earlytom-official")
    assert run.attention.shape == (run.report.frames_out, 2, 2)
    assert run.attention.mean((1, 2)) == pytest.approx(1.0)
    raw = run.report.received[0]
    assert torch.tensor(run.attention[0].ravel()) == pytest.approx(raw / raw.mean())
    assert next(r for r in found.runs if r.label == "afterimage").attention is None


def test_patch_states_by_hand():
    owner = torch.tensor([[0, 0, 1, -1], [1, 0, 1, 2]])
    assert patch_states(owner) == ("mmkd", "mkmk")
    assert patch_states(owner, torch.tensor([0, 4, 5])) == ("mmdd", "mdmk")  # 3 tokens per frame
    later = torch.tensor([[False, True, False], [False, False, True]])
    assert patch_states(owner, None, later) == ("mmld", "mkml")
    order = torch.tensor([[2, 0, 1]])
    assert leaving(
        torch.tensor([[True, False, True, True]]), order, torch.tensor([[0, 1, 3]])
    ).tolist() == [[True, False, False]]
    assert borders(owner, (2, 2)) == [
        [(1, 1, 0, 1), (0, 1, 1, 0), (1, 1, 1, 0)],
        [(1, 0, 0, 1), (1, 1, 0, 1), (1, 1, 1, 0)],
    ]


def test_sinks():
    received = torch.rand(6, 49, generator=torch.Generator().manual_seed(0))
    received[:4, 7] = 20.0
    received[:2, 9] = 20.0  # extreme in too few frames
    found = find_sinks(received)
    assert found.places == (7,)
    assert found.share == pytest.approx(float(received[:, 7].sum() / received.sum()))


def test_scatter():
    x = torch.zeros(6, 5)
    x[:, 3] = torch.arange(6.0)
    drawn = scatter(x, torch.tensor([True, False, False, True, False, False]))
    assert (len(drawn.points), drawn.kept, drawn.total) == (6, 2, 6)
    assert drawn.explained[0] == pytest.approx(1.0)
    along = [p[0] for p in drawn.points]  # those dropped first: 1 2 4 5, then 0 3
    assert along in ([0.2, 0.4, 0.8, 1.0, 0.0, 0.6], [0.8, 0.6, 0.2, 0.0, 1.0, 0.4])
    assert len(scatter(torch.randn(5000, 4), torch.rand(5000) > 0.5).points) <= 1200
    assert scatter(x * torch.nan, torch.ones(6, dtype=torch.bool)) is None


def test_trace_notes_only_inside():
    band = FrameBand(4, ((0.9, 0.1, 0.8),))
    note("outside")
    with tracing() as trace:
        segment_stream(band.adjacent(), 0.5, 1.0)
        segment_official(band, 0.5, 1.0, 3)
    segment_stream(band.adjacent(), 0.5, 1.0)
    assert [kind for kind, _ in trace.events] == ["segments", "segments"]
    stream, official = (values for _, values in trace.events)
    assert stream["average"] == [0.9, 0.1, 0.8]
    assert official["similarity"] == [0.9, None, 0.8]  # full at two frames
    assert official["groups"] == ((0, 1), (2, 3))


def test_methods_that_do_not_fit(folder, clip):
    qa, video = VideoQA.load(folder, device="cpu"), load_video(clip, 4)
    wrong = EarlyTom(merge_layers=(40,))
    with pytest.raises(ConfigError, match=r"wrong: merge_layers \(40,\) is out of range"):
        inspect_video(qa, video, "what", {"wrong": wrong}, max_new_tokens=1)
    with pytest.raises(ConfigError, match="at least one method"):
        inspect_video(qa, video, "what", {})
    both = inspect_video(qa, video, "what", {"wrong": wrong, "ok": EarlyTom()}, max_new_tokens=1)
    assert [r.label for r in both.runs] == ["ok"]
    assert both.skipped[0][0] == "wrong"
