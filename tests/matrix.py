"""The shared matrix: every method here runs on every family, dtype and prompt shape.

A new method joins with one row in ``METHODS``, a new family with one entry in
``tests.families.FAMILIES``.
"""

from __future__ import annotations

from earlytom.method import Method
from tests.toys import TOYS

METHODS: dict[str, Method] = {f"toy-{k}": v for k, v in TOYS.items()}
