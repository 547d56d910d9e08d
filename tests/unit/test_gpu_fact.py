"""The fact about GPUs, its command run for real against a program that answers as nvidia-smi does, or
doesn't.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from seen import gpu

from pyinfra_vllm.facts.gpu import Gpus
from pyinfra_vllm.on_host.inspect import nvidia
from pyinfra_vllm.on_host.inspect.gpus import Found, Gpu, Process
from pyinfra_vllm.on_host.server import gpu_memory
from pyinfra_vllm.on_host.state import cgroup

sys.path.insert(0, str(Path(__file__).parents[1]))
import nvidia_smi
from nvidia_smi import card, instance, uuid


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Put a stand-in on the PATH that tells of these cards."""

    def place(*cards: nvidia_smi.Card, **how: Any) -> None:
        nvidia_smi.install(tmp_path, nvidia_smi.program(*cards, **how))
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    return place


def told() -> Found:
    """The fact's result, from its own command in a shell, as on a host."""
    command = Gpus().command().get_raw_value()
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, cwd="/")
    assert (done.returncode, done.stderr) == (0, "")
    return Gpus().process(done.stdout.splitlines())


def gpus() -> tuple[Gpu, ...]:
    found = told()
    assert found.problem is None
    return found.gpus


def test_a_host_without_nvidia_smi_has_no_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sh").symlink_to("/bin/sh")
    (tmp_path / "python3").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (tmp_path / "python3").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert told() == Found((), None)


def test_a_card_with_all_that_is_told_of_it(smi) -> None:  # type: ignore[no-untyped-def]
    smi(card(**{"memory.used": 1695}))
    h200 = gpu(uuid=uuid(0), name="NVIDIA H200", memory_mib=143771, used_mib=1695, driver="580.159.04")
    assert gpus() == (replace(h200, compute_capability="9.0", ecc="Enabled"),)


def test_each_process_is_on_its_own_card_with_its_own_name(smi) -> None:  # type: ignore[no-untyped-def]
    smi(
        card(0, [{"pid": os.getpid(), "name": "/usr/bin/python3 -c a, b", "used": 900}]),
        card(1, [{"pid": 4194305, "used": 12}]),
    )
    first, second = gpus()
    (mine,), (gone,) = first.processes, second.processes
    unit = cgroup.unit_of(Path("/proc/self"))
    assert mine == Process(os.getpid(), unit, 900, "/usr/bin/python3 -c a, b")
    assert gone == Process(4194305, None, 12, "[Not Found]")


def test_what_the_driver_does_not_tell_is_none_and_no_number(smi) -> None:  # type: ignore[no-untyped-def]
    """A driver that hides processes of others, and memory that it does not know."""
    unknown = {"memory.total": "[N/A]", "memory.used": "[N/A]", "ecc.mode.current": "[N/A]"}
    smi(card(**unknown, processes=[{"pid": "[N/A]", "name": "[Insufficient Permissions]"}]))
    (found,) = gpus()
    assert (found.memory_mib, found.used_mib) == (None, None)
    assert found.processes == (Process(None, None, None, "[Insufficient Permissions]"),)


def test_a_chip_without_memory_of_its_own_has_the_host_s(smi) -> None:  # type: ignore[no-untyped-def]
    smi(card(name="NVIDIA GB10", **{"memory.total": "[N/A]"}))
    (found,) = gpus()
    total = next(line for line in Path("/proc/meminfo").read_text().splitlines() if "MemTotal" in line)
    assert found.memory_mib == int(total.split()[1]) // 1024


def test_an_old_driver_without_newer_columns_still_tells_the_rest(smi) -> None:  # type: ignore[no-untyped-def]
    smi(card(driver_version="440.33.01"), refused=["compute_cap", "mig.mode.current"])
    (found,) = gpus()
    assert (found.driver, found.compute_capability, found.split) == ("440.33.01", None, False)


def test_a_column_that_is_needed_and_refused_is_an_error(smi) -> None:  # type: ignore[no-untyped-def]
    smi(card(), refused=["uuid"])
    assert 'exited with 2: Field "uuid" is not a valid field' in told().problem


def test_a_dead_driver_is_an_error_in_its_own_words_and_no_host_without_gpus(smi) -> None:  # type: ignore[no-untyped-def]
    smi(dead=True)
    found = told()
    assert found.gpus == ()
    assert "exited with 9: NVIDIA-SMI has failed because it couldn't communicate" in found.problem


@pytest.mark.thorough
@pytest.mark.parametrize("garbage", ["No devices were found", "Unable to determine the device handle"])
def test_an_answer_that_is_no_answer_is_an_error(smi, garbage: str) -> None:  # type: ignore[no-untyped-def]
    smi(garbage=garbage)
    assert garbage in told().problem


@pytest.mark.thorough
def test_a_driver_that_hangs_is_given_up(smi) -> None:  # type: ignore[no-untyped-def]
    smi(hangs_s=30)
    began = time.monotonic()
    with pytest.raises(nvidia.NoAnswer, match=r"nvidia-smi -L` did not answer within 1 s"):
        nvidia.ask("-L", timeout_s=1)
    assert time.monotonic() - began < 8


def split(*processes: dict[str, Any]) -> nvidia_smi.Card:
    instances = [instance(0, (9, 0), used=5000), instance(1, (11, 0), total="N/A")]
    return card(
        0, processes, name="NVIDIA H100 80GB HBM3", **{"mig.mode.current": "Enabled", "instances": instances}
    )


def test_mig_instances_follow_their_card_each_with_its_own_processes(smi) -> None:  # type: ignore[no-untyped-def]
    process = {"pid": os.getpid(), "name": "VLLM::EngineCore", "used": 4981, "place": (9, 0)}
    smi(split(process), card(1))
    whole, first, second, other = gpus()
    assert (whole.split, whole.index, len(whole.processes)) == (True, 0, 1)
    assert (first.index, first.card, first.uuid) == (None, 0, uuid(0, "MIG"))
    assert (first.instance, first.number, first.memory_mib, first.used_mib) == (
        "1g.20gb",
        0,
        20096,
        5000,
    )
    assert [process.name for process in first.processes] == ["VLLM::EngineCore"]
    assert (second.uuid, second.memory_mib, second.processes) == (uuid(1, "MIG"), None, ())
    assert (other.index, other.split) == (1, False)


@pytest.mark.thorough
def test_memory_in_use_is_read_by_the_names_of_the_release(smi) -> None:  # type: ignore[no-untyped-def]
    smi(split(), card(1, **{"memory.used": 700}), card(2, **{"memory.used": 900}))
    assert gpu_memory.used_mib() == 900
    assert gpu_memory.used_mib([1]) == gpu_memory.used_mib([uuid(1)]) == 700
    assert gpu_memory.used_mib([1, 2]) == 900
    assert gpu_memory.used_mib([uuid(0, "MIG")]) == 5000
    assert gpu_memory.used_mib([1, 7]) is None, "one of them is not there"
    smi(card(1, **{"memory.used": "[N/A]"}))
    assert gpu_memory.used_mib() is None
    smi(dead=True)
    assert gpu_memory.used_mib() is None


@pytest.mark.parametrize(
    ("of_systemd", "of_process", "unit"),
    [
        ("0::/init.scope", "0::/system.slice/vllm-chat.service", "vllm-chat.service"),
        ("0::/init.scope", "0::/system.slice/vllm-chat.service/workers/1", "vllm-chat.service"),
        (
            "1:name=systemd:/init.scope",
            "12:devices:/docker/9\n1:name=systemd:/system.slice/vllm-chat.service\n0::/x.service",
            "vllm-chat.service",
        ),
        # what user managers and containers start is theirs, by whatever name
        ("0::/init.scope", "0::/user.slice/user-1000.slice/user@1000.service/app.slice/vllm-chat.service",
        "user@1000.service"),
        ("0::/init.scope", "0::/system.slice/docker-4c0f.scope/system.slice/vllm-chat.service",
        "docker-4c0f.scope"),
        ("0::/init.scope", "0::/machine.slice/machine-x.scope/payload/system.slice/vllm-chat.service",
        "machine-x.scope"),
        ("0::/init.scope", "0::/docker/4c0f/system.slice/vllm-chat.service", None),
        # this host is itself a container whose tree is seen from outside
        (
            "0::/machine.slice/machine-x.scope/payload/init.scope",
            "0::/machine.slice/machine-x.scope/payload/system.slice/vllm-chat.service",
            "vllm-chat.service",
        ),
        ("0::/init.scope", "0::/user.slice/user-0.slice/session-3.scope", "session-3.scope"),
        ("0::/init.scope", "0::/system.slice", None),
        ("0::/", "0::/", None),
        ("0::/init.scope", "", None),
    ],
)  # fmt: skip
def test_a_process_belongs_to_the_unit_that_this_host_s_systemd_started(
    tmp_path: Path, of_systemd: str, of_process: str, unit: str | None
) -> None:
    for pid, text in ((1, of_systemd), (7, of_process)):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "cgroup").write_text(text + "\n")
    assert cgroup.unit_of(tmp_path / "7") == unit


def test_an_ended_process_has_no_unit(tmp_path: Path) -> None:
    assert cgroup.unit_of(tmp_path / "8") is None


def test_the_command_s_answer_is_json_and_nothing_else(smi) -> None:  # type: ignore[no-untyped-def]
    smi(card())
    command = Gpus().command().get_raw_value()
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert set(json.loads(done.stdout)) == {"gpus", "problem"}
