"""Waves: every host exactly once, canaries first, caps respected, the same order every time."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinfra_vllm.config import Rollout
from pyinfra_vllm.rollout.waves import Candidate, crowded, plan

SIZES = st.one_of(st.integers(1, 6), st.integers(1, 100).map(lambda percent: f"{percent}%"))
SERVICES = ("chat", "code", "embed")


@st.composite
def fleets(draw: st.DrawFn) -> tuple[list[Candidate], Rollout]:
    names = draw(st.lists(st.integers(0, 40), unique=True, max_size=12))
    hosts = [
        Candidate(
            f"h{name}",
            draw(st.sampled_from(["H200", "4090", None])),
            tuple(draw(st.lists(st.sampled_from(SERVICES), unique=True, max_size=3))),
        )
        for name in names
    ]
    named = st.lists(st.sampled_from([f"h{name}" for name in range(41)]), unique=True, max_size=3)
    rollout = Rollout(
        canary=draw(st.one_of(st.integers(0, 3), named.map(tuple))),
        waves=tuple(draw(st.lists(SIZES, max_size=4))),
        max_unavailable=draw(st.dictionaries(st.sampled_from(SERVICES), SIZES)),
    )
    return hosts, rollout


@pytest.mark.thorough
@given(fleets())
def test_every_host_is_in_exactly_one_wave(fleet: tuple[list[Candidate], Rollout]) -> None:
    hosts, rollout = fleet
    planned = [name for wave in plan(hosts, rollout) for name in wave]
    assert sorted(planned) == sorted(host.name for host in hosts)
    assert all(plan(hosts, rollout))


@pytest.mark.thorough
@given(fleets())
def test_no_host_goes_before_a_canary(fleet: tuple[list[Candidate], Rollout]) -> None:
    hosts, rollout = fleet
    if isinstance(rollout.canary, tuple):
        canaries = {host.name for host in hosts} & set(rollout.canary)
    else:
        kinds = Counter((host.gpu, frozenset(host.services)) for host in hosts)
        first = [name for wave in plan(hosts, rollout) for name in wave]
        count = sum(min(rollout.canary, size) for size in kinds.values())
        canaries = set(first[:count])
        by_name = {host.name: host for host in hosts}
        taken = Counter((by_name[name].gpu, frozenset(by_name[name].services)) for name in canaries)
        assert taken == {kind: min(rollout.canary, size) for kind, size in kinds.items() if rollout.canary}
    waves = plan(hosts, rollout)
    with_canary = [number for number, wave in enumerate(waves) if canaries & set(wave)]
    assert with_canary == list(range(len(with_canary)))
    assert all(set(waves[number]) <= canaries for number in with_canary)


@pytest.mark.thorough
@given(fleets())
def test_no_wave_takes_more_of_a_service_than_it_may(fleet: tuple[list[Candidate], Rollout]) -> None:
    hosts, rollout = fleet
    services = {host.name: host.services for host in hosts}
    for service, cap in rollout.max_unavailable.items():
        running = sum(service in host.services for host in hosts)
        most = max(1, int(running * float(cap[:-1]) / 100)) if isinstance(cap, str) else cap
        for wave in plan(hosts, rollout):
            assert sum(service in services[name] for name in wave) <= most


@pytest.mark.thorough
@given(fleets())
def test_the_plan_keeps_within_its_bound_and_never_changes(fleet: tuple[list[Candidate], Rollout]) -> None:
    hosts, rollout = fleet
    assert len(plan(hosts, rollout)) <= rollout.most_waves(len(hosts))
    assert len(plan(hosts[1:], rollout)) <= rollout.most_waves(len(hosts))
    assert plan(hosts, rollout) == plan(list(hosts), rollout)


def fleet_of(count: int, gpu: str = "H200") -> list[Candidate]:
    return [Candidate(f"{gpu}-{number}", gpu, ("chat",)) for number in range(count)]


def sizes(waves: tuple[tuple[str, ...], ...]) -> list[int]:
    return [len(wave) for wave in waves]


def test_by_default_one_host_of_each_kind_goes_first_and_the_rest_after() -> None:
    hosts = [*fleet_of(3), *fleet_of(2, "4090"), Candidate("both", "4090", ("code", "chat"))]
    waves = plan(hosts, Rollout())
    assert waves == (("H200-0", "4090-0", "both"), ("H200-1", "H200-2", "4090-1"))


def test_counts_and_percentages_are_of_all_hosts_and_round_down() -> None:
    assert sizes(plan(fleet_of(20), Rollout(waves=(2, "25%", "50%")))) == [1, 2, 5, 10, 2]
    assert sizes(plan(fleet_of(3), Rollout(waves=("10%",)))) == [1, 1, 1]


def test_named_canaries_go_first_and_in_the_hosts_order() -> None:
    assert plan(fleet_of(4), Rollout(canary=("H200-3", "H200-1")))[0] == ("H200-1", "H200-3")


def test_a_canary_outside_the_run_is_replaced_by_a_chosen_one() -> None:
    assert plan(fleet_of(3), Rollout(canary=("elsewhere",)))[0] == ("H200-0",)


def test_without_canary_all_go_at_once() -> None:
    assert sizes(plan(fleet_of(3), Rollout(canary=0))) == [3]
    assert plan([], Rollout()) == ()


def test_a_cap_splits_the_last_wave_too() -> None:
    assert sizes(plan(fleet_of(7), Rollout(max_unavailable={"chat": 2}))) == [1, 2, 2, 2]


EIGHT = {"chat": [f"H200-{number}" for number in range(8)]}


def test_a_percentage_of_a_service_is_of_all_hosts_that_declare_it() -> None:
    half = Rollout(canary=0, max_unavailable={"chat": "50%"})
    assert sizes(plan(fleet_of(4), half)) == [2, 2]
    assert sizes(plan(fleet_of(4), half, EIGHT)) == [4]


def test_hosts_that_are_away_leave_less_room_and_never_none_in_the_plan() -> None:
    half = Rollout(canary=0, max_unavailable={"chat": "50%"})
    assert sizes(plan(fleet_of(4), half, EIGHT, ["H200-7", "elsewhere"])) == [3, 1]
    assert sizes(plan(fleet_of(3), half, EIGHT, EIGHT["chat"][4:])) == [1, 1, 1]


def test_a_wave_that_would_take_too_many_beside_those_that_are_away_is_named() -> None:
    two = Rollout(max_unavailable={"chat": 2})
    assert crowded(fleet_of(2), two, EIGHT, []) == ""
    assert crowded(fleet_of(1), two, EIGHT, ["H200-7"]) == ""
    assert crowded(fleet_of(2), two, EIGHT, ["H200-0", "elsewhere"]) == "", (
        "it goes itself, or is not of the service"
    )
    assert crowded([Candidate("x", None, ("code",))], two, EIGHT, EIGHT["chat"]) == ""
    assert crowded(fleet_of(2), two, EIGHT, ["H200-7"]) == (
        "max_unavailable lets 2 of the 8 hosts of chat be away at a time, and H200-7 may be already"
    )


def test_a_host_that_does_not_fit_lets_others_go_before_it() -> None:
    hosts = [
        Candidate("a", None, ("chat",)),
        Candidate("b", None, ("chat",)),
        Candidate("c", None, ("code",)),
    ]
    assert plan(hosts, Rollout(canary=0, max_unavailable={"chat": 1})) == (("a", "c"), ("b",))


def test_a_host_given_twice_is_an_error() -> None:
    with pytest.raises(ValueError, match="twice"):
        plan([*fleet_of(1), *fleet_of(1)], Rollout())
