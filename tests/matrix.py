"""The shared matrix: every method here runs on every family, dtype and prompt shape.

A new method joins with one row in ``METHODS``, a new family with one entry in
``tests.families.FAMILIES``.
"""

from __future__ import annotations

from earlytom import EarlyTom
from earlytom.method import Method
from tests.toys import TOYS

OFFICIAL = EarlyTom(
    policy="official", merge_layers=(1, 3), retention_ratio=0.25, tau=0.5, max_window=6
)
METHODS: dict[str, Method] = {
    **{f"toy-{k}": v for k, v in TOYS.items()},
    "earlytom-budget": EarlyTom(retention_ratio=0.25),
    "earlytom-budget-10%": EarlyTom(retention_ratio=0.1),
    "earlytom-budget-frames": EarlyTom(
        retention_ratio=0.25, merge_layers=(0, 2), frames=(6, 3), fuse="average", positions="keep"
    ),
    "earlytom-official": OFFICIAL,
    "earlytom-official-inner": EarlyTom(
        policy="official", merge_layers=(1, 3), retention_ratio=0.3, inner_merge_layer=2
    ),
    "earlytom-paper": EarlyTom(policy="paper", merge_layers=(1, 3), retention_ratio=0.25, tau=0.5),
    "earlytom-global": EarlyTom(retention_ratio=0.25, selection="global"),
    "earlytom-window": EarlyTom(retention_ratio=0.25, selection="window"),
    "earlytom-uniform": EarlyTom(retention_ratio=0.25, selection="uniform", merge_rest=True),
}
