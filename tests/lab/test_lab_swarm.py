"""Four real hosts share a checkpoint: real SSH and sudo, real units, libtorrent in each host's python3."""

from __future__ import annotations

import json
import random
import re
import runpy
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from lab import peers
from lab.machine import Host
from lab.peers import Project
from lab.session import Lab

pytestmark = pytest.mark.full

WEIGHTS = {f"model-{number}.safetensors": random.Random(number).randbytes(12_000_000) for number in (1, 2)}
FILES = {"config.json": b'{"model_type": "qwen3"}', "tokenizer.json": b"{}", **WEIGHTS}
SIZE = sum(map(len, WEIGHTS.values()))
SLACK = 8 << 20  # on its way to the clients when they had enough
LYING_PEER = Path(__file__).parents[1] / "unit/lying_peer.py"
NAMES = ("s1", "s2", "s3", "s4")
SWARM = {"from_hub": 2}
SLOWLY = {**SWARM, "max_mib_per_s": 1}


@pytest.fixture(scope="module")
def hosts(lab: Lab) -> Iterator[list[Host]]:
    yield lab.add(*NAMES, binds=peers.binds())
    lab.remove(*[name for name in NAMES if name in lab.hosts])


@pytest.fixture(scope="module")
def project(lab: Lab, hosts: list[Host], tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project.of(lab, tmp_path_factory.mktemp("swarm"), FILES)


@pytest.fixture(autouse=True)
def clean(project: Project, hosts: list[Host]) -> None:
    project.forget([host for host in hosts if host.running])


def assert_complete(project: Project, host: Host) -> None:
    there = host.ssh(f"cd {project.directory} && ls -A && sha256sum *.safetensors").stdout
    assert there.split()[:1] == [".complete"]
    for name, content in FILES.items():
        size = host.ssh(f"setpriv --reuid=nobody cat {project.directory}/{name} | wc -c").stdout
        assert int(size) == len(content)
    owners = host.ssh(f"stat -c '%U %a' {project.directory} {project.directory}/*").stdout.splitlines()
    assert set(owners) == {"root 755", "root 644"}
    project.verify(host)
    assert "partial" not in host.ssh("ls /srv/pyinfra-vllm/checkpoints/*").stdout


def running(host: Host) -> str:
    """The processes that talk to other hosts, by user; libtorrent's code is in their command line."""
    shown = host.ssh("ps axww -o user:20= -o args= | grep '[e]nd_with_parent' || true", check=False)
    return shown.stdout


def wait_complete(project: Project, host: Host) -> None:
    marker = f"{project.directory}/.complete"
    until(lambda: host.ssh(f"test -e {marker}", check=False).returncode == 0, 240)


def until(reached: Callable[[], bool], timeout: float = 90) -> None:
    deadline = time.monotonic() + timeout
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.3)


def test_four_hosts_cost_the_hub_one_checkpoint(project: Project, hosts: list[Host]) -> None:
    said = project.run(*project.words(hosts), swarm=SWARM)
    for host in hosts:
        assert_complete(project, host)
    assert project.from_hub() < SIZE + SLACK
    assert project.with_token() == {hosts[0].address, hosts[1].address}
    assert said.count("is complete and verified, shared among 4 hosts") == 4
    assert all("libtorrent" not in running(host) for host in hosts)
    units = hosts[0].ssh("systemctl list-units --all --no-legend 'pyinfra-vllm-fetch*'; ls /run/pyinfra-vllm")
    assert "service" not in units.stdout and "secret" not in units.stdout


def test_new_host_gets_it_from_the_others(project: Project, hosts: list[Host]) -> None:
    project.run(*project.words(hosts), swarm=SWARM)
    project.forget(hosts[3:])
    said = project.run(*project.words(hosts), swarm=SWARM)
    assert_complete(project, hosts[3])
    assert project.from_hub() == 0 and project.with_token() == set(), said


def test_who_talks_to_others_owns_nothing_and_listens_to_the_fleet(
    project: Project, hosts: list[Host]
) -> None:
    with project.under_way(hosts, SLOWLY) as staging:
        until(lambda: "libtorrent" in running(hosts[3]))
        assert {line.split()[0] for line in running(hosts[3]).splitlines()} == {"vllm-peer"}
        until(lambda: f":{peers.PORT}" in hosts[3].ssh("ss -tln").stdout)
        # The UDP port is libtorrent's for uTP, which is off: no DHT, no local discovery, no port mapping.
        for sockets in ("ss -Htln 'sport != 22'", "ss -Huln"):
            (listening,) = hosts[3].ssh(sockets).stdout.splitlines()
            address = re.sub(r"%\S+:", ":", listening.split()[3])  # without the interface
            assert address == f"{hosts[3].address}:{peers.PORT}"
        request = json.loads(hosts[3].ssh("cat /run/pyinfra-vllm/fetch-*.request").stdout)
        greeting = runpy.run_path(str(LYING_PEER))["greeting"](request)
        assert not _answers(hosts[3].address, greeting), "this machine is no host of the fleet"
        shown = hosts[3].ssh("systemctl show 'pyinfra-vllm-fetch*' -p IOWeight,IPAddressDeny,IPAddressAllow")
        assert "IOWeight=10" in shown.stdout
        assert all(host.address in shown.stdout for host in hosts)
        assert peers.TOKEN not in shown.stdout + hosts[3].ssh("cat /run/pyinfra-vllm/* 2>/dev/null").stdout
        output, _ = staging.communicate(timeout=300)
        assert staging.returncode == 0, output
    for host in hosts:
        assert_complete(project, host)


def _answers(address: str, greeting: bytes) -> bool:
    """Whether a peer greets back when it is greeted from here."""
    with suppress(OSError), socket.create_connection((address, peers.PORT), timeout=3) as other:
        other.settimeout(5)
        other.sendall(greeting)
        return other.recv(1) != b""
    return False


def test_host_that_sends_garbage_costs_time_only(project: Project, hosts: list[Host]) -> None:
    *honest, liar = hosts
    with project.under_way(hosts, SLOWLY) as staging:
        until(lambda: "libtorrent" in running(liar))
        liar.ssh(
            "cp /run/pyinfra-vllm/fetch-*.request /root/request.json; systemctl stop 'pyinfra-vllm-fetch*'"
        )
        liar.ssh("cat > /root/lying_peer.py", stdin=LYING_PEER.read_text())
        with_program = "env PYTHONPATH=/srv/pyinfra-vllm/bin/on-host.pyz python3 /root/lying_peer.py"
        liar.ssh(f"systemd-run --quiet --collect {with_program} /root/request.json")
        output, _ = staging.communicate(timeout=400)
        assert staging.returncode == 0, output
    said = [host.ssh("journalctl --no-pager -o cat -u 'pyinfra-vllm-fetch*'").stdout for host in honest]
    assert any("bytes of other content came from others; thrown away" in text for text in said)
    for host in hosts:
        assert_complete(project, host)
    assert project.from_hub() < 2 * SIZE + SLACK, "the liar itself asked the Hub"


def test_link_that_is_cut_costs_the_others_time_only(project: Project, hosts: list[Host]) -> None:
    with project.under_way(hosts[:3], SLOWLY) as staging:
        until(lambda: "libtorrent" in running(hosts[2]))
        time.sleep(3)
        hosts[2].cut_link()
        try:
            for host in hosts[:2]:
                wait_complete(project, host)
        finally:
            hosts[2].restore_link()
        output, _ = staging.communicate(timeout=400)
        assert staging.returncode == 0, output
    for host in hosts[:3]:
        assert_complete(project, host)


def test_host_without_libtorrent_asks_the_hub_and_says_so(
    project: Project, lab: Lab, hosts: list[Host]
) -> None:
    (bare,) = lab.add("bare")
    try:
        said = project.run(*project.words([*hosts[:2], bare]), swarm=SWARM)
        assert "[bare] does not share swarm/model: neither its python3 nor its runtime has libtorrent" in said
        for host in (*hosts[:2], bare):
            assert_complete(project, host)
        assert project.from_hub() < 2 * SIZE + SLACK
        assert bare.address in project.with_token()
    finally:
        lab.remove("bare")


def test_host_that_loses_its_power_costs_the_others_time_only(project: Project, hosts: list[Host]) -> None:
    with project.under_way(hosts, SLOWLY):
        until(lambda: "libtorrent" in running(hosts[3]))
        time.sleep(3)
        hosts[3].power_cut()
        for host in hosts[:3]:
            wait_complete(project, host)
    for host in hosts[:3]:
        assert_complete(project, host)
    hosts[3].start()
    project.run(*project.words(hosts), swarm=SWARM)
    assert_complete(project, hosts[3])
