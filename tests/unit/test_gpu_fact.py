"""The command that asks for GPUs, run for real with a driver's program that answers, or doesn't."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from pyinfra_vllm.facts.gpu import Gpus

CARD = "0, GPU-1, NVIDIA H200, 143771, 580.159.04, 9.0, Enabled"


@pytest.fixture
def ask(tmp_path: Path):  # type: ignore[no-untyped-def]
    """What the fact's command ends with where nvidia-smi answers so to the question about processes."""

    def ask(processes: str) -> subprocess.CompletedProcess[str]:
        program = tmp_path / "nvidia-smi"
        program.write_text(
            f"#!/bin/sh\ncase \"$*\" in *query-gpu*) echo '{CARD}' ;; *) {processes} ;; esac\n"
        )
        program.chmod(0o755)
        environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        return subprocess.run(
            ["sh", "-c", Gpus().command()], env=environment, capture_output=True, text=True, timeout=60
        )

    return ask


def test_processes_are_named_with_their_unit(ask) -> None:  # type: ignore[no-untyped-def]
    done = ask(f"echo 'GPU-1, {os.getpid()}, 900, python3, the third'")
    assert done.returncode == 0
    (card,) = Gpus().process(done.stdout.splitlines())
    (process,) = card["processes"]
    assert (process["pid"], process["used_mib"], process["name"]) == (os.getpid(), 900, "python3, the third")


def test_a_gpu_without_processes(ask) -> None:  # type: ignore[no-untyped-def]
    done = ask("true")
    assert done.returncode == 0
    assert Gpus().process(done.stdout.splitlines())[0]["processes"] == []


def test_a_driver_that_does_not_name_its_processes_is_an_error_not_a_free_gpu(ask) -> None:  # type: ignore[no-untyped-def]
    assert ask("echo 'Unable to determine the device handle'; exit 9").returncode != 0
