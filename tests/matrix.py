"""The shared matrix: every method here runs on every family, dtype and prompt shape.

A new method joins with one row in ``METHODS``, a new family with one entry in
``tests.families.FAMILIES``.
"""

from __future__ import annotations

from earlytom import EarlyTom
from earlytom.method import Method
from earlytom.methods import (
    EVS,
    DyCoke,
    HoliTom,
    PoolSpace,
    PoolTime,
    PruMerge,
    PruneVid,
    RandomTokens,
    UniformFrames,
    UniformSpatial,
    VidCom2,
    VisionZip,
)
from tests.toys import TOYS

OFFICIAL = EarlyTom(
    policy="official", merge_layers=(1, 3), retention_ratio=0.25, tau=0.5, max_window=6
)
METHODS: dict[str, Method] = {
    **{f"toy-{k}": v for k, v in TOYS.items()},
    "earlytom-budget": EarlyTom(retention_ratio=0.25),
    "earlytom-budget-10%": EarlyTom(retention_ratio=0.1),
    "earlytom-budget-frames": EarlyTom(
        retention_ratio=0.25,
        merge_layers=(0, 2),
        frames=(6, 3),
        fuse="average",
        positions="respace",
    ),
    "earlytom-official": OFFICIAL,
    "earlytom-official-inner": EarlyTom(
        policy="official", merge_layers=(1, 3), retention_ratio=0.3, inner_merge_layer=2
    ),
    "earlytom-paper": EarlyTom(policy="paper", merge_layers=(1, 3), retention_ratio=0.25, tau=0.5),
    "earlytom-global": EarlyTom(retention_ratio=0.25, selection="global"),
    "earlytom-window": EarlyTom(retention_ratio=0.25, selection="window"),
    "earlytom-uniform": EarlyTom(retention_ratio=0.25, selection="uniform", merge_rest=True),
    "evs": EVS(retention_ratio=0.25),
    "evs-official": EVS(policy="official", retention_ratio=0.3),
    "vidcom2": VidCom2(retention_ratio=0.25),
    "vidcom2-official": VidCom2(policy="official", retention_ratio=0.25),
    "vidcom2-vllm": VidCom2(policy="vllm", retention_ratio=0.3, positions="respace"),
    "visionzip": VisionZip(retention_ratio=0.3),
    "visionzip-official": VisionZip(policy="official", retention_ratio=0.5),
    "random": RandomTokens(retention_ratio=0.25, seed=3),
    "uniform-frames": UniformFrames(retention_ratio=0.4),
    "uniform-spatial": UniformSpatial(retention_ratio=0.25),
    "pool-space": PoolSpace(retention_ratio=0.5),
    "pool-time": PoolTime(retention_ratio=0.4, positions="keep"),
    "holitom": HoliTom(retention_ratio=0.25),
    "holitom-few-static": HoliTom(retention_ratio=0.4, tau=0.95, beta=None, positions="keep"),
    "holitom-official": HoliTom(policy="official", retention_ratio=0.3),
    "holitom-inner": HoliTom(retention_ratio=0.5, inner_merge_layer=2),
    "dycoke": DyCoke(retention_ratio=0.4),
    "dycoke-10%": DyCoke(retention_ratio=0.1),
    "dycoke-official": DyCoke(policy="official", retention_ratio=0.5),
    "prunevid": PruneVid(retention_ratio=0.25),
    "prunevid-official": PruneVid(policy="official", retention_ratio=0.3),
    "prumerge": PruMerge(retention_ratio=0.25),
    "prumerge-plus": PruMerge(retention_ratio=0.5, plus=True),
    "prumerge-official": PruMerge(policy="official", plus=True, adaptive=True),
}
