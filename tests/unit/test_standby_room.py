"""Room on a card for two servers of which one sleeps: the simulated host, with a card that is a number."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest
from seen import gpu
from standby_host import HAS_MEMORY, NEW, OLD, Killed, StandbyHost, ends_right

from pyinfra_vllm.on_host.inspect import gpus as inspect_gpus
from pyinfra_vllm.on_host.server import gpu_memory, service
from pyinfra_vllm.on_host.state import durable
from pyinfra_vllm.on_host.switch import pair, standby
from pyinfra_vllm.on_host.switch.order import ROLLBACK

LACK = standby.Turns._lack  # the simulated host replaces it

Install = Callable[..., "Card"]


class Card:
    """A card of so many MiB, of which each server takes its share, and `residues` of it while it sleeps."""

    def __init__(self, host: StandbyHost, total: int, share: float, old: int, new: int) -> None:
        self.host, self.total, self.share = host, total, share
        self.residues = {OLD: old, NEW: new}
        self.foreign: Callable[[], int] = lambda: 0

    def used(self, *_: object) -> int:
        servers = self.host.servers.items()
        awake = int(self.total * self.share)
        mine = [awake if state in HAS_MEMORY else self.residues[name] for name, state in servers]
        return sum(mine) + self.foreign()


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    def installed(total: int, share: float, old: int = 1138, new: int = 1138) -> Card:
        host = StandbyHost(tmp_path, monkeypatch)
        card = Card(host, total, share, old, new)
        monkeypatch.setattr(standby.Turns, "_lack", LACK)
        monkeypatch.setattr(gpu_memory, "used_mib", card.used)
        monkeypatch.setattr(inspect_gpus, "gpus", lambda: [gpu(memory_mib=card.total, used_mib=card.used())])
        for name in (OLD, NEW):
            host.stage(name, argv=["/bin/sh", "x", "--gpu-memory-utilization", str(share)])
        running = service.Service(host.paths, host.said.append)
        running.point_at(OLD)
        running.start()
        host.rates[NEW] = 100.0
        host.starts.clear()
        return card

    return installed


def told(host: StandbyHost) -> str:
    return str([entry for entry in host.journal() if entry["step"] == "end"][-1]["reason"])


# Left of a sleeper on an H200: 1,135 to 1,141 MiB (docs/standby.md). 0.92 is vLLM's own share from 0.20 on.
@pytest.mark.parametrize(
    ("total", "share", "left"),
    [
        (24_564, 0.92, 1_138),
        (24_564, 0.9, 1_138),
        (15_360, 0.9, 800),
        (46_068, 0.95, 1_138),
        (143_771, 0.92, 1_138),
    ],
)
def test_two_sleepers_leave_room_for_what_one_of_them_gave_back(
    install: Install, total: int, share: float, left: int
) -> None:
    card = install(total, share, left, left)
    card.host.takes_turns = True
    assert card.host.switch() == "committed"
    ends_right(card.host, NEW)
    assert card.host.starts == [NEW] and not any(act.startswith("memory") for act in card.host.acts())


def test_a_rollback_by_hand_knows_what_the_sleeper_gave_back_in_its_own_switch(install: Install) -> None:
    card = install(24_564, 0.92)
    assert card.host.switch(standby_for_s=3600.0) == "committed"
    assert card.host.switch(OLD, purpose=ROLLBACK) == "committed"
    ends_right(card.host, OLD)
    assert card.host.starts == [NEW] and not any(act.startswith("memory") for act in card.host.acts())


def test_a_new_release_that_leaves_no_room_for_the_wake_of_the_old_one_goes_back_and_is_not_rejected(
    install: Install,
) -> None:
    card = install(24_564, 0.95, old=800, new=1_500)
    assert card.host.switch() == "rolled_back"
    ends_right(card.host, OLD)
    assert told(card.host) == ("no room on the GPU beside the sleeper: 22535 MiB needed, 22264 MiB free")
    assert card.host.starts == [NEW] and NEW not in durable.read_json(card.host.paths.rejected, {})


def test_memory_that_another_process_takes_between_two_turns_rejects_no_release(install: Install) -> None:
    card = install(24_564, 0.92)
    card.host.takes_turns = True
    card.foreign = lambda: 1_000 if len(card.host.rounds) >= 6 else 0
    assert card.host.switch() == "rolled_back"
    assert "no room on the GPU beside the sleeper" in told(card.host)
    assert NEW not in durable.read_json(card.host.paths.rejected, {})
    ends_right(card.host, OLD)


def test_a_release_that_keeps_its_memory_in_its_first_sleep_goes_back(install: Install) -> None:
    card = install(24_564, 0.92, new=22_000)
    assert card.host.switch() == "rolled_back"
    ends_right(card.host, OLD)
    assert card.host.starts == [NEW] and "no room" in told(card.host)


def test_a_sleeper_whose_memory_nobody_got_wakes_whatever_its_share(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = install(24_564, 0.96)
    reach = standby.Turns.reach

    def killed(this: standby.Turns, goal: pair.Goal) -> object:
        if goal == pair.BACK:
            return reach(this, goal)
        this.service.control(OLD).tell("sleep", 1.0)
        this.log.write("turn", "note", act="sleep", who="old", release=OLD, used_mib=23_581)
        raise Killed

    monkeypatch.setattr(standby.Turns, "reach", killed)
    with contextlib.suppress(Killed):
        card.host.switch()
    assert card.host.servers == {OLD: "asleep"}
    card.host.recover()
    ends_right(card.host, OLD)
    assert card.host.acts()[1:] == ["wake old", "canary old", "serve old"] and card.host.starts == []


def test_where_the_old_release_leaves_no_room_for_a_start_the_switch_is_todays(install: Install) -> None:
    card = install(24_564, 0.96)
    assert card.host.switch() == "committed"
    ends_right(card.host, NEW)
    assert card.host.acts() == ["sleep old", "memory new", "start new", "lead new"]
