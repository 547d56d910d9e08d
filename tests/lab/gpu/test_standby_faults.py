"""Faults in a switch with standby, on a card and with the real vLLM: whatever is killed or cut, one proven
release serves, and alone. The whole table runs on the stub (tests/lab/faults).
"""

from __future__ import annotations

import json
import shlex
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from lab import control
from lab.machine import Host
from lab.session import Lab
from lab.shell import LabError, say

from . import looks
from .story import Story, host, service

MODEL = "Qwen/Qwen3-0.6B-AWQ"
GRAPHS = {"max-cudagraph-capture-size": 8}
# Short, for it is not the verdict that is looked at here; a small model is as fast as the processor.
GATE = {
    "budget_s": 15,
    "concurrency": [1, 8],
    "throughput_margin": 0.5,
    "ttft_margin": None,
    "tpot_margin": None,
    "quality": False,
    "on_inconclusive": "keep",
}
REACHED_S, SETTLED_S = 300.0, 600.0
# One token for a client, through the front.
ASK = (
    "import json, urllib.request as web;"
    " body = json.dumps({'model': 'chat', 'prompt': 't5 t6', 'max_tokens': 1}).encode();"
    " sent = web.Request('http://127.0.0.1:8000/v1/completions', body, {'Content-Type': 'application/json'});"
    " web.urlopen(sent, timeout=20).read()"
)
FRONT, SWITCH = "vllm-chat-front.service", "pyinfra-vllm-switch-chat.service"


@dataclass(frozen=True)
class Case:
    """A fault: `do`, once the journal has the entry `at`. slower: the new release is, so it goes back."""

    name: str
    at: str
    do: Callable[[Host, str, str], None]  # host, old and new release
    slower: bool = False


def _kill(unit: str) -> Callable[[Host, str, str], None]:
    """SIGKILL; OLD and NEW in the name are the releases."""

    def strike(there: Host, old: str, new: str) -> None:
        named = unit.replace("OLD", old).replace("NEW", new)
        there.ssh(f"systemctl kill --signal=KILL {named}")

    return strike


def _power(there: Host, old: str, new: str) -> None:
    there.power_cut()
    there.start()


def _symlink(there: Host, old: str, new: str) -> None:
    there.ssh("rm /run/vllm-chat/awake")


HALVES = {
    "first": (
        Case("the switch is killed", "turn sleep old", _kill(SWITCH)),
        Case("the switch is killed", "turn start new", _kill(SWITCH)),
        Case("the front is killed", "turns intended", _kill(FRONT)),
        Case("the power is cut", "turn start new", _power),
        Case("the sleeping server crashes", "measure-after intended", _kill("vllm-chat.OLD.service")),
    ),
    "second": (
        Case("the switch is killed", "turn wake old", _kill(SWITCH)),
        Case("the power is cut", "turn wake old", _power),
        Case("the new server crashes", "measure-after intended", _kill("vllm-chat.NEW.service")),
        Case("the front's symlink is lost", "measure-after intended", _symlink),
        Case("the switch is killed", "restore intended", _kill(SWITCH), slower=True),
    ),
}


@pytest.mark.parametrize("half", HALVES)
def test_whatever_is_killed_or_cut_one_proven_release_serves(lab: Lab, half: str) -> None:
    declared = {"chat": service(MODEL, gate=GATE, flags=GRAPHS, standby=True)}
    name = f"standby-faults-{half}"
    with host(lab, "faults", 1, [MODEL]) as solo, Story(name, solo, declared, "chat") as story:
        story.install("first installation")
        story.facts["faults"] = told = []
        for number, case in enumerate(HALVES[half], 1):
            told.append(_tried(story, case, number))
            story.keep()


def _tried(story: Story, case: Case, number: int) -> dict[str, Any]:
    """Roll out an equal or a slower release, strike, and look at what came of it."""
    there, old = story.host, looks.running(story.host, "chat")
    settings = story.services["chat"]
    settings["environment"] = {**settings["environment"], "DESCRIPTION": f"{number}"}
    settings["flags"] = {**GRAPHS, "enforce-eager": True} if case.slower else GRAPHS
    if case.slower:
        settings["gate"] = {**GATE, "throughput_margin": 0.05}
    known = looks.newest_entries(there, "chat")[0]["tx"]
    rollout = threading.Thread(target=_rolled_out, args=(there.name, story.environment()))
    rollout.start()
    begin = _reached(there, known, case.at)
    struck = time.monotonic()
    case.do(there, str(old), begin["to"])
    rollout.join(SETTLED_S)
    found = _settled(there)
    took = time.monotonic() - struck
    ended = found["last"]
    stays = begin["to"] if ended["outcome"] == "committed" else old
    units = there.ssh("systemctl list-units --plain --no-legend --state=active 'vllm-chat.*.service'").stdout
    alone = [row.split()[0] for row in units.splitlines()] == [f"vllm-chat.{stays}.service"]
    right = found["current"] == found["running"] == stays and alone
    story.must(right, f"{case.name} at {case.at}: one proven release serves, alone", found, units)
    return {"case": case.name, "at": case.at, "outcome": ended["outcome"], "s": round(took), "right": right}


def _rolled_out(name: str, env: dict[str, str]) -> None:
    try:
        control.pyinfra("deploy.py", "-y", "--limit", name, env=env, timeout=SETTLED_S)
    except LabError as error:
        say(f"{name}: {error}")


def _reached(there: Host, known: str, at: str) -> dict[str, Any]:
    """The beginning of the new transaction, once its journal has come so far."""
    until = time.monotonic() + REACHED_S
    while time.monotonic() < until:
        entries = looks.newest_entries(there, "chat")
        names = {f"{entry['step']} {entry['state']}" for entry in entries}
        names |= {f"turn {entry['act']} {entry['who']}" for entry in entries if entry["step"] == "turn"}
        if entries[0]["tx"] != known and at in names:
            return entries[0]
        if entries[0]["tx"] != known and "end done" in names:
            raise AssertionError(f"it ended before {at}: {entries[-1]}")
        time.sleep(0.2)
    raise AssertionError(f"it did not come to {at} within {REACHED_S:.0f} s")


def _settled(there: Host) -> dict[str, Any]:
    """The host's answer to `status`, once nothing is under way and a client is answered."""
    until = time.monotonic() + SETTLED_S
    while time.monotonic() < until:
        asked = there.ssh("python3 /srv/pyinfra-vllm/bin/on-host.pyz status chat", check=False)
        (found,) = json.loads(asked.stdout) if asked.returncode == 0 else ({},)
        ended = found and found["lock"] is None and found["last"] and found["last"]["outcome"]
        if ended and there.ssh(shlex.join(["python3", "-c", ASK]), check=False).returncode == 0:
            return dict(found)
        time.sleep(2)
    raise AssertionError(f"nothing serves, or it does not end, {SETTLED_S:.0f} s after the fault: {found}")
