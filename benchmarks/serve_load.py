"""Two servers of the shipped model, compression off and on, under the same load on loopback.

Run by ``make bench-serve``; writes ``serving.json``. Both servers run all the time, and take turns:
in every round each of them gets the same requests at every concurrency. Caches are off, so every
request decodes, encodes and reads its video; answers are streamed. At the end one server gets
several hundred requests more, while the memory of all its processes is watched.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any

import psutil
import torch
import typer

from earlytom import EarlyTom, __version__
from earlytom.bench.environment import environment
from earlytom.errors import EarlyTomError
from earlytom.files import write_text
from earlytom.integrations.vllm.versions import installed
from earlytom.network import listen
from earlytom.serve import (
    Reply,
    Server,
    ask_streaming,
    chat_body,
    check_vllm,
    counters,
    data_url,
    on_cpu,
    prepare,
)
from earlytom.tiny import write_video

CLIPS, SEED, WARM_UP = 16, 400, 4
NO_CACHES = ("--mm-processor-cache-gb", "0", "--no-enable-prefix-caching")
SAMPLES = 10  # of memory
MIB = 1 << 20


@dataclasses.dataclass(frozen=True)
class Question:
    """About a generated clip."""

    text: str
    answer: str
    video: str


def questions(folder: Path) -> list[Question]:
    """Write the clips; return questions, those about one clip far from each other."""
    kinds = []
    for i in range(CLIPS):
        clip = folder / f"clip{i}.mp4"
        listing = json.loads(write_video(clip, SEED + i).read_text(encoding="utf-8"))
        address = data_url(clip)
        kinds.append([Question(q["question"], q["answer"], address) for q in listing["questions"]])
    return [q for row in zip(*kinds, strict=False) for q in row]


def start(name: str, ratio: float, stack: ExitStack, folder: Path) -> Server:
    """Start a server on a free port; ratio 1 is without compression."""
    method = None if ratio == 1 else EarlyTom(retention_ratio=ratio)
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
    launch = prepare(
        None, method, port=port, name=name, cpu=on_cpu(),
        extra=NO_CACHES,
    )  # fmt: skip
    log = stack.enter_context((folder / f"{name}.log").open("wb"))
    server = stack.enter_context(Server(launch, log))
    if not server.wait_ready(timeout=600):
        tail = (folder / f"{name}.log").read_text(errors="replace").splitlines()[-20:]
        raise EarlyTomError("\n".join([f"server {name} did not start", *tail]))
    return server


def fire(
    server: Server, asked: Sequence[Question], concurrency: int
) -> tuple[float, list[tuple[Question, Reply]]]:
    """Ask from ``concurrency`` clients at once; return seconds in all and the replies."""

    def one(question: Question) -> tuple[Question, Reply]:
        body = chat_body(server.launch.name, question.text, [question.video], max_tokens=8)
        try:
            return question, ask_streaming(server.launch.url, body, timeout=300)
        except EarlyTomError as e:
            return question, Reply(0, str(e), {}, None, 0.0)

    with ThreadPoolExecutor(concurrency) as pool:
        begun = time.perf_counter()
        replies = list(pool.map(one, asked))
        return time.perf_counter() - begun, replies


def pss(server: Server) -> float:
    """Return the proportional memory of all processes of a server in MiB."""
    root = psutil.Process(server.pid)
    total = 0
    for process in (root, *root.children(recursive=True)):
        try:
            total += process.memory_full_info().pss
        except psutil.NoSuchProcess:  # a helper that has just ended
            continue
    return total / MIB


def cell(runs: Sequence[tuple[float, list[tuple[Question, Reply]]]]) -> dict[str, Any]:
    """Sum up what one server did at one concurrency in all rounds."""
    pairs = [pair for _, replies in runs for pair in replies]
    good = [(q, r) for q, r in pairs if r.status == 200]
    first = sorted(r.first for _, r in good if r.first is not None)
    rates = [len(replies) / seconds for seconds, replies in runs]
    right = [q.answer == r.text.strip() for q, r in good]
    return {
        "requests": len(pairs),
        "errors": len(pairs) - len(good),
        "throughput": [round(x, 3) for x in rates],
        "throughput_median": round(statistics.median(rates), 3),
        "ttft_p50": round(percentile(first, 0.5), 4),
        "ttft_p95": round(percentile(first, 0.95), 4),
        "video_tokens": sorted({r.video_tokens for _, r in good}),
        "accuracy": round(statistics.fmean(right), 4) if right else None,
    }


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the value below or at which ``share`` of the ordered values are."""
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)] if ordered else float("nan")


def watched(server: Server, asked: Iterator[Question], n: int, concurrency: int) -> dict[str, Any]:
    """Send ``n`` requests in ``SAMPLES`` portions, and look at the memory after each."""
    samples, errors, each = [round(pss(server), 1)], 0, max(1, n // SAMPLES)
    for _ in range(SAMPLES):
        _, replies = fire(server, [next(asked) for _ in range(each)], concurrency)
        errors += sum(r.status != 200 for _, r in replies)
        samples.append(round(pss(server), 1))
        typer.echo(f"  memory {samples[-1]:.0f} MiB", err=True)
    half = samples[len(samples) // 2 :]
    return {
        "requests": each * SAMPLES,
        "concurrency": concurrency,
        "errors": errors,
        "pss_mib": samples,
        "growth": round(samples[-1] / samples[0] - 1, 4),
        "growth_second_half": round(half[-1] / half[0] - 1, 4),
    }


def main(
    out: Annotated[Path, typer.Option("--out", help="Folder for serving.json.")] = Path("results"),
    ratio: Annotated[float, typer.Option("--retention-ratio", help="Of the server `on`.")] = 0.25,
    rounds: Annotated[int, typer.Option("--rounds", min=1)] = 5,
    requests: Annotated[
        int, typer.Option("--requests", min=1, help="Per server, concurrency and round.")
    ] = 32,
    concurrency: Annotated[str, typer.Option("--concurrency")] = "1,4,16",
    memory_requests: Annotated[int, typer.Option("--memory-requests", min=SAMPLES)] = 300,
) -> None:
    """Measure, show progress on standard error, write the results."""
    check_vllm()
    levels = [int(x) for x in concurrency.split(",")]
    load_before = os.getloadavg()
    begun = datetime.now(timezone.utc)
    with tempfile.TemporaryDirectory(prefix="earlytom-load-") as name, ExitStack() as stack:
        folder = Path(name)
        typer.echo("generating clips, starting two servers", err=True)
        pool = questions(folder)
        servers = {"off": start("off", 1, stack, folder), "on": start("on", ratio, stack, folder)}
        for server in servers.values():
            fire(server, pool[:WARM_UP], 1)
        endless = itertools.cycle(pool)
        runs: dict[tuple[str, int], list[Any]] = {}
        for i in range(rounds):
            for level in levels:
                asked = [next(endless) for _ in range(requests)]
                order = list(servers) if i % 2 == 0 else list(servers)[::-1]
                for which in order:
                    found = fire(servers[which], asked, level)
                    runs.setdefault((which, level), []).append(found)
                    typer.echo(
                        f"round {i + 1}, concurrency {level}, {which}: {found[0]:.1f} s", err=True
                    )
        memory = watched(servers["on"], endless, memory_requests, 4)
        counted = counters(servers["on"].launch.url)
    cells = [
        {"server": which, "concurrency": level, **cell(found)}
        for (which, level), found in runs.items()
    ]
    data = {
        "date": begun.isoformat(timespec="seconds"),
        "environment": environment(torch.get_num_threads(), "float32", "CPU_ATTN")
        | {"vllm": installed(), "cores": os.cpu_count()},
        "load_average": {"before": load_before, "after": os.getloadavg()},
        "version": __version__,
        "settings": {
            "model": "shipped",
            "method": EarlyTom(retention_ratio=ratio).to_dict(),
            "frames": 16,
            "rounds": rounds,
            "requests": requests,
            "caches": "off",
            "max_tokens": 8,
        },
        "cells": cells,
        "ratios": [_ratio(runs, level) for level in levels],
        "memory": memory,
        "counters": {k: v for k, v in counted.items() if not k.endswith("_created")},
    }
    write_text(out / "serving.json", json.dumps(data, indent=2) + "\n")
    typer.echo(json.dumps({"ratios": data["ratios"], "memory": memory}, indent=2))
    if memory["errors"] or any(c["errors"] for c in cells):
        raise EarlyTomError("some requests failed")


def _ratio(runs: dict[tuple[str, int], list[Any]], level: int) -> dict[str, Any]:
    """Compare on with off, round by round, and over all first tokens."""
    pairs = zip(runs["off", level], runs["on", level], strict=True)
    gains = [off[0] / on[0] for off, on in pairs]
    off, on = cell(runs["off", level]), cell(runs["on", level])
    return {
        "concurrency": level,
        "throughput": round(statistics.median(gains), 3),
        "throughput_rounds": [round(x, 3) for x in gains],
        "ttft_p50": round(off["ttft_p50"] / on["ttft_p50"], 3),
        "ttft_p95": round(off["ttft_p95"] / on["ttft_p95"], 3),
    }


if __name__ == "__main__":
    try:
        typer.run(main)
    except EarlyTomError as e:
        raise SystemExit(f"error: {e}") from e
