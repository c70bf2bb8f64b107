"""What a speed result says, and that it adds up."""

from __future__ import annotations

import json

import pytest
import torch

from earlytom.bench.memory import peak_of_allocations
from earlytom.bench.speed import paper, tables
from earlytom.bench.speed.cases import Schedule, cases
from earlytom.bench.speed.run import SpeedPlan, run_speed, save
from earlytom.bench.speed.workload import draw_video, workload
from earlytom.bench.table import markdown_table
from earlytom.errors import ConfigError, EarlyTomError, UnsupportedModelError
from tests.bench.speed.conftest import FRAMES

PER_FRAME = 49


def test_every_case_is_there_once(data) -> None:
    assert [(c["label"], c["retention_ratio"]) for c in data["cases"]] == [
        ("full", 1.0),
        ("earlytom-budget", 0.25),
        ("afterimage", 0.25),
        ("visionzip", 0.25),
    ]
    assert json.loads(json.dumps(data, allow_nan=False)) == data


def test_tokens_are_those_of_the_whole_batch(data) -> None:
    full, budget = data["cases"][:2]
    assert full["tokens"] == 2 * FRAMES * PER_FRAME
    assert budget["tokens"] == 2 * -(-FRAMES * PER_FRAME // 4)
    assert budget["prompt_columns"] == full["prompt_columns"] - FRAMES * PER_FRAME + 74
    assert full["frames_out"] == [FRAMES] * 2


def test_stages_add_up_to_the_first_token(data) -> None:
    for case in data["cases"]:
        seconds = case["seconds"]
        assert seconds["total"]["median"] >= seconds["ttft"]["median"]
        for part in ("vision", "tokens", "prefill", "preprocess"):
            assert seconds[part]["median"] > 0
        for name, value in seconds.items():
            assert value["q1"] <= value["median"] <= value["q3"], name
    plan = SpeedPlan(methods=("none",), frames=2, repeats=1, new_tokens=1, device="cpu")
    one = run_speed(plan)["cases"][0]
    whole = sum(one["seconds"][name]["median"] for name in tables.STAGES)
    assert whole == pytest.approx(one["seconds"]["ttft"]["median"])
    assert one["decode_tokens_per_s"] is None


def test_formula_and_counter_agree(data) -> None:
    for case in data["cases"]:
        counted, formula = case["flops_counted"], case["flops"]
        for part in ("encoder", "projector", "llm"):
            assert counted[part] == pytest.approx(formula[part], rel=0.01), (case["label"], part)
        assert counted["compression"] < 0.02 * formula["total"]


def test_the_full_model_has_no_overhead_and_no_speedup(data) -> None:
    full, *others = data["cases"]
    assert full["overhead_s"]["median"] == 0.0
    assert full["overhead_parts_s"] == {}
    assert full["ttft_speedup"] == {"median": 1.0, "q1": 1.0, "q3": 1.0}
    assert full["flops_speedup"] == 1.0
    for case in others:
        assert 0 < case["overhead_s"]["median"] < case["seconds"]["ttft"]["median"]
        assert case["flops_speedup"] > 1


def test_the_cpu_has_no_launches(data) -> None:
    assert all(case["cuda"] is None for case in data["cases"])
    assert data["environment"]["device"] == "cpu"


def test_allocations_are_seen_as_they_happen() -> None:
    x = torch.zeros(256, 1024)  # 1 MiB
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        a = x + 1
        b = a + 1
        del a
        c = b + 1
        del b, c
    assert peak_of_allocations(profile) == pytest.approx(2.0, abs=0.01)


def test_saving_names_setting_and_machine(data, tmp_path) -> None:
    path = save(data, tmp_path)
    assert path == tmp_path / "speed" / f"tiny_{FRAMES}f_b2_cpu_float32_sdpa.json"
    assert json.loads(path.read_text()) == data


def test_tables(data) -> None:
    header, lines = tables.summary(data)
    assert {len(line) for line in lines} == {len(header)}
    assert lines[0][:2] == ("full", "100%")
    assert len(markdown_table(header, lines)) == len(lines) + 2
    assert "2 threads" in tables.headline(data) or "1 threads" in tables.headline(data)


def test_published_times_stand_beside_the_measured(data) -> None:
    named = data | {"model": {"name": "llava-onevision-7b", "weights": "random"}}
    header, lines = paper.beside(named)
    assert {len(line) for line in lines} == {len(header)}
    assert lines[0][-2:] == ("890", "1.00x")
    assert lines[1][-2:] == ("426", "2.09x")
    assert lines[2][-2:] == ("-", "-")
    assert paper.beside(data)[1][1][-2:] == ("-", "-")


# ---------------------------------------------------------------------- what is run
def test_videos_move_and_are_the_same_for_a_seed() -> None:
    a, b = draw_video(6, 1, (64, 96)), draw_video(6, 2, (64, 96))
    assert a.shape == (6, 64, 96, 3)
    assert a.dtype == torch.uint8
    assert torch.equal(a, draw_video(6, 1, (64, 96)))
    assert not torch.equal(a, b)
    step = (a[1:].float() - a[:-1].float()).abs().mean((1, 2, 3))
    assert step.argmax() == 3  # the cut
    assert step.min() > 0


def test_schedules_scale_the_published_layers() -> None:
    assert Schedule((24, 18, 14)).at(26) == (10, 21, 23)
    assert Schedule((24, 18, 14)).at(12) == (4, 9, 10)
    assert Schedule((4, 2), (1, 3)).at(12) == (1, 3)
    with pytest.raises(ConfigError, match="needs as many merge layers, got 1"):
        Schedule((4, 2), (1,)).at(12)


def load(**changes):
    given = {"named": True, "frames": 2, "batch": 1, "attn": None}
    given |= {"device": torch.device("cpu"), "dtype": torch.float32}
    return workload("tiny", **(given | changes))


def test_a_schedule_replaces_the_budget_of_earlytom() -> None:
    work = load()
    names = ("earlytom", "visionzip")
    found = cases(names, (0.25,), work.model, work.adapter, Schedule((2, 2, 1)))
    assert found[1].method.frames == (2, 2, 1)
    assert found[1].method.merge_layers == (4, 9, 10)
    with pytest.raises(ConfigError, match="not among the methods"):
        cases(("visionzip",), (0.25,), work.model, work.adapter, Schedule((2, 1)))


def test_bad_requests_are_refused() -> None:
    work = load()
    with pytest.raises(ConfigError, match="unknown method 'x'"):
        cases(("x",), (0.25,), work.model, work.adapter)
    with pytest.raises(ConfigError, match="retention_ratio"):
        cases(("earlytom",), (1.5,), work.model, work.adapter)
    with pytest.raises(ConfigError, match="unknown architecture 'x'; there are"):
        run_speed(SpeedPlan(arch="x"))
    with pytest.raises(EarlyTomError, match="no such"):
        run_speed(SpeedPlan(model="/nowhere/at/all"))
    with pytest.raises(ConfigError, match="repeats"):
        SpeedPlan(repeats=0)
    with pytest.raises(ConfigError, match="dtype must be"):
        run_speed(SpeedPlan(dtype="auto"))
    with pytest.raises(UnsupportedModelError, match="cannot build the model"):
        load(random=True, attn="nonsense")


def test_random_weights_need_the_configuration_only() -> None:
    trained, drawn = load().model, load(random=True).model
    names = [n for n, p in trained.named_parameters()]
    assert [n for n, p in drawn.named_parameters()] == names
    same = [torch.equal(a, b) for a, b in zip(trained.parameters(), drawn.parameters())]  # noqa: B905
    assert not all(same)
    with pytest.raises(ConfigError, match=r"there are: .*tiny"):
        run_speed(SpeedPlan(arch="x"))
