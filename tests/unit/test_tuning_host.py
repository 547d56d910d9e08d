"""A tuning on a simulated host: the real transaction tries the real space's configurations, and is killed."""

from __future__ import annotations

import hashlib
import random
import subprocess
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from simulated import Killed, SimulatedHost
from test_space import pruned

from pyinfra_vllm import tuned
from pyinfra_vllm.answers import typed
from pyinfra_vllm.config import Overrides, Service
from pyinfra_vllm.errors import HostError
from pyinfra_vllm.on_host.bench import probe
from pyinfra_vllm.on_host.bench.record import Record
from pyinfra_vllm.on_host.state import durable, observe, recall
from pyinfra_vllm.on_host.state.observed import Holder, Observed
from pyinfra_vllm.on_host.switch import judging, transaction
from pyinfra_vllm.on_host.switch.order import TRIAL
from pyinfra_vllm.operations import tuning
from pyinfra_vllm.operations.tuning import Found, Tuning
from pyinfra_vllm.operations.util import planning
from pyinfra_vllm.operations.util.unit import NoContact
from pyinfra_vllm.rollout import opening
from pyinfra_vllm.rollout.orders import Prepared
from pyinfra_vllm.rollout.progress import Outcome
from pyinfra_vllm.tuning import night

NOW = datetime(2026, 11, 30, 2, 30, tzinfo=UTC)
ANY = Service.model_validate(
    {
        "name": "chat",
        "model": "Qwen/Qwen3-32B-AWQ",
        "runtime": {"version": "0.25.1"},
        "port": 8000,
        "objective": "latency",
        "gate": {"budget_s": 5.0, "quality": False, "concurrency": (1, 8)},
    }
)
GAINS = {"stock": 0.8, "humming": 1.2, "interactivity": 1.05, "graphs-8": 0.9}
CURRENT = "current"


class SimulatedNight:
    """A simulated host that answers as operations/tuning.py asks, and dies when it is told to.

    + kills: after how many calls of the host's program it dies next, and whether by a power cut
    """

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, service: Service = ANY) -> None:
        self.host = SimulatedHost(root, monkeypatch)
        self.service = service
        whole = pruned(objective=service.objective)
        self.space = replace(whole, candidates=tuple(each for each in whole.candidates if each.name in GAINS))
        self.names: dict[str, str] = {}  # release -> candidate
        self.kills: list[tuple[int, bool]] = []
        self.killed = 0
        self.statuses: list[str] = []
        self.orders: list[Any] = []
        self.refused: dict[str, str] = {}  # candidate -> its vLLM's reason
        self.tries: list[str] = []
        self.runs = True
        self.held: Holder | None = None
        self.instead: Callable[[], Outcome | None] = lambda: None  # of a switch
        self.used = True  # whether the candidates' profiles are
        self.gpu, self.memory_mib = "NVIDIA H200", 143771
        self.said: list[str] = []
        self.unseen = False  # whether the connection is lost with the host
        self.no_plan: set[str] = set()  # candidates, and the current one, that can't be worked out
        self.old = self._release(CURRENT)
        self.host.install(self.old)
        for owner, name, stub in (
            (tuning, "Remote", self._remote),
            (tuning, "Switching", self._switching),
            (tuning, "fact", self._fact),
            (tuning.told, "forget", lambda host: None),
            (tuning, "ask_together", lambda host, declared: None),
            (tuning.planning, "planned", self._planned),
            (tuning.planning, "resolver_request", self._asked),
            (tuning, "pruned", lambda *_: self.space),
            (tuning.planning, "plan", self._plan),
            (tuning.releases, "stage", self._stage),
            (tuning.releases, "asked_of_vllm", self._rehearse),
        ):
            monkeypatch.setattr(owner, name, stub)

    def tuning(self) -> Tuning:
        declared = SimpleNamespace(root=str(self.host.paths.root))
        overrides = Overrides(operator="alice")
        host = SimpleNamespace(name="gpu-1", state=None)
        checkpoint: Any = None
        self.said = []
        return Tuning(host, declared, self.service, checkpoint, overrides, self.said.append)  # type: ignore[arg-type]

    def run(self, anew: bool = False) -> Found:
        return self.tuning().run(anew)

    def only(self, name: str) -> None:
        """The space is this one candidate."""
        candidates = tuple(each for each in self.space.candidates if each.name == name)
        self.space = replace(self.space, candidates=candidates)

    def until_done(self) -> Found:
        """Run again and again, as an operator would, also after the control machine was killed."""
        for _ in range(40):
            try:
                found = self.run()
            except Killed:
                self.recover(boot=False)
                continue
            if found.done:
                return found
            assert found.status == night.STOPPED, found
        raise AssertionError("the search never ends")

    def serves(self) -> bool:
        return self.host.running == self.host.current == self.old

    def recover(self, boot: bool) -> None:
        self.host.recover(boot)
        if boot:
            self.host.running = self.host.current  # systemd starts it at boot

    # What is simulated

    def _release(self, name: str) -> str:
        found = hashlib.sha256(name.encode()).hexdigest()[:12]
        self.names[found] = name
        gain = 1.0
        for part in name.split(" + "):
            gain *= GAINS.get(part, 0.97)
        self.host.rates[found] = 100.0 * (1.0 if name == CURRENT else gain)
        return found

    def _planned(self, *_: Any) -> Any:
        release = SimpleNamespace(id=self.old, gpu_count=1, runtime={"version": "0.25.1"})
        observed = SimpleNamespace(lock=self.held)
        return SimpleNamespace(runs=self.runs, release=release, gpu=self.gpu, observed=observed)

    def _asked(self, *_: Any) -> Any:
        return SimpleNamespace(card=SimpleNamespace(memory_mib=self.memory_mib))

    def _plan(self, host: Any, root: str, service: Service, checkpoint: Any) -> Any:
        """A candidate is known again by its flags, as its profile has them."""
        if not service.profiles:
            return self._worked_out(CURRENT)
        if not self.used:
            return self._worked_out(
                CURRENT, f"{service.profiles[-1].file} is not used: so it is", "it is hot"
            )
        settings = service.profiles[-1].objectives[service.objective]
        found = [
            name
            for name in [each.name for each in self.space.candidates] + self._stacks()
            if dict(self.space.settings(self.space.candidate(name)).flags) == dict(settings.flags)
            and dict(self.space.settings(self.space.candidate(name)).environment) == settings.environment
        ]
        return self._worked_out(found[0])

    def _worked_out(self, name: str, *warnings: str) -> Any:
        if name in self.no_plan:
            raise planning.Refused(self.service, [f"{name} can't be served here"])
        release = SimpleNamespace(id=self._release(name))
        observed = SimpleNamespace(
            staged=[path.name for path in self.host.paths.releases.iterdir()], rehearsed=()
        )
        return SimpleNamespace(release=release, observed=observed, warnings=warnings)

    def _stacks(self) -> list[str]:
        return [self.tries[-1]] if self.tries and " + " in self.tries[-1] else []

    def _stage(self, state: Any, host: Any, root: str, release: Any) -> bool:
        self.host.stage(release.id)
        return True

    def _rehearse(self, host: Any, root: str, release: Any) -> str:
        if why := self.refused.get(self.names[release.id]):
            raise NoContact(why) if "contact" in why else HostError(why)
        return "accepted"

    def _fact(self, host: Any, what: Any, root: str, **more: Any) -> Any:
        if what is tuning.RecordFact:
            return recall.recall(Path(root), more["newest"], more["max_bytes"], ["chat"])
        return typed(observe.service(self.host.paths), Observed, "the host")

    def _remote(self, host: Any) -> Any:
        night_itself = self

        class Remote:
            def run(self, *words: str) -> str:
                path = Path(words[-1])
                if words[0] == "install":
                    path.mkdir(mode=0o700, exist_ok=True)
                    return ""
                if path.is_dir():
                    return subprocess.run(words, check=True, capture_output=True, text=True).stdout
                return path.read_text().rstrip("\n") if path.exists() else ""  # as pyinfra returns it

            def write(self, path: str, content: str) -> None:
                line = night.read(content)[-1]
                if "begin" in line:
                    night_itself.tries.append(str(line["begin"]))
                durable.write_text(Path(path), content)

        return Remote()

    def _switching(self, host: Any, root: str, prepared: Prepared) -> Any:
        return SimpleNamespace(run=lambda: self._switch(prepared))

    def _switch(self, prepared: Prepared) -> Outcome:
        """The control machine sees the end, whoever wrote it: the transaction, or the recovery."""
        if other := self.instead():
            return other
        order = prepared.order
        assert order.purpose == TRIAL and order.hooks is not None
        self.orders.append(order)
        boot, begun = False, self._begun()
        if self.kills:
            calls, boot = self.kills.pop(0)
            self.host.die_at = len(self.host.calls) + calls
        try:
            transaction.switch(order, self.host.paths)
            self.host.die_at = None
        except Killed:
            self.killed += 1
            self.recover(boot)
            if self.unseen:
                raise HostError("gpu-1: not connected") from None
        assert self.serves(), "the old release does not serve after a trial"
        status = str(self.host.outcome()) if self._begun() > begun else "failed"
        self.statuses.append(status)
        return Outcome("gpu-1", "chat", status, "as the journal says", order.release)

    def _begun(self) -> int:
        return sum(entry["step"] == "begin" for entry in self.host.journal())


@pytest.fixture
def simulated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimulatedNight:
    return SimulatedNight(tmp_path, monkeypatch)


@pytest.mark.thorough
def test_the_best_one_is_found_proven_and_written(simulated: SimulatedNight) -> None:
    found = simulated.run()
    assert found.done is not None and found.done.winner == "humming + interactivity"
    assert found.done.ratio == pytest.approx(1.26, rel=1e-3)
    assert simulated.serves()
    looks = [line for line in night.results(found.lines) if line.get("rung") == 0]
    assert {line["trial"] for line in looks} == {each.name for each in simulated.space.candidates}
    pairs = [line for line in night.results(found.lines) if "pair" in line]
    assert len(pairs) == night.header(found.lines)["pairs"] == 9
    settings = found.space.settings(found.space.candidate(found.done.winner))
    made = tuned.proven(found.place, settings, found.lines, found.done)
    assert made.file == "profiles/NVIDIA-H200--Qwen--Qwen3-32B-AWQ--0.25.1.yaml"
    assert made.objectives["latency"].gain.after == pytest.approx(
        1.26 * made.objectives["latency"].gain.before
    )
    assert "--performance-mode" in settings.flags and "--linear-backend" in settings.flags


@pytest.mark.thorough
def test_nothing_is_committed_or_rejected(simulated: SimulatedNight) -> None:
    simulated.run()
    assert {entry["outcome"] for entry in simulated.host.journal() if entry["step"] == "end"} == {"tried"}
    assert not any(entry["step"] == "commit" for entry in simulated.host.journal())
    assert durable.read_json(simulated.host.paths.rejected, {}) == {}


@pytest.mark.parametrize(
    "seed", [0, pytest.param(1, marks=pytest.mark.thorough), pytest.param(2, marks=pytest.mark.thorough)]
)
def test_killed_at_ten_random_moments_and_two_power_cuts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    source = random.Random(seed)
    simulated = SimulatedNight(tmp_path, monkeypatch)
    boots = [True, True] + [False] * 10
    source.shuffle(boots)
    simulated.kills = [(source.randrange(1, 60), boot) for boot in boots]
    # Kills in a row must not hit one configuration so often that it is given up: that is its own test.
    monkeypatch.setattr(night, "MOST_ATTEMPTS", 20)
    found = simulated.until_done()
    assert simulated.killed >= 9, "a moment after the end of a trial kills nobody"
    assert "interrupted" in simulated.statuses
    assert found.done is not None and found.done.winner == "humming + interactivity"
    assert simulated.serves()
    keys = [
        (line.get("trial"), line.get("pair"), line.get("rung"), line.get("number"))
        for line in night.results(found.lines)
    ]
    assert len(keys) == len(set(keys)), "nothing that had its end was tried again"


@pytest.mark.thorough
def test_kill_of_the_control_machine_at_every_line_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        lines = len(SimulatedNight(tmp_path / "dry", patch).run().lines)
    for moment in range(0, lines, 11):
        with monkeypatch.context() as patch:
            simulated = SimulatedNight(tmp_path / f"{moment}", patch)
            left = [moment]
            note = Tuning.note

            def dying(self: Tuning, line: Any, left: list[int] = left, note: Any = note) -> None:
                left[0] -= 1
                if left[0] == -1:
                    raise Killed
                note(self, line)

            patch.setattr(Tuning, "note", dying)
            with pytest.raises(Killed):
                simulated.run()
            assert simulated.serves()
            found = simulated.run()
            assert found.done is not None and found.done.winner == "humming + interactivity", moment


@pytest.mark.thorough
def test_what_the_gate_would_not_keep_does_not_win(
    simulated: SimulatedNight, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One stream gains 24 %, eight lose half: the gate of the service says no, so it is not proposed."""
    measure = simulated.host._measure
    marlin = simulated._release("humming")

    def slow_at_eight(client: Any, settings: Any, **how: Any) -> Record:
        made = measure(client, settings, **how)
        if simulated.host.running != marlin:
            return made
        one, eight = made.phases
        slower = tuple(
            type(each)(each.prompt, True, each.ttft_s * 3, each.e2e_s * 3, 64, 32) for each in eight.requests
        )
        phases = (one, type(eight)("c8", 8, eight.duration_s * 3, slower))
        return type(made)("m", {}, phases, spent_s=999.0)

    monkeypatch.setattr(probe, "measure", slow_at_eight)
    found = simulated.run()
    line = next(line for line in night.results(found.lines) if line.get("trial") == "humming")
    assert line["failed"].startswith("the gate would not keep it: c8")
    assert line["seen"] == pytest.approx(1.2, rel=1e-3)
    assert found.done is not None and found.done.winner == "interactivity"


@pytest.mark.thorough
def test_limit_that_is_missed_does_not_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = ANY.model_copy(update={"tune": ANY.tune.model_copy(update={"max_ttft_s": 0.042})})
    found = SimulatedNight(tmp_path, monkeypatch, service).run()
    failed = {line["trial"]: line["failed"] for line in night.results(found.lines) if "failed" in line}
    assert "first token after" in failed["interactivity"] and "humming" not in failed


@pytest.mark.thorough
def test_what_its_vllm_refuses_is_never_tried(simulated: SimulatedNight) -> None:
    simulated.refused["humming"] = "vLLM: unrecognized arguments: --linear-backend"
    found = simulated.run()
    (line,) = [line for line in night.results(found.lines) if line.get("trial") == "humming"]
    assert line["failed"] == "its vLLM was asked: vLLM: unrecognized arguments: --linear-backend"
    assert simulated._release("humming") not in {order.release for order in simulated.orders}


@pytest.mark.thorough
def test_candidate_that_can_t_be_served_fails_alone(simulated: SimulatedNight) -> None:
    simulated.no_plan = {"humming"}
    found = simulated.run()
    (line,) = [line for line in night.results(found.lines) if line.get("trial") == "humming"]
    assert "humming can't be served here" in line["failed"]
    assert found.done is not None and found.done.winner == "interactivity"


@pytest.mark.thorough
@pytest.mark.parametrize("trouble", ["no plan", "no contact"])
def test_host_in_trouble_stops_the_search_and_blames_no_candidate(
    simulated: SimulatedNight, trouble: str
) -> None:
    """As where its driver has died in the night: every candidate would fail one after the other."""
    names = {each.name for each in simulated.space.candidates}
    if trouble == "no plan":
        simulated.no_plan = {CURRENT, *names}
    else:
        simulated.refused = dict.fromkeys(names, "no contact for 900 s")
    for _ in range(5):
        found = simulated.run()
        assert found.status == night.STOPPED and night.results(found.lines) == []
    simulated.no_plan, simulated.refused = set(), {}
    found = simulated.run()
    assert found.done is not None and found.done.winner == "humming + interactivity"


def test_trial_without_a_baseline_says_nothing_about_its_configuration(
    simulated: SimulatedNight, monkeypatch: pytest.MonkeyPatch
) -> None:
    told_by = recall.recall

    def without(*arguments: Any) -> Any:
        (service,) = told_by(*arguments)
        del service["transactions"][-1]["evidence"]["before"]
        return [service]

    with monkeypatch.context() as patch:
        patch.setattr(recall, "recall", without)
        found = simulated.run()
    assert (found.status, found.why) == ("stopped", "what serves could not be measured before the trial")
    assert night.results(found.lines) == []


def test_profile_that_is_not_used_here_is_no_fault_of_the_candidates(simulated: SimulatedNight) -> None:
    """As where the card is not known again by the profile's name of it: all came to the current release."""
    simulated.only("graphs-8")
    simulated.used = False
    for _ in range(2):
        found = simulated.run()
        assert (found.done, found.status) == (None, night.STOPPED)
    assert "has other flags than the current configuration" in found.why
    assert found.why.endswith("profiles/NVIDIA-H200--Qwen--Qwen3-32B-AWQ--0.25.1.yaml is not used: so it is")
    assert simulated.orders == [] and night.results(found.lines) == []
    simulated.used = True
    assert simulated.run().done is not None and len(simulated.orders) == 1


@pytest.mark.thorough
def test_lost_connections_cost_a_proven_winner_nothing(simulated: SimulatedNight) -> None:
    """Three times in the confirmation's last pair: it was the end of the search."""
    simulated.only("humming")
    lost = [Outcome("gpu-1", "chat", "unknown", "the connection was lost", "r")] * 3
    simulated.instead = lambda: lost.pop() if lost and len(simulated.orders) == 9 else None
    for _ in range(3):
        found = simulated.run()
        assert (found.done, found.status) == (None, night.STOPPED)
        assert found.why == "humming: unknown: the connection was lost"
    found = simulated.run()
    assert found.done is not None and found.done.winner == "humming"


def test_trial_that_dies_on_the_host_counts_also_where_nobody_saw_it(simulated: SimulatedNight) -> None:
    """A configuration that takes the host down with it must not be tried every night."""
    simulated.only("humming")
    simulated.unseen = True
    simulated.kills = [(30, True)] * 9
    for _ in range(night.MOST_ATTEMPTS):
        found = simulated.run()
        assert (found.done, found.status) == (None, night.STOPPED)
    assert simulated.killed == night.MOST_ATTEMPTS and simulated.serves()
    simulated.kills, simulated.unseen = [], False
    found = simulated.run()
    (line,) = night.results(found.lines)
    assert line["failed"] == "cut off 3 times"
    assert len({line["tx"] for line in found.lines if "cut" in line}) == 3


def test_trial_that_is_under_way_is_waited_for(simulated: SimulatedNight) -> None:
    simulated.held = Holder("alice", "02:31", "the trial of release x")
    with pytest.raises(
        HostError, match=r"alice has held chat since 02:31 for the trial .* run the same command"
    ):
        simulated.run()


@pytest.mark.thorough
def test_one_that_does_not_start_never_comes_back(simulated: SimulatedNight) -> None:
    simulated.host.broken.add(simulated._release("humming"))
    found = simulated.run()
    assert found.done is not None and found.done.winner == "interactivity"
    assert simulated.tries.count("humming") == 1 and simulated.serves()


@pytest.mark.thorough
def test_looks_are_the_gates_budget_and_pairs_all_of_it(simulated: SimulatedNight) -> None:
    simulated.service = ANY.model_copy(update={"gate": ANY.gate.model_copy(update={"budget_s": 120.0})})
    noise = {"schema": "pyinfra-vllm/noise/1", "runs": 5, "phases": {"c1": {"tokens_per_s": 0.004}}}
    durable.write_json(simulated.host.paths.noise, noise)
    found = simulated.run()
    budgets = [order.criteria["budget_s"] for order in simulated.orders]
    assert budgets[0] == 20.0 and budgets[-4:] == [120.0] * 4
    assert all(order.criteria["max_budget_s"] == order.criteria["budget_s"] for order in simulated.orders)
    assert night.header(found.lines)["pairs"] == 4


def at(moment: datetime, monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return moment

    for each in (tuning, opening):
        monkeypatch.setattr(each, "datetime", Clock)
    clock = SimpleNamespace(time=lambda: moment.timestamp(), monotonic=lambda: 0.0)
    for of_host in (judging, transaction):
        monkeypatch.setattr(of_host, "time", clock)


def windowed(closes: timedelta) -> Service:
    window = {"cron": "0 2 * * *", "duration": f"{int(closes.total_seconds() / 60)}m", "timezone": "UTC"}
    return Service.model_validate(
        {**ANY.model_dump(exclude_unset=True, exclude={"gate"}), "gate": {"budget_s": 5.0, "quality": False,
         "concurrency": (1, 8)}, "window": [window], "switch_estimate": "30m"}
    )  # fmt: skip


def test_trials_begin_only_where_their_way_back_is_over_before_the_window_closes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulated = SimulatedNight(tmp_path, monkeypatch, windowed(timedelta(minutes=45)))
    at(NOW, monkeypatch)  # 02:30 of 02:00 to 02:45: 20 minutes of restarts have no room
    found = simulated.run()
    assert (found.done, found.status) == (None, night.DEFERRED)
    assert found.why.startswith("the window closes at 02:45 UTC, and a trial takes up to 20")
    assert simulated.orders == [] and simulated.tries == []
    at(NOW.replace(hour=5), monkeypatch)
    assert simulated.run().why.startswith("the window is closed")
    at(NOW.replace(hour=2, minute=1), monkeypatch)
    found = simulated.run()
    latest = {order.last_start for order in simulated.orders}
    assert latest and all(moment <= NOW.replace(minute=45).timestamp() - 10 for moment in latest)


def test_trial_whose_window_closed_while_it_was_staged_is_put_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order says that the window is closed, so even the host alone would not begin it."""
    simulated = SimulatedNight(tmp_path, monkeypatch, windowed(timedelta(minutes=60)))
    at(NOW.replace(hour=2, minute=5), monkeypatch)

    def slow(*_: Any) -> str:
        at(NOW.replace(hour=3, minute=25), monkeypatch)
        return "accepted"

    monkeypatch.setattr(tuning.releases, "asked_of_vllm", slow)
    found = simulated.run()
    assert (found.done, found.status) == (None, night.DEFERRED)
    assert simulated.statuses == ["deferred"] and simulated.serves()
    assert night.results(found.lines) == []


def test_service_that_does_not_run_what_is_declared_is_not_tuned(simulated: SimulatedNight) -> None:
    simulated.runs = False
    with pytest.raises(HostError, match="roll that out first"):
        simulated.run()


@pytest.mark.thorough
def test_evidence_of_other_flags_never_counts(
    simulated: SimulatedNight, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A profile must not have today's draft head and yesterday's measurements."""

    def with_head(head: str) -> None:
        whole = pruned(draft_head=head)
        only = tuple(each for each in whole.candidates if each.name in ("eagle3-3", "graphs-8"))
        simulated.space = replace(whole, candidates=only)

    monkeypatch.setitem(GAINS, "eagle3-3", 1.5)
    with_head("/srv/heads/old")
    first = simulated.run()
    assert first.done is not None and first.done.winner == "eagle3-3"
    tried = len(simulated.orders)
    with_head("/srv/heads/new")
    second = simulated.run()
    assert second.setup.id != first.setup.id and len(simulated.orders) == 2 * tried
    assert simulated.said[0].endswith("this has changed: what the candidates come to (eagle3-3)")


def test_evidence_of_another_card_never_counts(simulated: SimulatedNight) -> None:
    first = simulated.tuning()
    first.note(first.setup.header(None, 0, "2026-11-30T02:00:00+00:00"))
    simulated.memory_mib = 140000
    second = simulated.tuning()
    simulated.gpu = "NVIDIA H100 80GB HBM3"
    third = simulated.tuning()
    assert len({each.setup.id for each in (first, second, third)}) == 3
    assert third.look().lines[-1]["because"] == "the place (card, memory_mib)"


def test_a_dry_run_changes_nothing(simulated: SimulatedNight) -> None:
    before = sorted(simulated.host.paths.directory.rglob("*"))
    found = simulated.tuning().look()
    assert sorted(simulated.host.paths.directory.rglob("*")) == before
    assert found.step is not None and tuning.begins(found).endswith("look 1, 5 seconds")


@pytest.mark.thorough
def test_anew_begins_from_the_first_trial(simulated: SimulatedNight) -> None:
    first = simulated.run()
    again = simulated.run(anew=True)
    assert first.done is not None and again.done is not None
    assert sum("search" in line for line in again.lines) == 2
    assert len(night.results(again.lines)) == len(night.results(first.lines))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"search"', "line 1 is no JSON"),
        ('{"trial": "x"}', "no line that says what is searched"),
        ('{"search": {"groups": {}, "seed": 0, "pairs": 3, "looks_s": [5]}}\n{"pair": 1}', "no record of a"),
    ],
)
def test_damaged_journal_is_a_host_error(simulated: SimulatedNight, text: str, said: str) -> None:
    found = simulated.tuning()
    path = Path(found.file)
    path.parent.mkdir()
    path.write_text(text)
    for begin in (found.run, found.look):
        with pytest.raises(HostError, match=said):
            begin()
