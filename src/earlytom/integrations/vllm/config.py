"""What a server's configuration is checked for, and changed in, before anything is loaded.

vLLM looks these classes up by architecture, in the process that takes requests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig

from earlytom.errors import ConfigError
from earlytom.integrations.vllm import LLAVA_ONEVISION, QWEN2_5_VL
from earlytom.integrations.vllm.families import check_llava_onevision, check_qwen2_5_vl
from earlytom.integrations.vllm.settings import CONFIG_KEY, RATIO, renumbered, served_method
from earlytom.models.llava_onevision import LlavaOnevision

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig

_DRAFTS = ("ngram", "ngram_gpu", "suffix")  # these look at token ids only


def announce() -> None:
    """Let vLLM find the checks of our architectures; may be called any number of times."""
    MODELS_CONFIG_MAP[LLAVA_ONEVISION] = LlavaOnevisionConfig
    MODELS_CONFIG_MAP[QWEN2_5_VL] = Qwen25VLConfig


class _Checks(VerifyAndUpdateConfig):
    """What holds for all families."""

    @staticmethod
    def verify_and_update_config(vllm_config: VllmConfig) -> None:
        """Raise ConfigError where tokens and their positions would not reach the model together."""
        model_config = vllm_config.model_config
        if served_method(model_config.hf_config) is None:
            return
        parallel, draft = vllm_config.parallel_config, vllm_config.speculative_config
        lora, why = vllm_config.lora_config, None
        if parallel.pipeline_parallel_size > 1:
            why = "pipeline parallelism (use tensor or data parallelism)"
        elif parallel.use_ubatching:
            why = "dual batch overlap"
        elif draft is not None and draft.method not in _DRAFTS:
            why = f"speculative decoding by {draft.method!r} (allowed: {', '.join(_DRAFTS)})"
        elif lora is not None and lora.enable_tower_connector_lora:
            why = "LoRA adapters inside the vision encoder (enable_tower_connector_lora)"
        if why is not None:
            raise ConfigError(f"earlytom does not work with {why}")
        multimodal = model_config.get_multimodal_config()
        if multimodal.video_pruning_rate:
            raise ConfigError(
                "video_pruning_rate prunes the same videos a second time; leave it out, or set "
                f'"{CONFIG_KEY}": {{"method": "none"}} in hf_overrides'
            )
        if RATIO in (multimodal.mm_processor_kwargs or {}):
            raise ConfigError(
                f'{RATIO} of the server belongs into hf_overrides: {{"{CONFIG_KEY}": '
                f'{{"{RATIO}": ...}}}}; mm_processor_kwargs are for single requests'
            )


class LlavaOnevisionConfig(_Checks):
    """LLaVA-OneVision."""

    @staticmethod
    def verify_and_update_model_config(model_config: ModelConfig) -> None:
        """Check the method; let positions of video tokens differ from their place in the prompt.

        vLLM counts positions of a one-dimensional rotary embedding itself, one per token of the
        prompt. Positions that are kept need its other mechanism, made for M-RoPE: three axes, here
        with the same number on each, which is the one-dimensional embedding again.

        Raises:
            ConfigError: the method or the checkpoint cannot be served.
        """
        config = model_config.hf_config
        method = check_llava_onevision(config)
        if method is not None and not renumbered(LlavaOnevision, method):
            _give_three_axes(config.text_config)


class Qwen25VLConfig(_Checks):
    """Qwen2.5-VL."""

    @staticmethod
    def verify_and_update_model_config(model_config: ModelConfig) -> None:
        """Check the method.

        Raises:
            ConfigError: it cannot be served.
        """
        check_qwen2_5_vl(model_config.hf_config)


def _give_three_axes(text: Any) -> None:
    rope = dict(text.rope_parameters or {})
    kind = rope.get("rope_type", "default")
    if kind != "default":
        raise ConfigError(
            f"kept positions need rope_type default, found {kind}; set positions to renumber"
        )
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    third = width // 2 // 3
    rope["mrope_section"] = [width // 2 - 2 * third, third, third]
    text.rope_parameters = rope
