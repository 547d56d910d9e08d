"""A simulated host whose releases have standby: two servers on one card, a front, and all that can fail."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from simulated import NEW, OLD, Killed, SimulatedHost

from pyinfra_vllm.on_host.bench import probe
from pyinfra_vllm.on_host.bench.plan import Plan
from pyinfra_vllm.on_host.bench.record import Phase, Record, Request, Round
from pyinfra_vllm.on_host.server import control, front, service, systemd
from pyinfra_vllm.on_host.server import release as releases
from pyinfra_vllm.on_host.server.control import Mute, Refused, State
from pyinfra_vllm.on_host.state import paths
from pyinfra_vllm.on_host.switch import standby, two_servers

__all__ = ["NEW", "OLD", "Killed", "StandbyHost"]

TO_NEW = [
    "sleep old", "start new", "canary new", "sleep new", "lead new", "wake new", "canary new", "serve new",
    "relay old",
]  # fmt: skip
BACK = ["lead old", "sleep new", "wake old", "canary old", "serve old", "relay new", "stop new"]

HAS_MEMORY = ("serving", "draining", "awake", "failed")
SHORT = two_servers.Limits(drain_s=0.05, wake_s=0.05, start_s=0.2, memory_s=0.05, stop_s=0.05, owed_s=0.05)


class StandbyHost(SimulatedHost):
    """`faults` has pairs of a release and what fails of it: sleep, wake, busy, memory."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.servers: dict[str, str] = {}
        self.relays: dict[str, str] = {}
        self.slept: set[str] = set()  # since their start
        self.faults: set[tuple[str, str]] = set()
        self.wrong: set[str] = set()  # answers otherwise after a wake
        self.listening = False  # systemd, for the front
        self.takes_turns = False  # its measurements have a plan, which rounds in turns share
        self.breaks_at_start: dict[str, int] = {}  # and never serves again
        self.drift = 1.0  # of the machine's speed, from each round to the next
        self.rounds: list[tuple[str, int]] = []  # who was asked, and the round's number
        self.violations: list[str] = []
        super().__init__(root, monkeypatch)
        (root / "run").mkdir()
        monkeypatch.setattr(paths, "RUN", root / "run")
        monkeypatch.setattr(two_servers, "POLL_S", 0.001)
        monkeypatch.setattr(standby, "_limits", lambda old, new, start_s: SHORT)
        stubs: list[tuple[Any, str, Any]] = [
            (systemd, "version", lambda: 252),
            (systemd, "running_release", self._running_release),
            (systemd, "started_release", self._running_release),
            (control.Control, "state", lambda this: self._state(_release(this.unit))),
            (control.Control, "tell", self._tell),
            (front, "accepts", lambda path: self.servers.get(path.parent.name) in (*HAS_MEMORY, "asleep")),
            (front, "lead", functools.partial(front.lead)),
            (probe, "one_round", self._one_round),
            (standby.Turns, "_answers", self._answers),
            (standby.Turns, "_room", lambda this, who: self._has_room(this.releases[who].id)),
        ]
        for owner, name, stub in stubs:
            monkeypatch.setattr(owner, name, self._mortal(name, stub))

    # What the tests do

    def stage(self, release_id: str, values: Any = None, standby: bool = True, **more: Any) -> None:
        if standby:
            more["sockets"] = str(self.paths.sockets_folder(release_id))
            more.setdefault("fit", {"weights_bytes": 1})
        super().stage(release_id, values, **more)
        for name in releases.STANDBY_FILES if standby else ():
            (self.paths.release(release_id) / name).write_text("ListenStream=127.0.0.1:1\n")

    def install(self, release_id: str, values: Any = None, **how: Any) -> None:
        self.stage(release_id, values, **how)
        host = service.Service(self.paths, self.said.append)
        host.point_at(release_id)
        host.start()
        self.starts.clear()

    def recover(self, boot: bool = False) -> list[str]:
        if boot:
            self.servers.clear()
            self.relays.clear()
            paths.awake("chat").unlink(missing_ok=True)
        return super().recover(boot)

    def acts(self) -> list[str]:
        return [f"{entry['act']} {entry['who']}" for entry in self.journal() if entry["step"] == "turn"]

    @property
    def leads_to(self) -> str | None:
        led = paths.leads_to(paths.awake("chat"))
        return led.parent.name if led else None

    @property
    def running(self) -> str | None:  # type: ignore[override]
        """Who serves."""
        return next((name for name, state in self.servers.items() if state == "serving"), None)

    @running.setter
    def running(self, release_id: str | None) -> None:
        self.servers = {release_id: "serving"} if release_id else {}

    # What is simulated

    def _has_room(self, release_id: str) -> bool:
        return not any(
            state in HAS_MEMORY or (name, "memory") in self.faults
            for name, state in self.servers.items()
            if name != release_id and name not in self.broken
        )

    def _named(self, unit: str) -> str | None:
        """The release that a start of this unit would start, by the links as systemd read them."""
        return self.loaded if unit == self.paths.unit else _release(unit)

    def _running_release(self, unit: str) -> str | None:
        release_id = self._named(unit)
        return release_id if release_id in self.servers else None

    def _start(self, unit: str) -> None:
        if "-front." in unit:
            self.listening = True
            return
        release_id = self._named(unit)
        assert release_id is not None
        if release_id in self.servers and release_id not in self.broken:
            return
        self.starts.append(release_id)
        self.looks_at_crash = 0
        if self.breaks_at_start.get(release_id) == self.starts.count(release_id):
            self.broken.add(release_id)
        if not self._has_room(release_id):
            self.violations.append(f"{release_id} is started while another server has the card's memory")
        self.servers[release_id] = "serving"
        self.slept.discard(release_id)
        if not paths.awake("chat").is_symlink():  # its unit's ExecStartPre=
            self.paths.sockets_folder(release_id).parent.mkdir(exist_ok=True)
            paths.awake("chat").symlink_to(f"{release_id}/api.sock")

    def _stop(self, unit: str, limit_s: float) -> None:
        if "-front." in unit:
            self.listening = False
            return
        release_id = self._named(unit)
        if release_id in self.dies_when_stopped and release_id in self.servers:
            self.broken.add(release_id)
        self.servers.pop(str(release_id), None)
        self.relays.pop(str(release_id), None)

    def _show(self, unit: str, *properties: str) -> dict[str, str]:
        if "-front." in unit:
            return {
                "ActiveState": "active" if self.listening else "inactive",
                "Listen": "127.0.0.1:1 (Stream)",
            }
        if properties in (("Environment",), ("LoadState",)):
            return super()._show(unit, *properties)
        release_id = self._named(unit)
        here = self.servers.get(str(release_id))
        state = "inactive" if here is None else "failed" if release_id in self.broken else "active"
        return {"ActiveState": state, "NRestarts": "0", "Result": "exit-code", "ExecMainStatus": "2"}

    def _generation_problem(self, release_id: str) -> str:
        serves = self.servers.get(release_id) == "serving" and release_id not in self.broken
        return "" if serves else "connection refused"

    def _state(self, release_id: str) -> State:
        if release_id not in self.servers or release_id in self.broken:
            raise Mute(f"{release_id} does not answer")
        slept, relay = release_id in self.slept, self.relays.get(release_id, "")
        return State(self.servers[release_id], slept, 0, 0, relay, "key")

    def _tell(self, this: control.Control, do: str, limit_s: float = 0.0, **words: Any) -> State:
        release_id = _release(this.unit)
        state = self._state(release_id).state
        if do == "sleep" and state != "asleep":
            if (release_id, "busy") in self.faults:
                raise Refused("requests are still in flight")
            self.slept.add(release_id)
            self._become(release_id, "sleep", "asleep")
        elif do == "wake" and state == "asleep":
            if not self._has_room(release_id):
                self.violations.append(f"{release_id} wakes while another server has the card's memory")
            self._become(release_id, "wake", "awake")
        elif do == "serve":
            self.relays.pop(release_id, None)
            self.servers[release_id] = "serving"
        elif do == "relay":
            self.relays[release_id] = words["to"]
        return self._state(release_id)

    def _become(self, release_id: str, act: str, state: str) -> None:
        failed = (release_id, act) in self.faults
        self.servers[release_id] = "failed" if failed else state
        if failed:
            raise Refused(f"the engine failed to {act}")

    def _measure(self, client: Any, settings: Any, **how: Any) -> Record:
        found = super()._measure(client, settings, **how)
        plan = Plan({"short": 5}, 32, 4, {"c1": 3, "c8": 24})
        return replace(found, plan=plan) if self.takes_turns else found

    def _one_round(self, client: Any, settings: Any, like: Record, number: int, *_: Any) -> tuple[Phase, ...]:
        """The awake server is as fast as its rate says, but for the machine's drift and a little noise."""
        assert self.running is not None
        self.rounds.append((self.running, number))
        speed = self.rates[self.running] * self.drift ** len(self.rounds)
        speed *= 1 + 0.001 * (len(self.rounds) * 7 % 5 - 2)
        requests = tuple(
            Request(f"p{n}", True, 5 / speed, 320 / speed, 64, 32, round=number) for n in range(3)
        )
        whole = (Round(number, 3 * 32 / speed, 3 * 32, True),)
        return tuple(Phase(f"c{c}", c, 3 * 32 / speed, requests, whole) for c in (1, 8))

    def _answers(self, this: standby.Turns, who: str, key: str) -> str:
        release_id = this.releases[who].id
        if release_id in self.wrong and release_id in self.slept:
            return "otherwise"
        return f"answers of {release_id}"


def _release(unit: str) -> str:
    return unit.split(".")[1]


def prepared(root: Path, patch: pytest.MonkeyPatch, rate: float = 100.0) -> StandbyHost:
    host = StandbyHost(root, patch)
    host.install(OLD)
    host.stage(NEW)
    host.rates[NEW] = rate
    host.calls.clear()
    return host


def ends_right(host: StandbyHost, release_id: str, at: object = "") -> None:
    """This release is current, serves alone, and clients are led to it."""
    assert host.servers == {release_id: "serving"}, at
    assert (host.current, host.leads_to, host.listening) == (release_id, release_id, True), at
    assert list(host.paths.server_units()) == [release_id], at
    assert host.paths.unit_link.readlink().name == f"vllm-chat.{release_id}.service", at
    assert host.violations == [], at


def count_calls(
    root: Path, monkeypatch: pytest.MonkeyPatch, rate: float, takes_turns: bool = False, **order: Any
) -> int:
    with monkeypatch.context() as patch:
        host = prepared(root, patch, rate)
        host.takes_turns = takes_turns
        host.switch(**order)
        return len(host.calls)


def die_at_every(
    step: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rate: float,
    boot: bool,
    takes_turns: bool = False,
    **order: Any,
) -> None:
    total = count_calls(tmp_path / "dry", monkeypatch, rate, takes_turns, **order)
    assert total > 100
    for moment in range(0, total, step):
        with monkeypatch.context() as patch:
            host = prepared(tmp_path / f"{moment}", patch, rate)
            host.die_at, host.takes_turns = moment, takes_turns
            with contextlib.suppress(Killed):
                host.switch(**order)
            host.recover(boot)
            committed = any(entry["step"] == "commit" for entry in host.journal())
            ends_right(
                host, NEW if committed else OLD, f"dead at {moment}: {host.calls[moment : moment + 1]}"
            )
            begun, ended = (
                [entry for entry in host.journal() if entry["step"] == step] for step in ("begin", "end")
            )
            assert len(begun) == len(ended), f"dead at {moment}: the journal has no end"
            seen = (dict(host.servers), len(host.journal()))
            host.recover()
            assert (host.servers, len(host.journal())) == seen, f"dead at {moment}: recovered twice"
