"""A host of the lab behaves like a machine: it boots, keeps its disk, loses its power and its network."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest
from lab.disk import Disk
from lab.machine import Host
from lab.session import Lab
from lab.shell import LabError

pytestmark = pytest.mark.full

SMALL = Disk("/srv", 32)


@pytest.fixture(scope="module")
def pair(lab: Lab) -> Iterator[tuple[Host, Host]]:
    first, second = lab.add("one", "two", disks=[SMALL])
    yield first, second
    lab.remove("one", "two")


def test_systemd_is_whole_and_runs(pair: tuple[Host, Host]) -> None:
    host = pair[0]
    assert host.ssh("systemctl is-system-running --wait").stdout.strip() == "running"
    assert host.ssh("hostname").stdout.strip() == "one"


def test_the_operator_is_an_ordinary_account_with_sudo(pair: tuple[Host, Host]) -> None:
    assert pair[0].ssh("id -un; sudo -n id -un", user="ops").stdout.split() == ["ops", "root"]
    assert pair[0].ssh("cat /etc/shadow", user="ops", check=False).returncode != 0


def test_host_keys_are_verified(pair: tuple[Host, Host]) -> None:
    known = pair[0].known_hosts
    kept = known.read_text()
    try:
        lines = [line.split(" ", 1) for line in kept.splitlines()]
        swapped = [f"{name} {key}" for (name, _), (_, key) in zip(lines, lines[1:] + lines[:1], strict=True)]
        known.write_text("\n".join(swapped) + "\n")
        with pytest.raises(LabError, match="Host key verification failed"):
            pair[0].ssh("true")
    finally:
        known.write_text(kept)


def test_disk_and_journal_outlive_the_power(pair: tuple[Host, Host]) -> None:
    host = pair[0]
    host.ssh(
        "echo kept > /root/note && echo kept > /srv/note && sync && logger -t lab before && journalctl --sync"
    )
    host.power_cut()
    assert not host.running
    host.start()
    assert host.ssh("cat /root/note /srv/note").stdout.split() == ["kept", "kept"]
    assert "before" in host.ssh("journalctl -b -1 -t lab -o cat").stdout


def test_an_orderly_stop_runs_the_units_stop(pair: tuple[Host, Host]) -> None:
    host = pair[1]
    host.ssh("systemd-run --unit=farewell -p ExecStop='/bin/touch /root/farewell' sleep 1000")
    host.stop()
    host.start()
    assert host.ssh("ls /root/farewell").stdout.strip() == "/root/farewell"


def test_a_cut_link_and_its_return(pair: tuple[Host, Host]) -> None:
    host = pair[0]
    host.cut_link()
    with pytest.raises(LabError):
        host.ssh("true")
    host.restore_link()
    host.wait_ready()
    assert host.ssh("true").returncode == 0


def test_a_slow_link_is_slow(lab: Lab, pair: tuple[Host, Host]) -> None:
    """4 MB at 16 Mbit/s take 2 s; without the limit a fraction of it."""
    lab.hub.publish("lab/large", {"model.safetensors": bytes(4_000_000)})
    url = f"{lab.hub.url}/cdn/lab/large/main/model.safetensors"
    fetch = f"python3 -c 'import urllib.request as web; print(len(web.urlopen(\"{url}\").read()))'"
    pair[0].limit_link(16)
    begun = time.monotonic()
    assert pair[0].ssh(fetch).stdout.strip() == "4000000"
    limited = time.monotonic() - begun
    pair[0].limit_link(None)
    begun = time.monotonic()
    pair[0].ssh(fetch)
    assert limited > 1.8 > time.monotonic() - begun


def test_a_small_disk_fills_and_can_turn_read_only(pair: tuple[Host, Host]) -> None:
    host = pair[0]
    full = host.ssh("head -c 64M /dev/zero > /srv/large", check=False)
    assert full.returncode != 0 and "No space left on device" in full.stderr
    host.ssh("rm /srv/large")
    host.set_read_only(SMALL)
    assert "Read-only file system" in host.ssh("touch /srv/x", check=False).stderr
    host.set_read_only(SMALL, False)
    assert host.ssh("touch /srv/x").returncode == 0


def test_the_runtime_is_shared_and_can_not_be_written(pair: tuple[Host, Host]) -> None:
    failed = pair[0].ssh("touch /opt/vllm-light/x", check=False)
    assert "Read-only file system" in failed.stderr


ASK = """
import sys, urllib.request as web
request = web.Request("http://127.0.0.1:8200/v1/completions", sys.stdin.buffer.read())
print(web.urlopen(request).read().decode())
"""


def test_the_stub_of_vllm_serves_at_once(pair: tuple[Host, Host]) -> None:
    host = pair[0]
    stub = "/opt/vllm-light/bin/vllm serve /nowhere --port 8200 --served-model-name tiny"
    host.ssh(f"systemd-run --unit=stub -E LIGHT_CHECK_WEIGHTS=0 {stub}")
    host.ssh("for try in $(seq 50); do sleep 0.1; (echo > /dev/tcp/127.0.0.1/8200) && break; done")
    wanted = {"model": "tiny", "prompt": "x", "max_tokens": 5, "stream": True, "ignore_eos": True}
    body = json.dumps({**wanted, "stream_options": {"include_usage": True}})
    told = host.ssh(f"python3 -c '{ASK}'", stdin=body).stdout
    assert told.count('"text"') == 5 and '"completion_tokens": 5' in told
    assert told.rstrip().endswith("data: [DONE]")


def test_the_stub_of_vllm_refuses_a_flag_it_does_not_know(pair: tuple[Host, Host]) -> None:
    unknown = pair[0].ssh("/opt/vllm-light/bin/vllm serve /nowhere --no-such-flag", check=False)
    assert unknown.returncode == 2 and "unrecognized arguments: --no-such-flag" in unknown.stderr
