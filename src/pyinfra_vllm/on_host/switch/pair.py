"""Two servers of one card, the old and the new release: what to do next, so that the right one serves.

Pure: from what is seen now to one act. Whoever acts looks again before it asks again. So a transaction, a
recovery after its death and a recovery after a power cut all ask the same question. The rules:

- a server gets memory (by a wake or a start) only when the other has none, and nothing sleeps meanwhile;
- the front leads to whoever accepts connections, and to the next server before the last one sleeps, so that
  requests wait there instead of being refused;
- whoever was woken answers the canary questions before any client;
- where a sleep or a wake failed, or a canary answer was wrong, the server's memory is in an unknown state: it
  is stopped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

OLD, NEW = "old", "new"
DOWN, STARTING = "down", "starting"
SERVING, DRAINING, ASLEEP, AWAKE, FAILED = (
    "serving",
    "draining",
    "asleep",
    "awake",
    "failed",
)  # standby.py's own
# What can be done to a server, and the two waits.
STOP, START, SLEEP, WAKE, CANARY, SERVE, RELAY, LEAD = (
    "stop", "start", "sleep", "wake", "canary", "serve", "relay", "lead"
)  # fmt: skip
AWAIT, MEMORY = "await", "memory"


class Busy(Exception):
    """The other server's requests don't end in time, and it may not be stopped. It serves on."""


class Act(NamedTuple):
    """One act on one server. AWAIT: until it is in another state; MEMORY: until the card has room for it."""

    do: str
    who: str


@dataclass(frozen=True)
class Server:
    """The observed state of one server.

    state: of its unit where that is `down` or `starting`, else what its control socket says. A server that
        runs and does not answer within its limit is `failed`
    canary: whether its answers since the last wake or start were right; None where they were not asked for
    slept: whether it has slept since its start
    busy: it was told to sleep, and its requests did not end in time
    relays: those that wait for it are answered by the other one
    owes: requests wait for it, or are relayed by it
    """

    state: str = DOWN
    canary: bool | None = None
    busy: bool = False
    relays: bool = False
    owes: bool = False
    slept: bool = True

    @property
    def has_memory(self) -> bool:
        return self.state not in (DOWN, ASLEEP)

    @property
    def broken(self) -> bool:
        return self.state == FAILED or (self.state in (AWAKE, SERVING) and self.canary is False)


@dataclass(frozen=True)
class Seen:
    """front: where it leads; room: whether the card has room for whoever is to serve."""

    old: Server
    new: Server
    front: str | None = None
    room: bool = True

    def of(self, who: str) -> Server:
        return self.old if who == OLD else self.new


@dataclass(frozen=True)
class Goal:
    """Who serves, and what becomes of the other: `asleep` (where it is not down anyway) or `down`.

    sleeps_first: one that has just started answers the canary questions, sleeps and wakes before any client
        is led to it, while the other sleeps. A first sleep takes seconds (5.4 for 5.7 GiB of weights on an
        H200, for host memory has to be pinned; the next 0.3), which clients would wait for on the way back
    insists: where the other's requests don't end in time it is stopped, as one that is to be down is anyway
    stays: whoever serves was committed, and is not stopped, whatever is wrong with it: whoever goes back then
        writes that down first
    """

    serves: str
    other: str
    sleeps_first: bool = False
    insists: bool = False
    stays: bool = False

    @property
    def its_other(self) -> str:
        return NEW if self.serves == OLD else OLD


BACK = Goal(OLD, DOWN)
FORWARD, KEEP = Goal(NEW, DOWN, stays=True), Goal(NEW, ASLEEP, insists=True, stays=True)
TURN_TO_OLD, TURN_TO_NEW = Goal(OLD, ASLEEP), Goal(NEW, ASLEEP)
ACTIVATE = Goal(NEW, ASLEEP, sleeps_first=True)
REPLACE = Goal(NEW, ASLEEP, insists=True)


def next_act(goal: Goal, seen: Seen) -> Act | None:
    """None where the goal is reached. Raises Busy, which only a turn can meet."""
    who, other = goal.serves, goal.its_other
    for name in (other, who):
        if seen.of(name).broken:
            return _end_broken(name, seen)
    for name in (other, who):
        if seen.of(name).state == DRAINING:
            return Act(AWAIT, name)
    if seen.of(other).state == STARTING and (goal.other == DOWN or seen.of(who).has_memory):
        return Act(STOP, other)
    if seen.of(who).state in (DOWN, ASLEEP):
        return _give_memory(goal, seen)
    if seen.of(who).state == STARTING:
        return Act(STOP if seen.of(other).has_memory else AWAIT, who)
    if seen.of(who).state == AWAKE:
        return Act(SERVE if seen.of(who).canary else CANARY, who)
    return _settle(goal, seen)


def _end_broken(name: str, seen: Seen) -> Act:
    """Clients are led elsewhere first, where somebody else accepts connections."""
    rest = NEW if name == OLD else OLD
    accepts = seen.of(rest).state in (SERVING, ASLEEP, AWAKE) and not seen.of(rest).broken
    return Act(LEAD, rest) if seen.front == name and accepts else Act(STOP, name)


def _give_memory(goal: Goal, seen: Seen) -> Act:
    """Towards the wake or the start of whoever is to serve."""
    who, other = goal.serves, goal.its_other
    if seen.of(who).state == ASLEEP and seen.front != who:
        return Act(LEAD, who)
    if seen.of(other).state == STARTING:
        return Act(AWAIT, other)
    if seen.of(other).has_memory:
        return _take_memory(goal, seen)
    if not seen.room:
        return Act(MEMORY, who)
    return Act(WAKE if seen.of(who).state == ASLEEP else START, who)


def _take_memory(goal: Goal, seen: Seen) -> Act:
    """Of the other, which serves or is awake: its requests end before it sleeps, where they end in time."""
    if not seen.of(goal.its_other).busy:
        return Act(SLEEP, goal.its_other)
    if goal.other == DOWN or goal.insists:
        return Act(STOP, goal.its_other)
    raise Busy(f"the requests of the {goal.its_other} release do not end in time")


def _settle(goal: Goal, seen: Seen) -> Act | None:
    """The server of the goal serves: lead clients to it, then put the other one to sleep or stop it."""
    server, other = seen.of(goal.serves), seen.of(goal.its_other)
    if seen.front != goal.serves:
        if goal.sleeps_first and other.state == ASLEEP and not server.slept and not server.busy:
            return Act(CANARY if server.canary is None else SLEEP, goal.serves)
        return Act(LEAD, goal.serves)
    if other.has_memory:
        return _take_memory(goal, seen)
    if other.state == DOWN:
        return None
    if not other.relays:
        return Act(RELAY, goal.its_other)
    if goal.other == ASLEEP:
        return None
    return Act(AWAIT if other.owes else STOP, goal.its_other)
