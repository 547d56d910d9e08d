"""`plan` and `--dry` on real hosts that each have one defect: every refusal is told."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lab import control, light_runtime
from lab.disk import Disk
from lab.machine import Host
from lab.session import Lab

sys.path.insert(0, str(Path(__file__).parents[1]))
import nvidia_smi

SMALL = Disk("/srv", 32)
ON_GPUS = {"runtime": {"path": None, "version": "0.33.0", "package": "vllm"}, "environment": None}
STRANGER = {"unit": "ssh.service", "used": 900, "name": "python3"}
# Host -> the settings of its service, and a part of the reason that every way to look must give.
DEFECTS: dict[str, tuple[dict[str, Any], str]] = {
    "pnogpu": (ON_GPUS, "this host has no GPU"),
    "pdriver": (ON_GPUS, "driver 535.104.05 is too old for vLLM 0.33.0"),
    "pused": (ON_GPUS, "is in use by python3"),
    "pnofit": ({**ON_GPUS, "flags": {"gpu-memory-utilization": 0.002}}, "doesn't fit on 1 x"),
    "pflag": ({"flags": {"max-num-seq": 8}}, "did you mean --max-num-seqs?"),
    "ppath": ({"runtime": {"path": "/opt/none"}}, "no vLLM is installed at /opt/none"),
    "pnosystemd": ({}, "it was not booted with systemd"),
    "pdisk": ({}, "the file system /srv"),
    "pdown": ({}, "not reached"),
}
GOOD = "pgood"


def has(host: Host, card: nvidia_smi.Card) -> None:
    program = nvidia_smi.program(card)
    host.ssh("cat > /usr/local/bin/nvidia-smi; chmod 755 /usr/local/bin/nvidia-smi", stdin=program)


@pytest.fixture(scope="module")
def hosts(lab: Lab) -> Iterator[Lab]:
    """A host for each defect, and one without."""
    names = [name for name in DEFECTS if name != "pdisk"]
    with control.own_lock_file():
        lab.add(*names, GOOD)
        lab.add("pdisk", disks=[SMALL])
        has(lab.hosts["pdriver"], nvidia_smi.card(driver_version="535.104.05"))
        has(lab.hosts["pused"], nvidia_smi.card(processes=[STRANGER]))
        has(lab.hosts["pnofit"], nvidia_smi.card())
        lab.hosts["pnosystemd"].ssh("mv /run/systemd/system /run/systemd/system.away")
        done = control.pyinfra_vllm("lock", control.INVENTORY, env=environment())
        assert done.returncode == 0, done.stderr
        lab.hosts["pdown"].power_cut()
        yield lab
        lab.hosts["pnosystemd"].ssh("mv /run/systemd/system.away /run/systemd/system")
        lab.remove(*names, GOOD, "pdisk")


def environment() -> dict[str, str]:
    own = {name: {"services": {"tiny": settings}} for name, (settings, _) in DEFECTS.items() if settings}
    declared = control.declared("a", **light_runtime.SETTINGS)
    return {**declared, "PYINFRA_VLLM_LAB_HOSTS": json.dumps(own), "COLUMNS": "80"}


def limit() -> list[str]:
    return ["--limit", "p*"]


def files(host: Host) -> str:
    return host.ssh("ls -lR --time-style=full-iso /srv /etc/systemd/system").stdout


def test_the_plan_tells_every_refusal_as_data(hosts: Lab) -> None:
    before = files(hosts.hosts[GOOD])
    done = control.pyinfra_vllm("plan", control.INVENTORY, "--json", *limit(), env=environment())
    assert done.returncode == 1, done.stderr
    found = {host["host"]: host["services"][0] for host in json.loads(done.stdout)["hosts"]}
    assert set(found) == {*DEFECTS, GOOD}
    for name, (_, reason) in DEFECTS.items():
        assert found[name]["action"] == "refused", name
        assert reason in "\n".join(found[name]["reasons"]), (name, found[name])
    good = found[GOOD]
    assert (good["action"], good["from"], good["reasons"]) == ("install", None, [])
    assert good["to"] and good["download_bytes"] > 0
    assert good["changes"]["model"][0] is None and good["changes"]["model"][1].startswith("lab/good-a@")
    assert good["changes"]["flags"]["--max-model-len"] == [None, "2048"]
    assert files(hosts.hosts[GOOD]) == before


@pytest.mark.full
def test_the_plan_tells_every_refusal_to_a_person(hosts: Lab) -> None:
    done = control.pyinfra_vllm("plan", control.INVENTORY, *limit(), env=environment())
    assert done.returncode == 1, done.stderr
    print(done.stdout)
    lines = done.stdout.splitlines()
    assert lines[0] == "10 hosts, 10 services: 9 refused, 1 to install"
    words = " ".join(done.stdout.split())
    for name, (_, reason) in DEFECTS.items():
        assert reason in words and name in words
    assert max(map(len, lines)) <= 80, "nothing here is one long word"


@pytest.mark.full
@pytest.mark.parametrize("words", [["--dry"], ["--dry", "-y"]], ids=" ".join)
def test_a_dry_run_tells_every_refusal_and_ends_with_1(hosts: Lab, words: list[str]) -> None:
    before = files(hosts.hosts[GOOD])
    done = control.pyinfra("deploy.py", *words, *limit(), env=environment())
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    for name, (_, reason) in DEFECTS.items():
        if name != "pdown":  # pyinfra itself says how it could not be reached
            lines = [" ".join(line.split()) for line in done.stderr.splitlines()]
            told = [line for line in lines if line.startswith(f"[{name}] would be refused: ")]
            assert reason in "\n".join(told), (name, told)
    assert "9 of 10 hosts would be refused or did not answer" in done.stderr
    assert f"[{GOOD}]" in done.stderr and "would be the first release" in done.stderr
    assert files(hosts.hosts[GOOD]) == before


def test_nothing_is_refused_on_a_host_without_a_defect(hosts: Lab) -> None:
    for command in (
        ("pyinfra-vllm", "plan", control.INVENTORY, "--limit", GOOD),
        ("pyinfra", control.INVENTORY, "deploy.py", "--dry", "--limit", GOOD),
    ):
        done = control.run(*command, env=environment())
        assert done.returncode == 0, done.stderr
