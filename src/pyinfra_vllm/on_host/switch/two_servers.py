"""Has one of two servers of a card serve, and the other sleep or end: looks, asks `pair`, acts, looks again.

Keeps nothing that a recovery would need: what sleeps, serves or failed is asked of the servers and systemd.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from ..server import front, systemd
from ..server.control import Control, Mute, Refused, State
from ..state.paths import leads_to
from . import pair
from .pair import NEW, OLD, Act, Goal, Seen, Server

POLL_S = 0.1
MOST_ACTS = 40  # of one goal: each of its acts, and each again after every fault that it can meet


class Stuck(Exception):
    """The goal can't be reached now. What serves goes on serving."""


class Failed(Exception):
    """The new release did not start, sleep or wake as it must, or answered otherwise than before: back."""


@dataclass(frozen=True)
class Limits:
    """Seconds: until requests in flight end, an engine sleeps or wakes, a start serves, memory is free, and a
    stopped unit is gone; how long those that wait are waited for.
    """

    drain_s: float = 30.0
    wake_s: float = 60.0
    start_s: float = 1800.0
    memory_s: float = 60.0
    stop_s: float = 120.0
    owed_s: float = 60.0


@dataclass(frozen=True)
class Member:
    """One of the two servers.

    unit: its own name, not the alias
    folder: has its sockets, `api.sock` and `control.sock`
    canary: whether its answers are what they were before, asked with the pass that it is given
    """

    unit: str
    folder: Path
    canary: Callable[[Path, str], bool]

    @property
    def api(self) -> Path:
        return self.folder / "api.sock"

    @property
    def control(self) -> Control:
        return Control(self.folder / "control.sock", self.unit)


class TwoServers:
    """The old release's server and the new one's, on one card behind one front.

    awake: the front's symlink
    room: whether the card has room for this one to wake or to start, as it needs
    note: is told each act before it is done, for the journal
    """

    def __init__(
        self,
        old: Member,
        new: Member,
        awake: Path,
        room: Callable[[str], bool],
        note: Callable[[Act], None],
        limits: Limits | None = None,
    ) -> None:
        self.members = {OLD: old, NEW: new}
        self.awake = awake
        self.room = room
        self.note = note
        self.limits = limits or Limits()
        # Of this process alone; one that follows finds out anew.
        self._right: dict[str, bool] = {}  # canaries since the last wake
        self._busy: set[str] = set()
        self._slept = ""  # who slept last, until somebody got the memory
        self._mute: set[str] = set()  # did not answer within a limit
        self._written_off: set[str] = set()  # requests that waited too long

    def reach(self, goal: Goal) -> list[Act]:
        """The acts that it took. Raises Stuck, Failed, or pair.Busy where the requests of a turn don't end:
        then whoever served goes on.
        """
        self._busy.clear()
        try:
            return self._reach(goal)
        except pair.Busy:
            self._reach(Goal(goal.its_other, goal.other))
            raise

    def _reach(self, goal: Goal) -> list[Act]:
        done: list[Act] = []
        while act := pair.next_act(goal, seen := self.look(goal.serves)):
            if len(done) == MOST_ACTS:
                raise Stuck(f"after {MOST_ACTS} acts the {goal.serves} release does not serve: {seen}")
            self.note(act)
            self._do(act)
            done.append(act)
            _give_up(goal, done)
        return done

    def look(self, serves: str) -> Seen:
        led = leads_to(self.awake)
        leads = [who for who, member in self.members.items() if led == member.api]
        old, new = self._server(OLD), self._server(NEW)
        return Seen(old, new, leads[0] if leads else None, self.room(serves))

    def _server(self, who: str) -> Server:
        told = self._told(who)
        if told is None or who in self._mute or not front.accepts(self.members[who].api):
            return Server(self._unit_state(who))
        owes = bool(told.held or told.in_flight) and who not in self._written_off
        relays = told.relay == str(self._other(who).api)
        return Server(told.state, self._right.get(who), who in self._busy, relays, owes, told.slept)

    def _told(self, who: str) -> State | None:
        try:
            return self.members[who].control.state()
        except Mute:
            return None

    def _unit_state(self, who: str) -> str:
        """Of a server that does not answer, or that is not believed any more."""
        state = systemd.show(self.members[who].unit, "ActiveState").get("ActiveState")
        if state in ("inactive", "failed", None):
            return pair.DOWN
        if who in self._mute:
            return pair.FAILED
        return pair.DRAINING if state == "deactivating" else pair.STARTING

    def _other(self, who: str) -> Member:
        return self.members[NEW if who == OLD else OLD]

    def _do(self, act: Act) -> None:
        {
            pair.STOP: self._stop,
            pair.START: self._start,
            pair.SLEEP: self._sleep,
            pair.WAKE: self._wake,
            pair.CANARY: self._canary,
            pair.SERVE: self._serve,
            pair.RELAY: self._relay,
            pair.LEAD: self._lead,
            pair.AWAIT: self._await,
            pair.MEMORY: self._await_memory,
        }[act.do](act.who)

    def _stop(self, who: str) -> None:
        self._forget(who)
        self.members[who].control.end()  # a server stops only when nobody waits for it any more
        systemd.stop(self.members[who].unit, self.limits.stop_s)

    def _start(self, who: str) -> None:
        self._forget(who)
        self._slept = ""
        systemd.start(self.members[who].unit)

    def _forget(self, who: str) -> None:
        self._right.pop(who, None)
        for known in (self._busy, self._mute, self._written_off):
            known.discard(who)

    def _sleep(self, who: str) -> None:
        with self._answering(who):
            try:
                self.members[who].control.tell("sleep", self.limits.drain_s)
            except Refused:
                self._busy.add(who)  # or failed, which the next look shows
                return
        self._busy.discard(who)
        self._slept = who

    def _wake(self, who: str) -> None:
        self._right.pop(who, None)
        self._written_off.discard(who)
        self._slept = ""
        with self._answering(who):
            try:
                self.members[who].control.tell("wake", self.limits.wake_s)
            except Refused:
                return  # failed, which the next look shows

    def _canary(self, who: str) -> None:
        told = self._told(who)
        self._right[who] = told is not None and self.members[who].canary(self.members[who].api, told.key)

    def _serve(self, who: str) -> None:
        with self._answering(who):
            self.members[who].control.tell("serve")

    def _relay(self, who: str) -> None:
        with self._answering(who):
            self.members[who].control.tell("relay", to=str(self._other(who).api))

    def _lead(self, who: str) -> None:
        """Clients of one that sleeps wait there: the other, to which it relays, may be stopped next."""
        with suppress(Mute, Refused):  # as one that serves does
            self.members[who].control.tell("relay", to="")
        front.lead(self.awake, self.members[who].api)

    def _await(self, who: str) -> None:
        """Until it is in another state, or owes nobody an answer."""
        before = self._server(who)
        if before.owes:
            if not self._until(lambda: not self._server(who).owes, self.limits.owed_s):
                self._written_off.add(who)
            return
        # One that crashes at its start ends and starts again and again.
        unsettled = (pair.STARTING, pair.DRAINING)
        starts = before.state == pair.STARTING
        limit_s = self.limits.start_s if starts else self.limits.drain_s + self.limits.stop_s
        if not self._until(lambda: self._server(who).state not in unsettled, limit_s):
            self._mute.add(who)

    def _await_memory(self, who: str) -> None:
        if self._until(lambda: self.room(who), self.limits.memory_s):
            return
        keeper = who if self._slept == who else NEW if who == OLD else OLD
        if self._server(keeper).state != pair.ASLEEP:
            raise Stuck(f"the card's memory is still in use, by an unknown process: {self.look(who)}")
        self._stop(keeper)  # it sleeps and keeps its memory

    @contextmanager
    def _answering(self, who: str) -> Iterator[None]:
        try:
            yield
        except Mute:
            self._mute.add(who)

    def _until(self, reached: Callable[[], bool], limit_s: float) -> bool:
        until = time.monotonic() + limit_s
        while not reached():
            if time.monotonic() > until:
                return False
            time.sleep(POLL_S)
        return True


def _give_up(goal: Goal, done: list[Act]) -> None:
    """Raise Failed for a new release that needs a restart, Stuck for an old one that needs a second."""
    stops, starts = (done.count(Act(do, goal.serves)) for do in (pair.STOP, pair.START))
    if goal.serves == NEW and (stops or starts > 1):
        raise Failed("the new release had to be stopped: it failed to start, to wake or to answer as before")
    if stops > 1 or starts > 2:
        raise Stuck("the old release had to be stopped twice, or ended by itself")
