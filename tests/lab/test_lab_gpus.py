"""Hosts with GPUs, as the product sees them: an nvidia-smi that names real processes of real units, and the
stub of vLLM.

What only a driver can show is in the tests of a machine that has one.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lab import control, device_policy, light_runtime
from lab.machine import Host
from lab.session import Lab

sys.path.insert(0, str(Path(__file__).parents[1]))
import nvidia_smi
from nvidia_smi import card, uuid

pytestmark = pytest.mark.full

OWN = {"unit": "vllm-tiny.service", "name": "VLLM::EngineCore", "used": 130000}
NEIGHBOUR = {"unit": "vllm-other.service", "name": "VLLM::EngineCore", "used": 900}
ENVIRONMENT = {"LIGHT_KERNEL": "Machete", "NCCL_NVLS_ENABLE": "0"}


@pytest.fixture(scope="module")
def host(lab: Lab) -> Iterator[Host]:
    """A host with two cards; another service's process is on the second."""
    with control.own_lock_file():
        (added,) = lab.add("cards")
        added.ssh("systemd-run --unit=vllm-other sleep infinity")
        for release in ("a", "b"):
            done = run("pyinfra-vllm", "lock", control.INVENTORY, release=release)
            assert done.returncode == 0, done.stderr
        yield added
        lab.remove("cards")


@pytest.fixture(autouse=True)
def two_cards(host: Host) -> None:
    has(host, card(0, [OWN]), card(1, [NEIGHBOUR]))


def has(host: Host, *cards: nvidia_smi.Card, **how: Any) -> None:
    program = nvidia_smi.program(*cards, **how)
    host.ssh("cat > /usr/local/bin/nvidia-smi; chmod 755 /usr/local/bin/nvidia-smi", stdin=program)


def run(*command: str, release: str = "a", **settings: Any) -> subprocess.CompletedProcess[str]:
    stub = {**light_runtime.SETTINGS, "environment": ENVIRONMENT, "gpus": [0], **settings}
    return control.run(*command, env=control.declared(release, **stub))


def deploy(*arguments: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    return run("pyinfra", control.INVENTORY, "deploy.py", "-y", "--limit", "cards", *arguments, **settings)


def status(host: Host) -> dict[str, Any]:
    (found,) = json.loads(host.ssh("python3 /srv/pyinfra-vllm/bin/on-host.pyz status tiny").stdout)
    return dict(found)


def pid(host: Host, unit: str = "vllm-tiny") -> str:
    return host.ssh(f"systemctl show -P MainPID {unit}").stdout.strip()


def environ(host: Host) -> list[str]:
    return host.ssh(f"tr '\\0' '\\n' < /proc/{pid(host)}/environ").stdout.splitlines()


def refused(done: subprocess.CompletedProcess[str], *reasons: str) -> bool:
    said = " ".join((done.stdout + done.stderr).split())
    return done.returncode == 1 and all(reason in said for reason in reasons)


def test_own_process_on_its_gpu_is_not_foreign(host: Host) -> None:
    for release in ("a", "b"):
        done = deploy(release=release)
        assert done.returncode == 0 and "committed" in done.stderr, done.stderr[-4000:]
    assert status(host)["running"] == status(host)["current"]
    told = host.ssh("nvidia-smi --query-compute-apps=pid,gpu_uuid --format=csv,noheader,nounits").stdout
    assert f"{pid(host)}, {uuid(0)}" in told.splitlines(), "the stand-in named another process"


def test_the_unit_says_which_card_and_in_which_order_it_counts(host: Host) -> None:
    expected = {"CUDA_DEVICE_ORDER=PCI_BUS_ID", "CUDA_VISIBLE_DEVICES=0", "NCCL_NVLS_ENABLE=0"}
    assert expected <= set(environ(host))


def test_a_card_in_use_is_refused_with_the_unit_and_the_process(host: Host) -> None:
    before = pid(host)
    done = deploy(gpus=[1])
    assert refused(done, f"(process {pid(host, 'vllm-other')}, 900 MiB, unit vllm-other.service)", "GPU 1")
    assert pid(host) == before
    has(host, card(0, [OWN, NEIGHBOUR]), card(1))
    assert refused(deploy(), "GPU 0 (NVIDIA H200) is in use", "unit vllm-other.service", "Nothing was staged")


def test_a_card_is_named_by_its_uuid_too(host: Host) -> None:
    done = deploy(gpus=[uuid(0)])
    assert done.returncode == 0 and "committed" in done.stderr, done.stderr[-4000:]
    assert f"CUDA_VISIBLE_DEVICES={uuid(0)}" in environ(host)
    there = f"gpus: {uuid(7)} not there; this host has 0 ({uuid(0)}), 1 ({uuid(1)})"
    assert refused(deploy(gpus=[uuid(7)]), there)


def test_a_dead_driver_is_told_in_its_own_words(host: Host) -> None:
    has(host, dead=True)
    before = pid(host)
    words = "couldn't communicate with the NVIDIA driver"
    assert refused(deploy(gpus=[uuid(0)]), "its GPUs are unknown", words, "Repair the driver")
    assert pid(host) == before


def test_another_device_cannot_be_opened_from_inside_the_unit(host: Host) -> None:
    if not device_policy.applies(host):
        pytest.skip("control groups of version 1 outside: no systemd of a container can refuse devices")
    there = [node for node, how in device_policy.opened(host, device_policy.OTHERS).items() if how == "open"]
    assert there, "none of the nodes can be opened here at all"
    inside = device_policy.opened(host, ("/dev/null", *there), unit="vllm-tiny.service")
    assert inside == {"/dev/null": "open", **dict.fromkeys(there, "EPERM")}
