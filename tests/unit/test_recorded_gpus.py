"""Output of real tools on real GPUs, given to the product again: nvidia-smi, and the server's log and
metrics.

tests/fixtures/gpu has a folder for each machine, as the stories of tests/lab/gpu leave it, and beside it what
must be read out of it.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from pyinfra_vllm.on_host.inspect import gpus as inspect_gpus
from pyinfra_vllm.on_host.server import kernel, kv_cache

FOLDERS = sorted((Path(__file__).parents[1] / "fixtures/gpu").glob("*/"))
PROGRAM = """#!/usr/bin/env python3
import json, pathlib, sys
answers = json.loads(pathlib.Path({path!r}).read_text())
sys.stdout.write(answers[" ".join(sys.argv[1:])])
"""


@pytest.fixture(params=FOLDERS, ids=lambda folder: folder.name)
def recorded(request: pytest.FixtureRequest) -> Path:
    return Path(request.param)


def expected(recorded: Path) -> dict[str, Any]:
    return dict(json.loads((recorded / "expected.json").read_text()))


def test_there_is_a_recording() -> None:
    assert FOLDERS


@pytest.mark.thorough
def test_the_cards_and_their_processes_are_read(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(PROGRAM.format(path=str(recorded / "smi.json")))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    found: list[Any] = list(map(asdict, inspect_gpus.gpus()))
    wanted = expected(recorded)["gpus"]
    told = [{**card, "processes": [each["name"] for each in card["processes"]]} for card in found]
    assert [{key: card[key] for key in want} for card, want in zip(told, wanted, strict=True)] == wanted


def test_the_size_of_the_kv_cache_is_read_out_of_metrics_and_log(recorded: Path) -> None:
    names = [line for line in (recorded / "metrics.txt").read_text().splitlines() if not line.startswith("#")]
    log = (recorded / "service.log").read_text().splitlines()
    assert kv_cache.measured(names, [])["tokens"] == expected(recorded)["kv_tokens"]
    assert kv_cache.measured([], log)["tokens"] == expected(recorded)["kv_tokens"]


def test_the_kernel_is_read_out_of_the_log(recorded: Path) -> None:
    log = (recorded / "service.log").read_text().splitlines()
    wanted = expected(recorded)
    assert kernel.check(log, wanted["version"], wanted["kernels"])["kernels"] == wanted["kernels"]
