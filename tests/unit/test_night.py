"""A night of tuning: what is tried next, what is written down, and that a kill loses at most one trial."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from pyinfra_vllm.errors import HostError
from pyinfra_vllm.on_host.bench.criteria import Criteria
from pyinfra_vllm.on_host.bench.record import Phase, Record, Request
from pyinfra_vllm.on_host.gate.noise import Noise
from pyinfra_vllm.tuning import night
from pyinfra_vllm.tuning.night import Cut, Failed, Line, Measured, PutOff, Result, Setup, Step, Stopped
from pyinfra_vllm.tuning.pareto import Slo, Speed
from pyinfra_vllm.tuning.search import Pair, Trial

GROUPS = {"marlin": "kernel", "humming": "kernel", "fp8": "kv_cache", "ngram": "speculation"}
GAINS = {"marlin": 1.24, "humming": 1.19, "fp8": 0.97, "ngram": 0.9}
QUIET = Noise(5, {"c1": {"tokens_per_s": 0.004}, "c8": {"tokens_per_s": 0.004}})
TRIES = {name: [f"--{name}"] for name in GROUPS}
PLACE = {"card": "NVIDIA H200", "gpus": 1, "memory_mib": 143771}
SETUP = Setup("chat", "a" * 12, "latency", Slo(), GROUPS, Criteria().as_dict(), TRIES, PLACE)


class Killed(BaseException):
    """SIGKILL of whoever runs the night."""


class FakeHost:
    """Carries trials out by multiplication; counts every call, and dies at the one that it is told."""

    def __init__(self, setup: Setup = SETUP, gains: Mapping[str, float] = GAINS, trials: int = 10**6) -> None:
        self.journal = [json.dumps(setup.header(QUIET, 0, "t0"))]
        self.gains = gains
        self.left = trials
        self.results: dict[str, list[Any]] = {}  # an exception is raised
        self.tried: list[Step] = []
        self.calls, self.die_at = 0, -1
        self.random = random.Random(7)

    def _count(self) -> None:
        self.calls += 1
        if self.calls == self.die_at:
            raise Killed

    def lines(self) -> Sequence[Line]:
        self._count()
        return night.read("".join(f"{line}\n" for line in self.journal))

    def note(self, line: Line) -> None:
        self._count()
        self.journal.append(json.dumps(line))
        self._count()

    def no_room(self, step: Step) -> str:
        return "" if self.left > 0 else "the window closes at 05:00"

    def carry_out(self, step: Step) -> Result:
        self._count()
        self.tried.append(step)
        self.left -= 1
        if planned := self.results.get(step.candidate):
            if isinstance(planned[0], Exception):
                raise planned.pop(0)
            return planned.pop(0)
        self._count()
        gain = 1.0
        for name in step.candidate.split(" + "):
            gain *= self.gains[name]
        return result(gain * self.random.lognormvariate(0, 0.001))

    def now(self) -> str:
        return f"t{len(self.journal)}"


def result(ratio: float, **more: Any) -> Measured:
    before, after = Speed("c1", 1, 0.1, 0.01, 100.0), Speed("c1", 1, 0.1, 0.01, 100.0 * ratio)
    return Measured(ratio, (before,), (after,), "pass", more.pop("worse", ""), **more)


def kinds(host: FakeHost) -> list[str]:
    return [next(iter(json.loads(line))) for line in host.journal[1:]]


def test_the_whole_search_in_one_night() -> None:
    host = FakeHost()
    ended = night.run(host)
    assert ended.done is not None and ended.done.winner == "marlin"
    assert ended.done.ratio == pytest.approx(1.24, rel=0.002)
    assert [step.candidate for step in host.tried if isinstance(step, Trial) and step.rung == 0] == (
        night.search_of(host.lines()).first()
    )
    pairs = [step for step in host.tried if isinstance(step, Pair)]
    assert len(pairs) == pairs[0].of == 4
    assert kinds(host) == [each for step in host.tried for each in ("begin", night_kind(step))]


def night_kind(step: Step) -> str:
    return "trial" if isinstance(step, Trial) else "pair"


def test_night_that_is_over_goes_on_in_the_next_one() -> None:
    host = FakeHost(trials=3)
    first = night.run(host)
    assert (first.done, first.status, first.why) == (None, "deferred", "the window closes at 05:00")
    assert len(host.tried) == 3 and "begin" not in kinds(host)[-1:]
    host.left = 100
    second = night.run(host)
    whole = FakeHost()
    night.run(whole)
    assert second.done is not None and second.done.winner == "marlin"
    assert host.tried == whole.tried


@pytest.mark.parametrize("seed", range(5))
def test_ten_kills_at_random_moments_lose_at_most_one_trial_each(seed: int) -> None:
    source = random.Random(seed)
    host, kills = FakeHost(), 0
    while kills < 10:
        host.die_at = host.calls + source.randrange(1, 20)
        try:
            ended = night.run(host)
            break
        except Killed:
            kills += 1
            night.read("".join(f"{line}\n" for line in host.journal))
    host.die_at = -1
    ended = night.run(host)
    assert ended.done is not None and ended.done.winner == "marlin"
    known = night.results(host.lines())
    keys = [json.dumps({k: line.get(k) for k in ("trial", "pair", "rung", "number")}) for line in known]
    assert len(keys) == len(set(keys)), "a trial that had its end was tried again"
    assert len(host.tried) <= len(known) + 10


def test_a_kill_at_every_call_is_gone_on_from() -> None:
    whole = FakeHost()
    night.run(whole)
    for moment in range(1, whole.calls):
        host = FakeHost()
        host.die_at = moment
        with pytest.raises(Killed):
            night.run(host)
        ended = night.run(host)
        assert ended.done is not None and ended.done.winner == "marlin", moment
        assert len(night.results(host.lines())) == len(night.results(whole.lines()))


def test_what_is_cut_off_again_and_again_is_given_up() -> None:
    host = FakeHost()
    host.results["humming"] = [Cut("the host was restarted", f"t{n}") for n in range(9)]
    ended = night.run(host)
    assert ended.done is not None and ended.done.winner == "marlin"
    assert [step.candidate for step in host.tried].count("humming") == night.MOST_ATTEMPTS
    (line,) = [line for line in night.results(host.lines()) if line.get("trial") == "humming"]
    assert line["failed"] == "cut off 3 times"


def test_what_is_cut_off_once_is_tried_again() -> None:
    host = FakeHost()
    host.results["marlin"] = [Cut("the host was restarted", "t")]
    ended = night.run(host)
    assert ended.done is not None and ended.done.winner == "marlin"


def test_host_that_finds_it_too_late_ends_the_night_and_costs_no_attempt() -> None:
    host = FakeHost()
    host.results["marlin"] = [PutOff("the window's last start has passed")] * 5
    for _ in range(5):
        ended = night.run(host)
        assert (ended.status, ended.why) == ("deferred", "the window's last start has passed")
    assert night.run(host).done is not None
    assert not any("failed" in line for line in night.results(host.lines()))


def test_host_s_trouble_stops_the_search_and_costs_no_attempt() -> None:
    """However often, and also in the confirmation, whose failure would be the end of the search."""
    trouble: list[Result | Exception] = [
        Stopped("the old release does not serve again"),
        Stopped("refused: bob has held it"),
        HostError("gpu-1: not connected"),
    ]
    for first in (0, 4):  # a look, and the second pair
        host = FakeHost()
        host.results["marlin"] = [*([result(1.24)] * first), *trouble, *trouble]
        ended = [night.run(host) for _ in range(6)]
        assert [(each.done, each.status) for each in ended] == [(None, "stopped")] * 6
        assert ended[2].why == "gpu-1: not connected"
        assert kinds(host).count("put_off") == 6
        last = night.run(host)
        assert last.done is not None and last.done.winner == "marlin"


def test_control_machine_that_is_killed_again_and_again_costs_no_attempt() -> None:
    host = FakeHost()
    for _ in range(2 * night.MOST_ATTEMPTS):
        host.die_at = host.calls + 4  # in the first trial
        with pytest.raises(Killed):
            night.run(host)
    assert night.run(host).done is not None
    assert not any("failed" in line for line in night.results(host.lines()))


def test_failed_one_never_comes_back() -> None:
    host = FakeHost()
    host.results["marlin"] = [Failed("did not start: out of memory")]
    ended = night.run(host)
    assert ended.done is not None and ended.done.winner == "humming"
    assert [step.candidate for step in host.tried].count("marlin") == 1


def test_the_gates_no_counts_also_in_a_confirmation() -> None:
    host = FakeHost(gains={**GAINS, "humming": 1.0})
    host.results["marlin"] = [result(1.24), result(1.24), result(1.24, worse="c8 ttft_s is worse")]
    ended = night.run(host)
    assert ended.done is not None and ended.done.winner is None
    assert "not confirmed: c8 ttft_s is worse" in ended.done.why
    line = night.results(host.lines())[-1]
    assert line["seen"] == 1.24 and line["after"][0]["phase"] == "c1", "it is kept for the report"


def test_new_header_begins_anew() -> None:
    host = FakeHost()
    night.run(host)
    host.note(SETUP.header(QUIET, 1, "t9"))
    assert night.results(host.lines()) == []
    assert isinstance(night.next_step(host.lines()), Trial)


def test_journal_is_named_by_all_that_it_is_about() -> None:
    others = [
        replace(SETUP, current="b" * 12),
        replace(SETUP, objective="balanced"),
        replace(SETUP, slo=Slo(max_ttft_s=0.5)),
        replace(SETUP, groups={"marlin": "kernel"}),
        replace(SETUP, criteria=Criteria(budget_s=60).as_dict()),
        replace(SETUP, service="other"),
        replace(SETUP, tries={**TRIES, "fp8": ["--kv-cache-dtype", "fp8_e5m2"]}),
        replace(SETUP, place={**PLACE, "card": "NVIDIA H100"}),
    ]
    assert len({SETUP.id, *(each.id for each in others)}) == 9
    assert replace(SETUP).id == SETUP.id


def test_search_that_begins_anew_says_what_has_changed() -> None:
    """By the header of the earlier one, as it was read back from its file."""
    earlier = night.header(night.read(json.dumps(SETUP.header(QUIET, 0, "t0"))))
    assert SETUP.changed(earlier) == ""
    now = replace(
        SETUP,
        current="b" * 12,
        tries={**TRIES, "fp8": ["--kv-cache-dtype", "fp8_e5m2"]},
        place={**PLACE, "card": "NVIDIA H100", "memory_mib": 81559},
        criteria=Criteria(budget_s=60).as_dict(),
    )
    told = (
        "the release that serves, the gate (budget_s), what the candidates come to (fp8), the place (card,"
        " memory_mib)"
    )
    assert now.changed(earlier) == told
    assert night.sentence(now.header(QUIET, 0, "t1", told)).endswith(
        f"to confirm the best. It begins anew, for this has changed: {told}"
    )
    assert "the place" in SETUP.changed({"service": "chat", "objective": "latency"}), "of an older version"


def test_a_noisy_or_unknown_service_gets_more_pairs() -> None:
    quiet, unknown = (SETUP.header(noise, 0, "t")["search"] for noise in (QUIET, None))
    assert (quiet["pairs"], unknown["pairs"]) == (4, 9)
    assert quiet["looks_s"] == [20.0, 60.0, 120.0] and unknown["looks_s"] == [120.0]


def test_noise_is_that_of_the_objectives_phase() -> None:
    noise = Noise(5, {"c1": {"tokens_per_s": 0.004}, "c64": {"tokens_per_s": 0.5}, "c8": {}})
    pairs = {each: replace(SETUP, objective=each).header(noise, 0, "t")["search"]["pairs"] for each in
             ("latency", "throughput")}  # fmt: skip
    assert pairs["latency"] == 4 and pairs["throughput"] > 4


@pytest.mark.parametrize(
    "text", ["{", "[1]", '{"search": {}}', '{"begin": "x"}', '{"search": {"groups": 1}}']
)
def test_damaged_journal_is_said(text: str) -> None:
    with pytest.raises(night.Damaged):
        night.next_step(night.read(text))


def record(tokens_per_s: float, streams: Sequence[int] = (1, 8), ok: bool = True) -> Record:
    requests = tuple(
        Request(f"p{n}", ok, 5 / tokens_per_s, 32 / tokens_per_s, 64 + n, 32, round=0) for n in range(24)
    )
    return Record("m", {}, tuple(Phase(f"c{n}", n, 24 * 32 / tokens_per_s, requests) for n in streams))


def test_the_ratio_is_that_of_the_objectives_phase() -> None:
    before, after = record(100.0), record(120.0)
    slower = replace(after, phases=(after.phases[0], record(50.0).phases[1]))
    for objective, ratio in (("latency", 1.2), ("throughput", 0.5)):
        found = night.measured(before, slower, objective, Slo(), Criteria())
        assert isinstance(found, Measured) and found.ratio == pytest.approx(ratio)
    assert isinstance(found, Measured)
    assert found.workload == {"input_tokens": 76, "output_tokens": 32, "streams": [1, 8]}


def test_margin_that_never_decides_leaves_the_ratio() -> None:
    criteria = Criteria(margins={"c1": {"tokens_per_s": None, "e2e_s": None}})
    found = night.measured(record(100.0), record(120.0), "latency", Slo(), criteria)
    assert isinstance(found, Measured) and found.ratio == pytest.approx(1.2)


def test_missed_slo_is_worse_and_the_gates_reason_comes_first() -> None:
    before, after = record(100.0), record(120.0)
    late = night.measured(before, after, "latency", Slo(max_ttft_s=0.01), Criteria())
    assert isinstance(late, Measured) and late.worse.startswith("first token after 0.0417 s at c1")
    said = night.measured(before, after, "latency", Slo(max_ttft_s=0.01), Criteria(), worse="it is worse")
    assert isinstance(said, Measured) and said.worse == "it is worse"


@pytest.mark.parametrize(("sides", "kind"), [((False, True), Stopped), ((True, False), Failed)])
def test_side_that_answered_nothing_is_no_measurement(sides: tuple[bool, bool], kind: type) -> None:
    """Where it is the current configuration, that says nothing about the one that was tried."""
    before, after = (record(100.0, ok=ok) for ok in sides)
    assert isinstance(night.measured(before, after, "latency", Slo(), Criteria()), kind)


def test_phase_that_only_one_side_has_is_a_failure() -> None:
    found = night.measured(record(100.0, (1, 8)), record(100.0, (2, 8)), "latency", Slo(), Criteria())
    assert found == Failed("nothing was answered at c1")


@pytest.mark.parametrize(("sides", "kind"), [((False, True), Stopped), ((True, False), Failed)])
def test_another_phase_never_stands_in_for_the_objectives(sides: tuple[bool, bool], kind: type) -> None:
    """As where a slow server used the whole budget up at one stream, and eight were not asked for."""
    before, after = (
        Record("m", {}, (record(100.0, (1,)).phases[0], record(100.0, (8,), ok=ok).phases[0])) for ok in sides
    )
    found = night.measured(before, after, "throughput", Slo(), Criteria())
    assert isinstance(found, kind) and "nothing was answered at c8" in str(found)
