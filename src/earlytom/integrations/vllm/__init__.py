"""vLLM plugin: videos are compressed inside and behind the vision encoder of a vLLM server.

vLLM calls :func:`register` in each of its processes (entry point group ``vllm.general_plugins``).
Nothing changes until a server asks for one of the architectures by name::

    vllm serve MODEL --hf-overrides '{"architectures": ["EarlytomLlavaOnevisionForConditionalGeneration"],
                                      "earlytom": {"method": "earlytom", "retention_ratio": 0.25}}'

See ``docs/serving.md``.
"""  # noqa: E501

from __future__ import annotations

import logging

from earlytom.integrations.vllm.versions import unsupported

logger = logging.getLogger(__name__)

LLAVA_ONEVISION = "EarlytomLlavaOnevisionForConditionalGeneration"
"""Architecture to ask a server for, for LLaVA-OneVision checkpoints."""
QWEN2_5_VL = "EarlytomQwen2_5_VLForConditionalGeneration"
"""The same for Qwen2.5-VL checkpoints."""
ARCHITECTURES = {
    LLAVA_ONEVISION: "earlytom.integrations.vllm.llava_onevision:CompressedLlavaOnevision",
    QWEN2_5_VL: "earlytom.integrations.vllm.qwen2_5_vl:CompressedQwen25VL",
}
"""Architectures that the plugin announces, and the classes behind them."""
REFUSED = "earlytom.integrations.vllm.refused:Refused"

__all__ = ["ARCHITECTURES", "LLAVA_ONEVISION", "QWEN2_5_VL", "register"]


def register() -> None:
    """Announce the architectures to vLLM; may be called any number of times.

    With a vLLM that this package was not made for, a warning is logged, and asking for one of the
    architectures fails with the reason. Everything else of vLLM is left alone.
    """
    reason = unsupported()
    if reason is not None:
        logger.warning("%s; its architectures are not available", reason)
    try:
        from vllm import ModelRegistry

        for name, where in ARCHITECTURES.items():
            ModelRegistry.register_model(name, where if reason is None else REFUSED)
        if reason is None:
            from earlytom.integrations.vllm.config import announce

            announce()
    except Exception as e:
        if reason is None:
            raise
        logger.warning("earlytom cannot register with this vLLM (%s)", e)
