"""Carries a tuning out on one host: stages each configuration, has it tried, and keeps the journal.

The journal is a file of the host, beside its service's other state: it outlives the control machine, and is
replaced whole with each line. tuning/night.py decides on the next trial; the host decides whether a
trial may begin, and always goes back.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from pyinfra.api import Host

from pyinfra_vllm import tuned
from pyinfra_vllm.answers import ToldSwitch
from pyinfra_vllm.asking import fact
from pyinfra_vllm.checkpoint import Checkpoint
from pyinfra_vllm.config import Declared, Overrides, Service
from pyinfra_vllm.config.profiles import MeasuredProfile
from pyinfra_vllm.errors import HostError, RolloutError
from pyinfra_vllm.facts import told
from pyinfra_vllm.facts.record import Record as RecordFact
from pyinfra_vllm.facts.service import Service as ServiceFact
from pyinfra_vllm.on_host.bench.criteria import Criteria
from pyinfra_vllm.on_host.bench.record import Record
from pyinfra_vllm.on_host.gate.noise import Noise
from pyinfra_vllm.on_host.gate.verdict import FAIL, Verdict
from pyinfra_vllm.on_host.state.observed import Observed
from pyinfra_vllm.on_host.state.values import RecordError
from pyinfra_vllm.on_host.switch.order import TRIAL
from pyinfra_vllm.operations import release as releases
from pyinfra_vllm.operations.util import planning
from pyinfra_vllm.operations.util.remote import Remote
from pyinfra_vllm.operations.util.switching import Switching
from pyinfra_vllm.operations.util.together import ask_together
from pyinfra_vllm.operations.util.unit import NoContact
from pyinfra_vllm.rollout import orders
from pyinfra_vllm.rollout.estimate import Estimate, History, restarts
from pyinfra_vllm.rollout.opening import in_words, opening, shut
from pyinfra_vllm.rollout.progress import DEFERRED, Wanted
from pyinfra_vllm.text import counted
from pyinfra_vllm.tuning import night
from pyinfra_vllm.tuning.night import Cut, Ended, Failed, Line, PutOff, Result, Setup, Step, Stopped
from pyinfra_vllm.tuning.pareto import Slo, Speed
from pyinfra_vllm.tuning.resolution import Resolution
from pyinfra_vllm.tuning.search import Done, Pair
from pyinfra_vllm.tuning.space import Candidate, Space, pruned
from pyinfra_vllm.window import shown_duration

MAX_EVIDENCE = 64 << 20  # bytes of one trial's records
LEAST_LOOK_S = 5.0  # as the gate has it
TRIED, INTERRUPTED = "tried", "interrupted"  # outcomes of a trial (switch/unfinished.py)
SIDES = ("before", "after")
SEED = 0
# The first line of the newest journal in a folder.
NEWEST = 'newest=$(ls -t -- "$1"/*.jsonl 2>/dev/null | head -n 1); [ -z "$newest" ] || head -n 1 -- "$newest"'


@dataclass(frozen=True)
class Found:
    """Where a tuning stands: its journal, what comes next, and how the night ended.

    + measured: the speeds of each configuration (night.speeds_of)
    + done: the end of the search; None where it goes on
    + status, why: why the night ended before it; of a dry run, why a trial could not begin now
    """

    place: tuned.Place
    setup: Setup
    space: Space
    lines: Sequence[Line]
    step: Step | None
    done: Done | None
    measured: Mapping[str, Sequence[Speed]] = field(default_factory=dict)
    status: str = ""
    why: str = ""


class Tuning:
    """One service of one host, as night.run wants it."""

    def __init__(
        self,
        host: Host,
        declared: Declared,
        service: Service,
        checkpoint: Checkpoint,
        overrides: Overrides,
        say: Callable[[str], None],
    ) -> None:
        """Asks the host. Raises HostError where it can't be tuned; nothing was touched then."""
        self.host, self.root, self.service = host, declared.root, service
        self.checkpoint, self.overrides = checkpoint, overrides
        self.remote, self.say = Remote(host), say
        ask_together(host, declared)
        serving = planning.planned(host, self.root, service, checkpoint)
        if held := serving.observed.lock:
            who, since = held.holder or "someone", held.since or "an unknown time"
            raise HostError(
                f"{who} has held {service.name} since {since} for {held.purpose or 'an unknown purpose'}. A"
                " trial of an earlier run is finished by the host itself: run the same command again when it"
                " has ended."
            )
        if not serving.runs:
            raise HostError(
                f"{service.name} does not run what is declared: roll that out first, so that what is tried is"
                " compared with it. Nothing was touched."
            )
        self.slo = Slo(service.tune.max_ttft_s, service.tune.max_tpot_s)
        try:
            asked = planning.resolver_request(host, self.root, service, checkpoint)
            self.space = pruned(asked, service.tune.draft_head, service.tune.only)
        except RolloutError as error:
            raise HostError(f"{service.name}: {error}") from error
        self.place = tuned.Place.of(asked)
        self.setup = Setup(
            service=service.name,
            current=serving.release.id,
            objective=service.objective,
            slo=self.slo,
            groups={each.name: each.entry.group for each in self.space.candidates},
            criteria=service.gate.criteria().as_dict(),
            tries={each.name: _in_full(each.resolution) for each in self.space.candidates},
            place=dataclasses.asdict(self.place),
        )
        self.folder = f"{self.root}/{service.name}/tuning"
        self.file = f"{self.folder}/{self.setup.id}.jsonl"

    def run(self, anew: bool = False) -> Found:
        """Go on with the search, or begin it. `anew`: from the first trial, whatever is known.

        Raises HostError where the host can't keep the journal, or says what can't be.
        """
        lines = self.lines()
        if anew or not lines:
            self.note(self._header(lines))
        with self._readable():
            return self._found(night.run(self))

    def look(self, anew: bool = False) -> Found:
        """Where the search stands, and what would be tried next. Changes nothing."""
        lines = self.lines()
        if anew or not lines:
            lines = [*lines, self._header(lines)]
        with self._readable():
            step = night.next_step(lines)
            if isinstance(step, Done):
                return self._found(Ended(step), lines)
            why = self.no_room(step)
            return self._found(Ended(None, DEFERRED if why else "", why), lines)

    def _header(self, lines: Sequence[Line]) -> Line:
        because = "" if lines else self._changed()
        return self.setup.header(self._noise(), SEED + len(lines), self.now(), because)

    def _changed(self) -> str:
        """The settings in which this search differs from the service's newest one; empty where there is none,
        or where its journal can't be read.
        """
        try:
            newest = night.read(self.remote.run("sh", "-c", NEWEST, "sh", self.folder))
            return self.setup.changed(night.header(newest))
        except night.Damaged:
            return ""

    def _found(self, ended: Ended, lines: Sequence[Line] | None = None) -> Found:
        lines = self.lines() if lines is None else lines
        step = night.next_step(lines)
        return Found(
            place=self.place,
            setup=self.setup,
            space=self.space,
            lines=lines,
            step=None if isinstance(step, Done) else step,
            done=ended.done,
            measured=night.speeds_of(lines),
            status=ended.status,
            why=ended.why,
        )

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except night.Damaged as error:
            raise HostError(f"{self.file}: {error}. Move it away to begin anew.") from error

    # As night.Host

    def lines(self) -> Sequence[Line]:
        with self._readable():
            return night.read(self._text(self.file))

    def note(self, line: Line) -> None:
        self.remote.run("install", "-d", "-m", "700", self.folder)
        before = self._text(self.file).splitlines()  # whose last newline doesn't come along
        self.remote.write(self.file, "".join(f"{each}\n" for each in (*before, json.dumps(line))))
        if text := night.sentence(line):
            self.say(text)

    def no_room(self, step: Step) -> str:
        needed = self._needed(step, self._observed().history)
        found = opening(self.service, self.overrides, needed=needed)
        if found is None or not shut(found):
            return ""
        if not found.open:
            return in_words(found)
        length = shown_duration(needed.length)
        return (
            f"the window closes at {found.closes:%H:%M %Z}, and a trial takes up to {length}, its way back"
            " included"
        )

    def carry_out(self, step: Step) -> Result:
        candidate = self.space.candidate(step.candidate)
        refused = [each for each in candidate.resolution.errors if each not in self.space.current.errors]
        if refused:
            return Failed(refused[0])
        made = tuned.unproven(self.place, self.space.settings(candidate))
        try:
            wanted = self._wanted(made)
        except planning.Refused as error:
            return self._refused(error)
        if wanted.release.id == self.setup.current:
            return self._same(candidate, made, wanted)
        staged = wanted.release.id in wanted.observed.staged
        if not staged and not releases.stage(self.host.state, self.host, self.root, wanted.release):
            return Stopped(f"{step.candidate} could not be staged")
        if wanted.release.id not in wanted.observed.rehearsed:
            try:
                self.say(f"{step.candidate}: {releases.asked_of_vllm(self.host, self.root, wanted.release)}")
            except NoContact as error:
                return Stopped(str(error))
            except HostError as error:
                self._observed()  # raises where it is the host that doesn't answer
                return Failed(f"its vLLM was asked: {error}")
        return self._try(step, candidate, wanted)

    def now(self) -> str:
        return datetime.now(UTC).isoformat(timespec="seconds")

    # Its parts

    def _try(self, step: Step, candidate: Candidate, wanted: Wanted) -> Result:
        judged = self._judged(step, candidate)
        observed = self._observed()
        if tx := self._died(observed, wanted.release.id):
            return Cut("it died on the host, and nobody was there to see it", tx)
        history = observed.history
        needed = self._needed(step, history)
        prepared = orders.trial(self.root, judged, wanted.release.id, self.overrides, history, needed)
        outcome = Switching(self.host, self.root, prepared).run()
        if outcome.status == TRIED:
            return self._read(judged.gate.criteria(), wanted.release.id, outcome.message)
        if tx := self._died(self._observed(), wanted.release.id):
            return Cut(outcome.message, tx)
        if outcome.status == DEFERRED:
            return PutOff(outcome.message)
        return Stopped(f"{step.candidate}: {outcome.status}: {outcome.message}")

    def _died(self, observed: Observed, release: str) -> str:
        """The newest transaction, where it is a trial of this release that died on the host and that the
        journal has not counted yet; else empty.
        """
        last = observed.last
        if not last or (last.purpose, last.new, last.outcome) != (TRIAL, release, INTERRUPTED):
            return ""
        return "" if any(line.get("tx") == last.tx for line in self.lines()) else last.tx

    def _same(self, candidate: Candidate, made: MeasuredProfile, wanted: Wanted) -> Result:
        """A candidate that comes to the current release: its own fault, unless its flags are others and its
        profile is not used here. That would be so of each candidate, and of the winner.
        """
        own, current = candidate.resolution, self.space.current
        if (own.values, own.environment) == (current.values, current.environment):
            return Failed("comes to the same release as the current configuration")
        why = [text for text in wanted.warnings if made.file in text] or ["another profile is used"]
        return Stopped(
            f"{candidate.name} has other flags than the current configuration, but its profile would roll out"
            f" the current release, so nothing can be tried: {'; '.join(why)}"
        )

    def _wanted(self, made: MeasuredProfile) -> Wanted:
        """The release of a candidate: the very one that its profile would roll out. Raises HostError."""
        told.forget(self.host)  # what is staged and rehearsed has changed
        service = self.service.model_copy(update={"profiles": (made,)})
        return planning.plan(self.host, self.root, service, self.checkpoint)

    def _refused(self, error: planning.Refused) -> Result:
        """A release that can't be worked out: the candidate's fault, unless the current one can't either."""
        try:
            planning.plan(self.host, self.root, self.service, self.checkpoint)
        except HostError as also:
            return Stopped(str(also))
        return Failed(str(error))

    def _judged(self, step: Step, candidate: Candidate) -> Service:
        """The service with this look's gate: answers are judged in each pair and where they may change."""
        look_s = self._look_s(step)
        gate = {"budget_s": look_s, "max_budget_s": look_s, "soak_s": 0.0}
        if not isinstance(step, Pair) and not candidate.entry.changes_answers:
            gate["quality"] = False
        return self.service.model_copy(update={"gate": self.service.gate.model_copy(update=gate)})

    def _look_s(self, step: Step) -> float:
        budget_s = self.service.gate.criteria().budget_s
        return budget_s if isinstance(step, Pair) else max(LEAST_LOOK_S, step.look_s)

    def _needed(self, step: Step, history: History) -> Estimate:
        """How long a trial may take: both restarts, and both looks."""
        beside = restarts(self.service, history).length
        return Estimate(beside + 2 * timedelta(seconds=self._look_s(step)), "a trial")

    def _read(self, criteria: Criteria, release: str, message: str) -> Result:
        """The result of the trial that has just ended. Raises HostError."""
        switch = self._newest(release)
        evidence = switch["evidence"]
        try:
            verdict = Verdict.read(evidence["verdict"], "verdict") if evidence.get("verdict") else None
            left = [f"{name}: {why}" for name, why in switch["left_out"].items() if name in SIDES]
            if left or "before" not in evidence:
                return Stopped("; ".join(left) or "what serves could not be measured before the trial")
            if "after" not in evidence:
                return Failed(message)
            before = Record.read(evidence["before"], "before")
            after = Record.read(evidence["after"], "after")
        except RecordError as error:
            return Failed(f"what was measured can't be read: {error}")
        failed = verdict is not None and verdict.verdict == FAIL
        worse = f"the gate would not keep it: {verdict.conclusion()}" if verdict and failed else ""
        return night.measured(
            before,
            after,
            self.service.objective,
            self.slo,
            criteria,
            verdict=verdict.verdict if verdict else "",
            worse=worse,
            tx=switch["tx"],
        )

    def _newest(self, release: str) -> ToldSwitch:
        record = fact(self.host, RecordFact, root=self.root, newest=1, max_bytes=MAX_EVIDENCE)
        own = next((each for each in record if each["service"] == self.service.name), None)
        newest = own["transactions"][-1] if own and own["transactions"] else None
        if newest is None or not any(entry.get("to") == release for entry in newest["entries"]):
            raise HostError(f"the trial of release {release} ended, and its record is not there")
        return newest

    def _observed(self) -> Observed:
        told.forget(self.host)
        return fact(self.host, ServiceFact, root=self.root, service=self.service.name)

    def _noise(self) -> Noise | None:
        text = self._text(f"{self.root}/{self.service.name}/noise.json")
        if not text:
            return None
        try:
            return Noise.read(json.loads(text), "noise.json")
        except (RecordError, ValueError) as error:
            raise HostError(f"its calibration can't be read: {error}. Calibrate anew.") from error

    def _text(self, path: str) -> str:
        """The file's text; empty where there is none."""
        return self.remote.run("sh", "-c", '[ ! -e "$1" ] || cat -- "$1"', "sh", path)


def _in_full(resolution: Resolution) -> list[str]:
    """All that it comes to: flags, then variables."""
    return [
        *resolution.argv(),
        *(f"{name}={value}" for name, value in sorted(resolution.environment.items())),
    ]


def begins(found: Found) -> str:
    """The next trial or pair, in words; empty where the search is done."""
    if found.step is None:
        return ""
    if isinstance(found.step, Pair):
        return f"pair {found.step.number} of {found.step.of} of {found.step.candidate}"
    return (
        f"{found.step.candidate}, look {found.step.rung + 1}, {counted(round(found.step.look_s), 'second')}"
    )
