"""What ``earlytom serve`` would run, and what it refuses before anything is started."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from earlytom import EarlyTom, load_method
from earlytom.cli import app
from earlytom.errors import ConfigError, MissingExtraError, UnsupportedModelError
from earlytom.integrations.vllm import LLAVA_ONEVISION, QWEN2_5_VL
from earlytom.serve import Launch, check_vllm, command, on_cpu, prepare
from earlytom.tiny import weights_path


def after(launch: Launch, option: str) -> str:
    return launch.command[launch.command.index(option) + 1]


def checkpoint(folder: Path, config: dict[str, Any]) -> str:
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["serve", *arguments])


def test_the_shipped_model_is_the_default() -> None:
    launch = prepare(method=EarlyTom(retention_ratio=0.1), port=8123)
    overrides = json.loads(after(launch, "--hf-overrides"))
    assert overrides["architectures"] == [LLAVA_ONEVISION]
    assert overrides["earlytom"] == EarlyTom(retention_ratio=0.1).to_dict()
    assert json.loads(after(launch, "--media-io-kwargs")) == {"video": {"num_frames": 16}}
    assert after(launch, "--model") == str(weights_path())
    assert {"--trust-request-mm-kwargs", "--enable-prompt-tokens-details"} <= set(launch.command)
    assert after(launch, "--dtype") == "auto"
    assert "--kv-cache-memory-bytes" not in launch.command
    assert "--trust-request-mm-kwargs" not in prepare(request_ratio=False).command
    assert (launch.url, launch.method) == ("http://127.0.0.1:8123", "earlytom")


def test_off_is_said_to_vllm_and_to_the_reader() -> None:
    launch = prepare()
    assert json.loads(after(launch, "--hf-overrides"))["earlytom"] == {"method": "none"}
    assert (launch.method, launch.retention_ratio) == ("none", 1)


def test_a_cpu_gets_its_flags_and_the_caller_the_last_word() -> None:
    launch = prepare(cpu=True, frames=8, extra=["--block-size", "64"])
    assert after(launch, "--dtype") == "float32"
    assert "--enforce-eager" in launch.command
    assert launch.command[-2:] == ("--block-size", "64")
    assert json.loads(after(launch, "--media-io-kwargs")) == {"video": {"num_frames": 8}}
    assert launch.environment["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"


def test_qwen(tmp_path: Path) -> None:
    model = checkpoint(tmp_path, {"model_type": "qwen2_5_vl"})
    launch = prepare(model, EarlyTom(), name="qwen")
    assert json.loads(after(launch, "--hf-overrides"))["architectures"] == [QWEN2_5_VL]
    assert json.loads(after(launch, "--media-io-kwargs")) == {"video": {"num_frames": 32}}
    assert after(launch, "--served-model-name") == "qwen"


@pytest.mark.parametrize(
    ("host", "url"),
    [("0.0.0.0", "http://127.0.0.1:8000"), ("::", "http://[::1]:8000"), ("box", "http://box:8000")],
)
def test_addresses_for_clients(host: str, url: str) -> None:
    assert prepare(host=host).url == url


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "qwen2"}, "model type 'qwen2' cannot be served"),
        ({"model_type": "qwen3_vl"}, "allowed: llava_onevision, qwen2_5_vl"),
    ],
)
def test_other_families(tmp_path: Path, config: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedModelError, match=words):
        prepare(checkpoint(tmp_path, config))


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (load_method("tome"), "reduces the patches"),
        (EarlyTom(policy="official"), "exactly its token budget"),
        (load_method("afterimage"), "set weight_power to 0"),
    ],
)
def test_methods_that_cannot_be_served(method: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        prepare(method=method)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--retention-ratio", "3"], "retention_ratio must be"),
        (["--method", "nothing"], "unknown method"),
        (["--frames", "0"], "frames must be"),
        (["--dtype", "int8"], "dtype must be"),
        (["--port", "70000"], "port must be"),
        (["--settings", "{"], "--settings must be JSON"),
        (["--settings", '{"policy": "paper"}'], "without method"),
        (["--settings", '{"nothing": 1}'], "nothing"),
        (["--method", "none", "--retention-ratio", "0.5"], "has no settings"),
        (["/no/such/folder"], "cannot read the config of /no/such/folder"),
        (["--", "--port", "1"], "--port must not follow --"),
        (["--", "--hf_overrides={}"], "--hf-overrides must not follow --"),
        (["--", "--ssl-keyfile", "x"], "TLS"),
        ([], "pip install 'earlytom"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    port = [] if "--port" in arguments[:1] else ["--port", "0"]
    result = run(*port, *arguments)
    assert result.exit_code == 1
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert words in line


def test_a_busy_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = run("--port", str(taken.getsockname()[1]))
    assert result.exit_code == 1
    assert "cannot listen on 127.0.0.1" in result.stderr


def test_dry_run_needs_no_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    result = run("--dry-run", "--json", "--method", "afterimage", "--settings",
                 '{"weight_power": 0}', "--", "--max-model-len", "1000")  # fmt: skip
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert data["command"][-2:] == ["--max-model-len", "1000"]
    said = json.loads(data["command"][data["command"].index("--hf-overrides") + 1])
    assert (said["earlytom"]["method"], said["earlytom"]["weight_power"]) == ("afterimage", 0)
    plain = run("--dry-run")
    assert plain.stdout.startswith("VLLM_NO_USAGE_STATS=1 ")


def test_methods_of_several_stages() -> None:
    parts = {
        "first": {"method": "earlytom", "policy": "official", "merge_layers": [5]},
        "second": {"method": "visionzip", "retention_ratio": 0.3},
    }
    result = run("--dry-run", "--json", "--method", "compose", "--settings", json.dumps(parts))
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)["command"]
    said = json.loads(data[data.index("--hf-overrides") + 1])["earlytom"]
    assert (said["first"]["merge_layers"], said["second"]["retention_ratio"]) == ([5], 0.3)


def test_which_vllm_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"earlytom\[vllm\]"):
        check_vllm()
    monkeypatch.setattr(command, "find_spec", lambda name: object())
    for version, good in (("0.32.1", True), ("0.31.0", False), ("0.33.0", False)):
        monkeypatch.setattr(command.metadata, "version", lambda name, v=version: v)
        if good:
            check_vllm()
        else:
            with pytest.raises(UnsupportedModelError, match=f"found {version}"):
                check_vllm()


@pytest.mark.parametrize(
    ("package", "version", "gpu", "cpu"),
    [
        ("vllm", "0.32.0", True, False),
        ("vllm", "0.32.0", False, True),
        ("vllm", "0.32.0+cpu", True, True),
        ("vllm-cpu", "0.32.0", True, True),
        ("none", "", False, True),
    ],
)
def test_when_vllm_runs_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch, package: str, version: str, gpu: bool, cpu: bool
) -> None:
    def found(name: str) -> str:
        if name != package:
            raise command.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(command.metadata, "version", found)
    monkeypatch.setattr(command.torch.accelerator, "is_available", lambda: gpu)
    assert on_cpu() is cpu
