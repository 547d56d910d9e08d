"""The next act with two servers of one card, asked in every state in which they can be seen.

Whatever a fault makes of them, it is one of these states; and from each the goal is reached.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import pytest

from pyinfra_vllm.in_runtime import standby
from pyinfra_vllm.on_host.switch import pair
from pyinfra_vllm.on_host.switch.pair import (
    ACTIVATE,
    ASLEEP,
    AWAIT,
    AWAKE,
    BACK,
    CANARY,
    DOWN,
    DRAINING,
    FAILED,
    FORWARD,
    KEEP,
    LEAD,
    MEMORY,
    NEW,
    OLD,
    RELAY,
    REPLACE,
    SERVE,
    SERVING,
    SLEEP,
    START,
    STARTING,
    STOP,
    TURN_TO_NEW,
    TURN_TO_OLD,
    WAKE,
    Act,
    Busy,
    Goal,
    Seen,
    Server,
)

GOALS = [BACK, FORWARD, KEEP, TURN_TO_OLD, ACTIVATE, REPLACE]
MOST_ACTS = 14


def servers() -> list[Server]:
    """Everything that can be seen of one server."""
    plain = [Server(state) for state in (DOWN, STARTING, DRAINING, FAILED)]
    busy = [
        Server(SERVING, canary=canary, busy=busy, slept=slept)
        for canary in (None, True, False)
        for busy in (False, True)
        for slept in (False, True)
    ]
    awake = [
        Server(AWAKE, canary=canary, busy=busy) for canary in (None, True, False) for busy in (False, True)
    ]
    asleep = [Server(ASLEEP, relays=relays, owes=owes) for relays in (False, True) for owes in (False, True)]
    return [*plain, *busy, *awake, *asleep]


def everything() -> Iterator[Seen]:
    for old, new, front, room in product(servers(), servers(), (None, OLD, NEW), (True, False)):
        yield Seen(old, new, front, room)


def act_for(goal: Goal, seen: Seen) -> Act | None:
    try:
        return pair.next_act(goal, seen)
    except Busy:
        return None


def done(act: Act, seen: Seen) -> Seen:
    """The state after the act has succeeded."""
    server = seen.of(act.who)
    after = {
        STOP: Server(DOWN),
        START: Server(STARTING),
        SLEEP: Server(ASLEEP, owes=True),
        WAKE: replace(server, state=AWAKE, canary=None),
        CANARY: replace(server, canary=True),
        SERVE: Server(SERVING),
        RELAY: replace(server, relays=True),
        AWAIT: replace(server, owes=False),
    }.get(act.do, server)
    if act.do == AWAIT and server.state in (STARTING, DRAINING):
        after = Server(SERVING, slept=False) if server.state == STARTING else Server(ASLEEP)
    front = act.who if act.do == LEAD else seen.front
    room = {STOP: False, SLEEP: False, MEMORY: True}.get(act.do, seen.room)
    servers = {"old": after, "new": seen.new} if act.who == OLD else {"old": seen.old, "new": after}
    return Seen(**servers, front=front, room=room)


@pytest.mark.thorough
@pytest.mark.parametrize("goal", GOALS, ids=str)
def test_the_goal_is_reached_from_every_state(goal: Goal) -> None:
    for seen in everything():
        first, acts = seen, []
        while act := act_for(goal, seen):
            acts.append(act)
            assert len(acts) <= MOST_ACTS, (first, acts)
            seen = done(act, seen)
        who, other = seen.of(goal.serves), seen.of(goal.its_other)
        if goal.other == ASLEEP and not goal.insists and other.busy:
            continue  # a turn that must wait
        assert (who.state, seen.front) == (SERVING, goal.serves), (first, acts)
        assert other.state == DOWN or (goal.other, other.state, other.relays) == (ASLEEP, ASLEEP, True), (
            first,
            acts,
        )


@pytest.mark.parametrize("goal", GOALS, ids=str)
def test_no_act_is_ever_dangerous(goal: Goal) -> None:
    for seen in everything():
        act = act_for(goal, seen)
        if act is None:
            continue
        server, other = seen.of(act.who), seen.of(NEW if act.who == OLD else OLD)
        if act.do in (WAKE, START):
            assert not other.has_memory and seen.room, seen
            assert server.state == (ASLEEP if act.do == WAKE else DOWN), seen
        if act.do == SLEEP:
            assert other.state != STARTING, seen  # it allocates, and a sleep beside it fails (Worker.sleep)
            assert server.state in (SERVING, AWAKE), seen
        if act.do == SERVE:
            assert server.canary and not other.broken, seen
        if act.do == AWAIT and server.state == STARTING:
            assert not other.has_memory, seen  # two would share the card
        if act.do == LEAD:
            assert server.state in (ASLEEP, AWAKE, SERVING), seen
        if act.do == RELAY:
            assert other.state == SERVING and server.state == ASLEEP, seen
        if act.do == STOP and seen.front == act.who and server.broken:
            assert other.broken or other.state in (DOWN, STARTING, DRAINING), (
                seen
            )  # nobody to lead clients to
        if act.do == STOP and not server.broken:
            assert server.state != SERVING or (server.busy and (goal.other == DOWN or goal.insists)), seen
            assert act.who != goal.serves or server.state == STARTING, seen
            assert not server.owes, seen


def test_an_old_release_that_is_all_right_is_never_stopped_to_go_back() -> None:
    for seen in everything():
        act = act_for(BACK, seen)
        if act and act.do == STOP and act.who == OLD:
            assert seen.old.broken or seen.old.state == STARTING, seen


def story(goal: Goal, seen: Seen) -> list[str]:
    acts = []
    while act := pair.next_act(goal, seen):
        acts.append(f"{act.do} {act.who}")
        seen = done(act, seen)
    return acts


def test_a_turn() -> None:
    seen = Seen(old=Server(SERVING), new=Server(ASLEEP), front=OLD)
    assert story(TURN_TO_NEW, seen) == [
        "lead new", "sleep old", "memory new", "wake new", "canary new", "serve new", "relay old",
    ]  # fmt: skip


def test_a_release_that_has_just_started_sleeps_once_before_clients_come() -> None:
    seen = Seen(old=Server(SERVING), new=Server(DOWN), front=OLD)
    assert story(ACTIVATE, seen) == [
        "sleep old", "memory new", "start new", "await new", "canary new", "sleep new", "lead new",
        "memory new", "wake new", "canary new", "serve new", "relay old",
    ]  # fmt: skip
    alone = Seen(old=Server(DOWN), new=Server(DOWN))
    assert story(ACTIVATE, alone) == ["start new", "await new", "lead new"]  # nobody to go back to
    assert "sleep new" not in story(TURN_TO_NEW, seen)


def test_rollback_after_a_worse_verdict() -> None:
    seen = Seen(old=Server(ASLEEP, relays=True), new=Server(SERVING), front=NEW)
    assert story(BACK, seen) == [
        "lead old", "sleep new", "memory old", "wake old", "canary old", "serve old",
        "relay new", "await new", "stop new",
    ]  # fmt: skip


def test_after_a_power_cut_the_old_release_is_started_plainly() -> None:
    assert story(BACK, Seen(Server(), Server())) == ["start old", "await old", "lead old"]


def test_a_failed_wake_ends_in_a_plain_start() -> None:
    seen = Seen(old=Server(FAILED), new=Server(ASLEEP), front=OLD, room=False)
    assert story(BACK, seen) == [
        "lead new", "stop old", "memory old", "start old", "await old", "lead old", "relay new", "stop new",
    ]  # fmt: skip
    wrong = replace(seen, old=Server(AWAKE, canary=False))
    assert story(BACK, wrong) == story(BACK, seen)


def test_a_candidate_that_does_not_start_is_stopped_and_the_old_one_wakes() -> None:
    seen = Seen(old=Server(ASLEEP, owes=True), new=Server(STARTING), front=OLD)
    assert story(BACK, seen) == ["stop new", "memory old", "wake old", "canary old", "serve old"]


def test_after_the_commit_the_old_one_is_stopped_when_nobody_waits_for_it() -> None:
    seen = Seen(old=Server(ASLEEP, relays=True, owes=True), new=Server(SERVING), front=NEW)
    assert story(FORWARD, seen) == ["await old", "stop old"]
    assert story(KEEP, seen) == []


def test_turn_waits_for_requests_and_a_rollback_only_up_to_its_limit() -> None:
    seen = Seen(old=Server(ASLEEP), new=Server(SERVING, busy=True), front=OLD)
    with pytest.raises(Busy, match="of the new release do not end in time"):
        pair.next_act(TURN_TO_OLD, seen)
    assert pair.next_act(BACK, seen) == Act(STOP, NEW)
    busy = Seen(old=Server(SERVING, busy=True), new=Server(ASLEEP), front=NEW)
    assert story(REPLACE, busy) == [
        "stop old", "memory new", "wake new", "canary new", "serve new",
    ]  # fmt: skip


def test_the_states_are_the_middlewares() -> None:
    for name in ("SERVING", "DRAINING", "ASLEEP", "AWAKE", "FAILED"):
        assert getattr(pair, name) == getattr(standby, name)
