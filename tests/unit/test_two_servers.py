"""Two servers of one card take turns: the program against the middleware, with a card that is a number.

tests/lab/test_lab_turns.py has the same behind a real systemd and a real front, with faults at every act.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pyinfra_vllm.in_runtime import standby as middleware
from pyinfra_vllm.on_host.server import control, front, systemd
from pyinfra_vllm.on_host.state.paths import leads_to
from pyinfra_vllm.on_host.switch import pair
from pyinfra_vllm.on_host.switch.pair import ACTIVATE, BACK, FORWARD, KEEP, TURN_TO_NEW, TURN_TO_OLD, Act
from pyinfra_vllm.on_host.switch.two_servers import Failed, Limits, Member, Stuck, TwoServers

AWAKE, ASLEEP = 90, 2
LIMITS = Limits(drain_s=0.3, wake_s=0.3, start_s=0.5, memory_s=0.3, stop_s=0.3, owed_s=0.3)


WHO = {"a": pair.OLD, "b": pair.NEW}


class Killed(BaseException):
    """The end of the process that acts."""


class Engine:
    """Uses so much of the card, and fails as it is told."""

    def __init__(self) -> None:
        self.used = AWAKE
        self.asleep = False
        self.faults: set[str] = set()

    async def sleep(self, level: int, mode: str) -> None:
        if "sleep fails" in self.faults:
            raise RuntimeError("out of memory")
        self.asleep = True
        self.used = AWAKE if "keeps memory" in self.faults else ASLEEP

    async def wake_up(self) -> None:
        if "wake fails" in self.faults:
            raise RuntimeError("out of memory")
        self.asleep, self.used = False, AWAKE

    async def is_sleeping(self) -> bool:
        return self.asleep


class Server:
    """One server's process: the middleware and its sockets, in a thread."""

    def __init__(self, folder: Path, faults: set[str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.engine = folder, Engine()
        self.engine.faults = faults
        self.ready, self.over = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=lambda: asyncio.run(self.serve()))
        self.thread.start()
        assert self.ready.wait(5)

    async def serve(self) -> None:
        os.environ[middleware.CONTROL] = str(self.folder / "control.sock")
        self.middleware = middleware.Standby(self.app)
        scope = {"type": "lifespan", "app": SimpleNamespace(state=SimpleNamespace(engine_client=self.engine))}
        await self.middleware(scope, self.app, self.app)  # type: ignore[arg-type]

    async def app(self, *_: Any) -> None:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.close()

        async with await asyncio.start_unix_server(accept, self.folder / "api.sock"):
            self.ready.set()
            while not self.over.is_set():
                await asyncio.sleep(0.005)
            await asyncio.sleep(0.01)  # connections that are being closed

    def stop(self) -> None:
        self.over.set()
        self.thread.join()
        with suppress(FileNotFoundError):
            (self.folder / "api.sock").unlink()


class World:
    """Systemd, the card and the front, as they are asked and told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.servers: dict[str, Server] = {}
        self.faults: dict[str, set[str]] = {"a": set(), "b": set()}
        self.looping: set[str] = set()  # systemd starts them again and again
        self.flapping = cycle(("activating", "active", "deactivating"))
        self.acts: list[Act] = []
        self.wrong: set[str] = set()
        members = [Member(f"vllm-chat.{name}.service", folder / name, self.canary(name)) for name in "ab"]
        self.members = members
        self.begin()

    def begin(self) -> None:
        """A process that knows nothing of those before it."""
        self.break_at: int | None = None
        self.two = TwoServers(*self.members, self.folder / "awake", self.room, self.note, LIMITS)

    def canary(self, name: str) -> Any:
        def right(api: Path, key: str) -> bool:
            assert api == self.folder / name / "api.sock" and len(key) == 32
            return name not in self.wrong

        return right

    def room(self, who: str) -> bool:
        name = "a" if who == pair.OLD else "b"
        others = [server.engine.used for other, server in self.servers.items() if other != name]
        return sum(others) + AWAKE <= 100

    def note(self, act: Act) -> None:
        if len(self.acts) == self.break_at:
            self.break_at = None
            self.breaks()
        self.acts.append(act)
        if act.do in (pair.WAKE, pair.START):
            assert self.room(act.who), f"{act} while the card is in use"

    def start(self, unit: str) -> None:
        name = unit.split(".")[1]
        if "no start" in self.faults[name]:
            self.looping.add(name)
        else:
            self.servers[name] = Server(self.folder / name, self.faults[name])

    def stop(self, unit: str, _: float) -> None:
        self.looping.discard(unit.split(".")[1])
        if server := self.servers.pop(unit.split(".")[1], None):
            server.stop()

    def kill(self, name: str) -> None:
        """Systemd starts it again by itself, as soon as the card has room for it."""
        if name in self.servers:
            self.stop(f"vllm-chat.{name}.service", 0)
            self.looping.add(name)

    def show(self, unit: str, *_: str) -> dict[str, str]:
        name = unit.split(".")[1]
        if name in self.looping and "no start" not in self.faults[name] and self.room(WHO[name]):
            self.looping.remove(name)
            self.start(unit)
        if name in self.looping:  # it ends by itself at each start
            return {"ActiveState": next(self.flapping)}
        return {"ActiveState": "active" if name in self.servers else "inactive"}

    def breaks(self) -> None:
        raise NotImplementedError

    def reach(self, goal: pair.Goal) -> list[str]:
        self.acts.clear()
        self.two.reach(goal)
        return [f"{act.do} {act.who}" for act in self.acts]

    def leads(self) -> str:
        return str((self.folder / "awake").readlink())


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    world = World(tmp_path)
    monkeypatch.setattr(middleware, "ROOT", os.getuid())
    monkeypatch.setenv(middleware.CONTROL, "")
    # This process has both servers, and is of neither's unit.
    monkeypatch.setattr(control.Control, "_no_foreign_listener", lambda *_: None)
    for name in ("start", "stop", "show"):
        monkeypatch.setattr(systemd, name, getattr(world, name))
    assert world.reach(BACK) == ["start old", "lead old"]
    yield world
    for unit in ("vllm-chat.a.service", "vllm-chat.b.service"):
        world.stop(unit, 0)


def test_a_start_turns_and_both_ends(world: World) -> None:
    assert world.reach(ACTIVATE) == [
        "sleep old", "start new", "canary new", "sleep new", "lead new", "wake new", "canary new",
        "serve new", "relay old",
    ]  # fmt: skip
    assert world.reach(TURN_TO_OLD) == [
        "lead old", "sleep new", "wake old", "canary old", "serve old", "relay new",
    ]  # fmt: skip
    assert world.reach(TURN_TO_NEW)[-1] == "relay old" and world.leads() == "b/api.sock"
    assert world.reach(KEEP) == []
    assert world.reach(FORWARD) == ["stop old"]
    assert set(world.servers) == {"b"}


def test_rollback_to_the_sleeping_release(world: World) -> None:
    world.reach(TURN_TO_NEW)
    old = world.servers["a"]
    assert world.reach(BACK)[-1] == "stop new"
    assert world.servers == {"a": old} and world.leads() == "a/api.sock"
    assert world.reach(BACK) == []


@pytest.mark.parametrize("fault", ["wake fails", "wrong"])
def test_an_old_release_that_does_not_wake_is_started_plainly(world: World, fault: str) -> None:
    world.reach(TURN_TO_NEW)
    world.faults["a"].add(fault)
    if fault == "wrong":
        world.wrong.add("a")
    acts = world.reach(BACK)
    assert acts.index("stop old") < acts.index("start old") and acts[-1] == "stop new"
    assert set(world.servers) == {"a"} and world.leads() == "a/api.sock"


@pytest.mark.parametrize("fault", ["wake fails", "wrong", "no start"])
def test_a_new_release_that_fails_is_given_up_and_the_old_one_wakes(world: World, fault: str) -> None:
    if fault != "no start":
        world.reach(TURN_TO_NEW)
        world.reach(TURN_TO_OLD)
    world.faults["b"].add(fault)
    if fault == "wrong":
        world.wrong.add("b")
    old = world.servers["a"]
    with pytest.raises(Failed, match="had to be stopped"):
        world.reach(TURN_TO_NEW)
    world.faults["b"].clear()
    assert "wake old" in world.reach(BACK)
    assert world.servers == {"a": old}


def test_a_server_that_is_stopped_is_told_first_so_that_nobody_waits_for_it(world: World) -> None:
    server = world.servers["a"].middleware
    world.reach(TURN_TO_NEW)
    world.reach(FORWARD)
    assert server.ending and set(world.servers) == {"b"}


def test_canaries_are_asked_after_each_wake(world: World) -> None:
    for goal in (TURN_TO_NEW, TURN_TO_OLD, TURN_TO_NEW, TURN_TO_OLD):
        world.reach(goal)
    world.wrong.add("b")
    with pytest.raises(Failed):
        world.reach(TURN_TO_NEW)


def test_a_sleeper_that_keeps_its_memory_is_stopped(world: World) -> None:
    world.faults["a"].add("keeps memory")
    assert world.reach(TURN_TO_NEW) == ["sleep old", "memory new", "start new", "lead new"]
    assert set(world.servers) == {"b"}


def test_a_new_release_that_keeps_its_memory_in_its_first_sleep_is_given_up(world: World) -> None:
    world.faults["b"].add("keeps memory")
    old = world.servers["a"]
    room = world.room
    # Its own memory is in its own way, as on a card.
    world.two.room = lambda who: room(who) and not (who == pair.NEW and _kept(world, "b"))
    with pytest.raises(Failed, match="had to be stopped"):
        world.reach(ACTIVATE)
    world.faults["b"].clear()
    assert "wake old" in world.reach(BACK)
    assert world.servers == {"a": old}


def _kept(world: World, name: str) -> bool:
    server = world.servers.get(name)
    return server is not None and server.engine.asleep and server.engine.used == AWAKE


def test_memory_in_use_by_an_unknown_process_is_waited_for_and_reported(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.reach(TURN_TO_NEW)
    monkeypatch.setattr(world.two, "room", lambda _: False)
    world.stop("vllm-chat.b.service", 0)
    with pytest.raises(Stuck, match="by an unknown process"):
        world.reach(BACK)
    assert set(world.servers) == {"a"}


def test_requests_that_do_not_end_keep_a_turn_from_beginning(world: World) -> None:
    world.reach(TURN_TO_NEW)
    asked = world.servers["b"].middleware
    asked.in_flight += 1
    asked.idle.clear()
    with pytest.raises(pair.Busy):
        world.reach(TURN_TO_OLD)
    assert asked.state == pair.SERVING and world.leads() == "b/api.sock"
    assert world.servers["a"].middleware.relay_to == str(world.folder / "b/api.sock")
    acts = [f"{act.do} {act.who}" for act in world.acts]
    assert acts == ["lead old", "sleep new", "lead new", "relay old"]
    assert world.reach(BACK) == [
        "lead old", "sleep new", "stop new", "wake old", "canary old", "serve old",
    ]  # fmt: skip


def test_clients_wait_for_the_one_that_sleeps_while_the_other_is_stopped(world: World) -> None:
    world.reach(TURN_TO_NEW)
    world.servers["b"].middleware.state = pair.FAILED
    relays = {}

    def note(act: Act) -> None:
        relays[f"{act.do} {act.who}"] = world.servers["a"].middleware.relay_to
        world.note(act)

    world.two.note = note
    assert world.reach(BACK) == ["lead old", "stop new", "wake old", "canary old", "serve old"]
    assert relays["lead old"] and relays["stop new"] == relays["wake old"] == ""


def test_a_server_that_is_stuck_is_restarted(world: World) -> None:
    world.servers["a"].middleware.state = pair.DRAINING
    assert world.reach(BACK) == ["await old", "stop old", "start old"]
    assert world.servers["a"].middleware.state == pair.SERVING


@pytest.mark.thorough
def test_an_old_release_that_does_not_start_either_is_tried_twice_and_then_said(world: World) -> None:
    world.faults["a"].add("no start")
    world.kill("a")
    with pytest.raises(Stuck, match="had to be stopped twice"):
        world.reach(BACK)
    assert [act.do for act in world.acts] == ["await", "stop", "start", "await", "stop"]


def test_a_lost_symlink_is_laid_again(world: World) -> None:
    (world.folder / "awake").unlink()
    assert leads_to(world.folder / "awake") is None
    assert world.reach(BACK) == ["lead old"]


def test_new_process_continues_after_another_was_killed(world: World) -> None:
    world.reach(TURN_TO_NEW)
    world.two.members["old"].control.tell("wake", 1)  # as far as the other one came, against all rules
    world.begin()
    assert world.reach(BACK) == ["canary old", "serve old", "lead old", "sleep new", "relay new", "stop new"]
    assert front.accepts(world.folder / "awake")


def killed() -> None:
    raise Killed


@pytest.mark.thorough
@pytest.mark.parametrize("number", range(14))
@pytest.mark.parametrize("what", ["program", "old", "new", "both", "link"])
def test_whatever_breaks_at_any_act_the_old_release_serves_in_the_end(
    world: World, monkeypatch: pytest.MonkeyPatch, what: str, number: int
) -> None:
    """A start of the new release, a turn back and another one, then the way back by a process that knows
    nothing. `World.note` sees to it that nobody gets memory without room.
    """
    breaks = {
        "program": killed,
        "old": lambda: world.kill("a"),
        "new": lambda: world.kill("b"),
        "both": lambda: (world.kill("a"), world.kill("b")),
        "link": lambda: (world.folder / "awake").unlink(missing_ok=True),
    }
    monkeypatch.setattr(world, "breaks", breaks[what])
    world.acts.clear()
    world.break_at = number
    with suppress(Failed, Stuck, pair.Busy, Killed):
        for goal in (TURN_TO_NEW, TURN_TO_OLD, TURN_TO_NEW):
            world.two.reach(goal)
    world.begin()
    world.reach(BACK)
    assert set(world.servers) == {"a"} and world.leads() == "a/api.sock"
    assert world.servers["a"].middleware.state == pair.SERVING
    assert world.reach(BACK) == []
