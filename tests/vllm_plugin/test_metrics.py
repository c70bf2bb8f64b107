"""Counters of one process reach the Prometheus endpoint of another."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("prometheus_client")
pytestmark = pytest.mark.vllm

WORKER = """
from earlytom.integrations.vllm import metrics
from earlytom.integrations.vllm.item import VideoItem
metrics.encoded("earlytom", VideoItem(0.25, 196, 16, (7, 7)), 5, 0.5)
metrics.encoded("earlytom", VideoItem(0.25, 196, 16, (7, 7)), 5, 0.25)
metrics.failed("earlytom")
"""


def test_a_shared_folder_shows_what_workers_counted(tmp_path: Path) -> None:
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.multiprocess import MultiProcessCollector

    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    for _ in range(2):
        subprocess.run([sys.executable, "-c", WORKER], env=environment, check=True)
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(tmp_path))
    shown = generate_latest(registry).decode()
    label = '{method="earlytom"}'
    for line in (
        f"earlytom_videos_total{label} 4.0",
        f"earlytom_visual_tokens_before_total{label} 3136.0",
        f"earlytom_visual_tokens_after_total{label} 784.0",
        f"earlytom_frames_before_total{label} 64.0",
        f"earlytom_frames_after_total{label} 20.0",
        f"earlytom_failed_videos_total{label} 2.0",
        f"earlytom_encode_seconds_sum{label} 1.5",
        f"earlytom_encode_seconds_count{label} 4.0",
    ):
        assert line in shown
