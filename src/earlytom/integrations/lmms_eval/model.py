"""The class that lmms-eval instantiates. Imported by lmms-eval only."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from loguru import logger
from tqdm import tqdm

from earlytom.integrations.lmms_eval.media import Prompt
from earlytom.integrations.lmms_eval.options import parse_options
from earlytom.integrations.lmms_eval.retained import Retained
from earlytom.integrations.lmms_eval.runner import Runner


class EarlyTomModel(lmms):
    """Video questions with a compression method on the model.

    A *simple* model in lmms-eval's words: tasks hand over text and visuals, so generated answers
    and scored choices both work. Several processes (``accelerate launch``) split the requests,
    one device each.

    Args:
        **arguments: see :func:`earlytom.integrations.lmms_eval.options.parse_options`.

    Raises:
        EarlyTomError: a bad option, or a model that cannot be loaded.
    """

    is_simple = True

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self.accelerator = Accelerator()
        if self.accelerator.num_processes > 1:
            arguments.setdefault("device", str(self.accelerator.device))
        self.options = parse_options(**arguments)
        self._rank = self.accelerator.process_index
        self._world_size = self.accelerator.num_processes
        self._runner: Runner | None = Runner(self.options)
        self._device = self._runner.qa.device
        method = self.options.method
        described = "none" if method is None else json.dumps(method.to_dict())
        logger.info(f"earlytom method: {described}")

    @property
    def runner(self) -> Runner:
        """The loaded model; loaded again after :meth:`clean`."""
        if self._runner is None:
            self._runner = Runner(self.options)
        return self._runner

    @property
    def device(self) -> Any:
        """Where the model is."""
        return self._device

    @property
    def batch_size(self) -> int:
        """Requests per call of ``generate``."""
        return self.options.batch_size

    def clean(self) -> None:
        """Free the model (lmms-eval calls this before it scores the answers)."""
        self._runner = None
        super().clean()

    # ------------------------------------------------------------------ requests
    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answer every request; results come in the order of ``requests``."""
        self.runner.retained = Retained()
        results: list[GenerationResult] = []
        with self._bar(len(requests)) as bar:
            for chunk in _chunks(requests, self.batch_size):
                prompts = [self._prompt(r.args[0], *r.args[2:]) for r in chunk]
                settings = chunk[0].args[1]
                for request, reply in zip(
                    chunk, self.runner.generate(prompts, settings), strict=True
                ):
                    counts = TokenCounts(
                        input_tokens=reply.prompt_tokens, output_tokens=reply.new_tokens
                    )
                    results.append(GenerationResult(reply.text, counts))
                    self.cache_hook.add_partial(
                        "generate_until", (request.args[0], settings), reply.text
                    )
                bar.update(len(chunk))
        self._log()
        return results

    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """Score continuations.

        Returns:
            For each a pair: the mean *loss* per token, as lmms-eval's own Hugging Face models
            return (its scorer takes the smallest), and whether greedy decoding says the same. The
            pair comes wrapped, because lmms-eval 0.7 turns a bare pair into text and then fails.
        """
        self.runner.retained = Retained()
        results: list[GenerationResult] = []
        with self._bar(len(requests)) as bar:
            for _, group in itertools.groupby(requests, key=_same_prompt):
                members = list(group)
                context, _, *media = members[0].args
                texts = [self._continuation(*r.args[1:]) for r in members]
                pairs = self.runner.losses(self._prompt(context, *media), texts)
                results += [GenerationResult(pair) for pair in pairs]
                bar.update(len(members))
        self._log()
        return results

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not supported."""
        raise NotImplementedError("the model earlytom has no multi-round generation")

    # ------------------------------------------------------------------ inside
    def _prompt(
        self,
        context: str,
        doc_to_visual: Any = None,
        doc_id: Any = None,
        task: str = "",
        split: str = "",
    ) -> Prompt:
        if doc_to_visual is None:
            return Prompt(context)
        visuals = doc_to_visual(self.task_dict[task][split][doc_id])
        if visuals is None:
            return Prompt(context)
        return Prompt(context, tuple(visuals) if isinstance(visuals, (list, tuple)) else (visuals,))

    def _continuation(self, target: Any, *rest: Any) -> str:
        if isinstance(target, str):
            return target
        _, doc_id, task, split = rest
        return str(target(self.task_dict[task][split][doc_id]))

    def _bar(self, total: int) -> Any:
        return tqdm(total=total, disable=self.rank != 0, desc="earlytom")

    def _log(self) -> None:
        """Write what was retained to the log and into ``throughput`` of the results file."""
        kept = self.runner.retained
        log_metrics(
            total_elapsed_time=kept.seconds,
            total_gen_tokens=kept.new_tokens,
            avg_speed=kept.new_tokens / kept.seconds if kept.seconds else 0.0,
            additional_metrics={"total_requests": kept.requests, **kept.metrics()},
        )


def _chunks(requests: list[Instance], size: int) -> Iterator[list[Instance]]:
    """Cut into runs of at most ``size`` requests with the same generation settings."""
    for _, group in itertools.groupby(requests, key=lambda r: repr(r.args[1])):
        members = list(group)
        for start in range(0, len(members), size):
            yield members[start : start + size]


def _same_prompt(request: Instance) -> tuple[Any, ...]:
    context, _, *media = request.args
    return (context, *media[1:])
