"""The Pareto front of tried configurations, by properties, and the speeds of a record."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyinfra_vllm.on_host.bench.record import Phase, Record, Request
from pyinfra_vllm.tuning.pareto import Front, Slo, Speed, Speeds, decisive, front, speeds

# Few values, so that ties and equal configurations are drawn, too.
FEW = st.sampled_from([0.01, 0.02, 0.05, 0.1, 0.5])
RATES = st.sampled_from([10.0, 20.0, 50.0, 100.0])


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Speeds]:
    streams = sorted(draw(st.sets(st.sampled_from([1, 8, 64]), min_size=1)))
    count = draw(st.integers(1, 7))
    return {
        f"try-{number}": tuple(
            Speed(f"c{n}", n, draw(FEW), draw(st.none() | FEW), draw(RATES)) for n in streams
        )
        for number in range(count)
    }


OBJECTIVES = st.sampled_from(["latency", "throughput", "balanced"])
SLOS = st.builds(Slo, max_ttft_s=st.none() | FEW, max_tpot_s=st.none() | FEW)


def respects(found: Speeds, objective: str) -> list[float]:
    own, most = decisive(found, objective), max(found, key=lambda speed: speed.concurrency)
    per_token = math.inf if own.tpot_s is None else own.tpot_s
    return [own.ttft_s, per_token, -own.tokens_per_s, -most.tokens_per_s]


def beats(one: Speeds, other: Speeds, objective: str) -> bool:
    pairs = list(zip(respects(one, objective), respects(other, objective), strict=True))
    return all(mine <= its for mine, its in pairs) and any(mine < its for mine, its in pairs)


@pytest.mark.thorough
@given(configurations(), OBJECTIVES, SLOS)
def test_each_configuration_has_one_place(tried: Mapping[str, Speeds], objective: str, slo: Slo) -> None:
    found = front(tried, objective, slo)
    assert sorted([*found.on, *found.behind, *found.missed]) == sorted(tried)


@given(configurations(), OBJECTIVES, SLOS)
def test_nothing_that_meets_the_slo_beats_the_front(
    tried: Mapping[str, Speeds], objective: str, slo: Slo
) -> None:
    found = front(tried, objective, slo)
    within = [name for name in tried if name not in found.missed]
    for name in found.on:
        assert not any(beats(tried[other], tried[name], objective) for other in within)
    for name, better in found.behind.items():
        assert better in found.on and beats(tried[better], tried[name], objective)
    assert bool(found.on) == bool(within)


@pytest.mark.thorough
@given(configurations(), OBJECTIVES, SLOS)
def test_what_misses_the_slo_is_beyond_a_limit_and_nothing_else_is(
    tried: Mapping[str, Speeds], objective: str, slo: Slo
) -> None:
    found = front(tried, objective, slo)
    for name, each in tried.items():
        own = decisive(each, objective)
        late = slo.max_ttft_s is not None and own.ttft_s > slo.max_ttft_s
        per_token = math.inf if own.tpot_s is None else own.tpot_s
        slow = slo.max_tpot_s is not None and per_token > slo.max_tpot_s
        assert (name in found.missed) == (late or slow)


@pytest.mark.thorough
@given(configurations(), OBJECTIVES, SLOS, st.randoms())
def test_the_order_of_the_trials_changes_nothing(
    tried: Mapping[str, Speeds], objective: str, slo: Slo, source: object
) -> None:
    names = list(tried)
    source.shuffle(names)  # type: ignore[attr-defined]
    found, other = (front(each, objective, slo) for each in (tried, {name: tried[name] for name in names}))
    assert (set(found.on), set(found.behind), dict(found.missed)) == (
        set(other.on), set(other.behind), dict(other.missed),
    )  # fmt: skip


@given(configurations(), OBJECTIVES)
def test_the_fastest_in_the_phase_of_the_objective_is_on_the_front(
    tried: Mapping[str, Speeds], objective: str
) -> None:
    found = front(tried, objective, Slo())
    fastest = max(decisive(each, objective).tokens_per_s for each in tried.values())
    assert any(decisive(tried[name], objective).tokens_per_s == fastest for name in found.on)


@pytest.mark.thorough
@given(configurations(), OBJECTIVES, SLOS)
def test_what_is_not_on_the_front_can_be_left_out(
    tried: Mapping[str, Speeds], objective: str, slo: Slo
) -> None:
    found = front(tried, objective, slo)
    assert front({name: tried[name] for name in found.on}, objective, slo) == Front(found.on, {}, {})


def speed(streams: int, ttft_s: float, tokens_per_s: float) -> Speed:
    return Speed(f"c{streams}", streams, ttft_s, 0.01, tokens_per_s)


def test_each_objective_has_its_phase() -> None:
    """An H200's stock and Marlin (docs/tuning.md): Marlin is better at one stream and worse at 64."""
    stock = (speed(1, 0.057, 79.9), speed(8, 0.288, 520.0), speed(64, 1.778, 1593.0))
    marlin = (speed(1, 0.102, 98.8), speed(8, 0.771, 509.0), speed(64, 3.995, 936.0))
    tried = {"stock": stock, "marlin": marlin}
    assert [decisive(stock, each).phase for each in ("latency", "balanced", "throughput")] == [
        "c1", "c8", "c64",
    ]  # fmt: skip
    assert set(front(tried, "latency", Slo()).on) == {"stock", "marlin"}
    assert front(tried, "throughput", Slo()) == Front(("stock",), {"marlin": "stock"}, {})
    said = front(tried, "throughput", Slo(max_ttft_s=2.0)).missed
    assert said == {"marlin": "first token after 4 s at c64, and 2 is most"}


def test_speeds_of_different_phases_are_never_compared() -> None:
    """As of one that was slow, and whose time ran out before its last phase."""
    whole = (speed(1, 0.057, 79.9), speed(8, 0.288, 520.0), speed(64, 1.778, 1593.0))
    cut = (speed(1, 0.057, 79.9), speed(8, 0.2, 560.0))
    tried = {"whole": whole, "cut": cut}
    assert front(tried, "throughput", Slo()) == Front(("whole",), {}, {"cut": "nothing was answered at c64"})
    assert front(tried, "balanced", Slo()) == Front(("whole", "cut"), {}, {})
    assert front(tried, "latency", Slo()) == Front(("whole",), {"cut": "whole"}, {})


def test_the_speeds_of_a_record() -> None:
    requests = tuple(Request(f"p{n}", True, 0.1 * n, 0.1 * n + 1.0, 10, 11) for n in (1, 2, 9))
    silent = Request("p", False, kind="error", error="refused")
    record = Record("m", {}, (Phase("c8", 8, 3.0, requests), Phase("c1", 1, 3.0, (silent,))))
    (found,) = speeds(record)
    assert (found.phase, found.concurrency, found.ttft_s, found.tokens_per_s) == ("c8", 8, 0.2, 11.0)
    assert found.tpot_s == pytest.approx(0.1)
    assert Speed.read(found.as_dict()) == found


@pytest.mark.parametrize(
    "value",
    [None, {}, {"phase": "c1"}, {**speed(1, 0.1, 1.0).as_dict(), "ttft_s": -1.0}, {"phase": 1, "other": 2}],
)
def test_what_is_no_speed_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="no speed of a phase"):
        Speed.read(value)


def test_an_unmeasured_configuration_is_an_error() -> None:
    with pytest.raises(ValueError, match="no phase was measured"):
        front({"nothing": ()}, "latency", Slo())
