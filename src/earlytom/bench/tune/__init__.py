"""Search for one automatic setting of a method, on clips of its own, and a held-out check of it."""

from earlytom.bench.tune.data import FIRST_TUNING_SEED, LAST_HELD_OUT_SEED
from earlytom.bench.tune.run import TuneConfig, tune
from earlytom.bench.tune.search import Limits
from earlytom.bench.tune.space import Branch, Space, built_in_space, parse_grid

__all__ = [
    "FIRST_TUNING_SEED",
    "LAST_HELD_OUT_SEED",
    "Branch",
    "Limits",
    "Space",
    "TuneConfig",
    "built_in_space",
    "parse_grid",
    "tune",
]
