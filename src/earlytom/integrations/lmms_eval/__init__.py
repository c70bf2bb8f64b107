"""Plugin for `lmms-eval <https://github.com/EvolvingLMMs-Lab/lmms-eval>`_: ``--model earlytom``.

Installed beside lmms-eval (0.7), this package is found by itself, through the entry point group
``lmms_eval.models``:

    python -m lmms_eval --model earlytom \\
        --model_args pretrained=FOLDER_OR_HUB_ID,method=earlytom,retention_ratio=0.1 \\
        --tasks videomme,mvbench,egoschema,longvideobench_val_v --output_path logs

Importing this module does not import lmms-eval. All options are in
:class:`~earlytom.integrations.lmms_eval.options.Options`; see docs/lmms-eval.md.
"""

from __future__ import annotations

from typing import Any

from earlytom.integrations.lmms_eval.options import Options, parse_options

__all__ = ["Options", "manifest", "parse_options"]


def manifest() -> Any:
    """Return lmms-eval's description of the model ``earlytom`` (called by lmms-eval itself)."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(
        model_id="earlytom",
        simple_class_path="earlytom.integrations.lmms_eval.model.EarlyTomModel",
    )
