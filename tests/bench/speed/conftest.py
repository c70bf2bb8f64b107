"""One small result that several tests look at."""

from __future__ import annotations

import pytest

from earlytom.bench.speed.run import SpeedPlan, run_speed

FRAMES = 6


@pytest.fixture(scope="session")
def data():
    plan = SpeedPlan(
        methods=("none", "earlytom", "afterimage", "visionzip"),
        ratios=(0.25,),
        frames=FRAMES,
        batch=2,
        repeats=3,
        new_tokens=3,
        device="cpu",
    )
    return run_speed(plan)
