"""One search from settings to files: candidates, rounds, held-out check, saved config."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from earlytom._version import __version__
from earlytom.bench import workers as bench
from earlytom.bench.records import Outcome
from earlytom.bench.runner import describe_model
from earlytom.bench.tune.compare import HELD_OUT, compare, held_out_jobs
from earlytom.bench.tune.data import (
    FIRST_TUNING_SEED,
    Sample,
    check_disjoint,
    held_out_clips,
    tuning_clips,
)
from earlytom.bench.tune.ledger import Job, Ledger, Missing, Trial
from earlytom.bench.tune.search import (
    DEFAULT,
    FULL,
    LIMITED,
    Limits,
    Progress,
    clip_runs,
    describe,
    plan_rungs,
    search,
)
from earlytom.bench.tune.space import Settings, Space, built_in_space, check_names
from earlytom.checks import check_ratio
from earlytom.errors import ConfigError, EarlyTomError
from earlytom.files import write_text
from earlytom.method import Method
from earlytom.models import find_adapter
from earlytom.registry import load_method, method_class
from earlytom.tiny import weights_path

LEDGER, RESULT = "trials.json", "tuning.json"
_BELOW = 0.01  # encoder budgets count layers; the patch embedding comes on top
_SPARE = 4  # candidates drawn per candidate wanted, if there are limits


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """Everything that determines a search.

    Attributes:
        method: registered name.
        ratios: retention ratios; one setting is wanted for all of them.
        fixed: settings that neither the candidates nor the default may change.
        grid: values of settings, in place of those of the built-in space or added to it.
        grid_only: leave the built-in space out.
        limits: on floating point operations.
        splits: of the benchmark, whose kind of clips is used.
        seed: of clips and candidates of the search.
        questions: of every split, for the search.
        candidates: that enter the first round.
        rungs: rounds of successive halving; 1 is a random search.
        eta: factor by which clips grow and candidates shrink.
        held_out_seed: of the clips of the check.
        held_out_questions: of every split, for the check.
        per_ratio: also check the best candidate of every single ratio.
        resamples: of the bootstrap.
    """

    method: str = "earlytom"
    ratios: tuple[float, ...] = (0.1, 0.15, 0.2, 0.25)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    grid: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    grid_only: bool = False
    limits: Limits = field(default_factory=Limits)
    splits: tuple[str, ...] = ("standard",)
    seed: int = 0
    questions: int = 600
    candidates: int = 48
    rungs: int = 3
    eta: float = 3.0
    held_out_seed: int = 2
    held_out_questions: int = 1200
    per_ratio: bool = True
    resamples: int = 10_000

    def __post_init__(self) -> None:
        if not self.ratios or len(set(self.ratios)) != len(self.ratios):
            raise ConfigError(f"give one or more different ratios, got {list(self.ratios)}")
        for ratio in self.ratios:
            check_ratio("retention_ratio", ratio)
        known = [f.name for f in dataclasses.fields(method_class(self.method))]
        check_names(known, self.grid, self.method)
        check_names(known, self.fixed, self.method)
        both = sorted(set(self.fixed) & set(self.grid))
        if both:
            raise ConfigError(f"{both[0]} is both fixed and searched; give one of them")

    def build(self, settings: Mapping[str, Any], ratio: float) -> Method:
        """Return the method with ``settings`` at a ratio."""
        return load_method(self.method, **{**self.fixed, **settings, "retention_ratio": ratio})


def tune(
    config: TuneConfig,
    out: Path,
    model: Path | None = None,
    workers: int = 1,
    progress: Progress = lambda stage, done, total: None,
) -> dict[str, Any]:
    """Search, check the winner on held-out clips, write the files, return ``tuning.json``.

    Interrupted, it goes on from ``out/trials.json`` when called again with the same config.

    Args:
        config: what to search.
        out: folder for ``trials.json``, ``tuning.json`` and ``compression_config.json``.
        model: folder of a tiny model, None for the shipped one.
        workers: processes of one thread each.
        progress: told the stage, and the jobs done and to do.

    Raises:
        ConfigError: nothing to search, no model, or no candidate fits method, model and limits.
        ResultError: ``out`` holds another search, or a worker died.
    """
    if workers < 1:
        raise ConfigError(f"workers must be at least 1, got {workers}")
    folder = weights_path() if model is None else model
    about = describe_model(folder, model)
    settings = draw_candidates(config, bench.load_model(folder))
    tuning = tuning_clips(config.splits, config.seed, config.questions)
    held_out = held_out_clips(config.splits, config.held_out_seed, config.held_out_questions)
    check_disjoint(tuning.clips, held_out.clips)
    ledger = Ledger(out / LEDGER, _fingerprint(config, settings, about["sha256"]))
    plan = plan_rungs(config.candidates, len(tuning.clips), config.rungs, config.eta)

    def measured(sample: Sample) -> _Measurer:
        return _Measurer(config, settings, sample, folder, workers)

    found = search(
        list(settings), config.ratios, plan, config.limits, ledger, measured(tuning), progress
    )
    per_ratio = found.per_ratio if config.per_ratio else {}
    ledger.fill(
        HELD_OUT,
        held_out_jobs(found.reference, found.winner, per_ratio, config.ratios),
        len(held_out.clips),
        measured(held_out),
        lambda done, total: progress("held-out check", done, total),
    )
    check = compare(
        ledger,
        held_out,
        found.reference,
        found.winner,
        per_ratio,
        config.ratios,
        resamples=config.resamples,
    )
    chosen = config.build(settings[found.winner], config.ratios[0])
    result = {
        "schema": 1,
        "earlytom": __version__,
        "model": about,
        **_described(config),
        "search": {
            "seed": FIRST_TUNING_SEED + config.seed,
            "clips": len(tuning.clips),
            "questions": sum(len(c.questions) for c in tuning.clips),
            "rungs": [dataclasses.asdict(rung) for rung in plan],
            "clip_runs": clip_runs(plan),
        },
        "winner": {"name": found.winner, "settings": settings[found.winner]},
        "config": chosen.to_dict(),
        "finalists": found.finalists,
        "held_out": {"seed": config.held_out_seed, **check},
        "candidates_tried": {
            name: {"settings": settings[name], **describe(standing)}
            for name, standing in found.standings.items()
        },
    }
    text = json.dumps(result, indent=1, allow_nan=False) + "\n"
    write_text(out / RESULT, text)
    chosen.save(out)
    return result


def draw_candidates(config: TuneConfig, model: Any) -> dict[str, Settings]:
    """Return the candidates by name: the default (no settings) and what was drawn.

    With a limit on the encoder, a method that has ``encoder_budget`` takes part with that setting
    alone as well.

    Raises:
        ConfigError: nothing to search, or nothing fits.
    """
    space = None
    if not config.grid_only:
        layers = find_adapter(model).usable_layers
        space = built_in_space(config.method, layers, config.limits.encoder)
    if space is None and not config.grid:
        raise ConfigError(
            f"there is no built-in space for {config.method}; give --grid name=value,value"
        )
    fixed = {name: (value,) for name, value in config.fixed.items()}
    space = (space or Space(())).refined({**config.grid, **fixed})

    def trouble(settings: Settings) -> str | None:
        try:
            for ratio in config.ratios:
                method = config.build(settings, ratio)
                with method(model):  # layers are checked here
                    pass
        except EarlyTomError as e:
            return str(e)
        return None

    error = trouble({})
    if error is not None:
        raise ConfigError(f"{config.method} cannot be used as it is: {error}")
    candidates: dict[str, Settings] = {DEFAULT: {}}
    if config.limits.encoder is not None and "encoder_budget" not in config.fixed:
        limited = {"encoder_budget": round(config.limits.encoder - _BELOW, 4)}
        if trouble(limited) is None:
            candidates[LIMITED] = limited
    wanted = config.candidates * (1 if config.limits == Limits() else _SPARE)
    drawn = space.draw(wanted, config.seed, lambda s: trouble(s) is None)
    return candidates | {f"c{i}": s for i, s in enumerate(drawn, 1)}


class _Measurer:
    """Runs jobs on the clips of a sample, in worker processes."""

    def __init__(
        self,
        config: TuneConfig,
        settings: Mapping[str, Settings],
        sample: Sample,
        folder: Path,
        workers: int,
    ) -> None:
        self.config = config
        self.settings = settings
        self.sample = sample
        self.folder = folder
        self.workers = workers

    def __call__(self, missing: Missing) -> Iterator[tuple[int, dict[Job, Trial]]]:
        """Yield what the jobs did, clip by clip."""
        jobs: dict[str, Job] = {}

        def work() -> Iterator[bench.Job]:
            for number, todo in missing:
                runs = {f"{name} @ {ratio:g}": (name, ratio) for name, ratio in todo}
                jobs.update(runs)
                methods = tuple((key, self._method(*job)) for key, job in runs.items())
                yield bench.Job(self.sample.clips[number], methods)

        for done in bench.run_jobs(self.folder, work(), self.workers):
            trials = {jobs[key]: _trial(outcome) for key, outcome in done.outcomes.items()}
            for key, error in {**done.refused, **done.broken}.items():
                trials[jobs[key]] = Trial("", 0.0, 0.0, error or "failed")
            yield done.clip, trials

    def _method(self, name: str, ratio: float) -> Method | None:
        return None if name == FULL else self.config.build(self.settings[name], ratio)


def _trial(outcome: Outcome) -> Trial:
    encoder, projector, llm, _ = outcome.flops
    return Trial("".join(map(str, outcome.correct)), encoder, encoder + projector + llm)


def _described(config: TuneConfig) -> dict[str, Any]:
    """The config as JSON-ready data."""
    data = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    return {**data, "limits": dataclasses.asdict(config.limits)}


def _fingerprint(config: TuneConfig, settings: Mapping[str, Settings], weights: str) -> str:
    """Changes whenever the measurements, or the order of the search, would be others."""
    what = {**_described(config), "candidates_drawn": settings, "weights": weights}
    del what["resamples"]
    text = json.dumps(what, sort_keys=True, default=dict)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
