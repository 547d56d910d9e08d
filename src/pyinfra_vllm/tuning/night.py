"""A night of tuning: carries out the steps of a search one after the other, and writes each one down.

What is known stands in a journal, one JSON line for each thing that happened, kept by the host:

    {"search": {"current": RELEASE, "pairs": 9, ...}, "at": TIME}    it began, with all that is fixed
    {"begin": NAME, "rung": 0, "at": TIME}                           a trial begins; of a pair its `number`
    {"trial": NAME, "rung": 0, "ratio": 1.19, "before": [...], ...}  its end, as search.py reads it
    {"put_off": NAME, "rung": 0, "why": "...", "at": TIME}           it says nothing about the configuration
    {"cut": NAME, "rung": 0, "tx": "...", "why": "..."}              it died on the host

A trial that has no end is tried again. Only one that died on the host counts against its configuration,
which fails after MOST_ATTEMPTS; a control machine that was killed or lost the host does not. Nothing is kept
anywhere else, so whoever looks at the journal goes on where it ends. Does nothing itself: the host does.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from pyinfra_vllm.errors import HostError
from pyinfra_vllm.on_host.bench.criteria import Criteria
from pyinfra_vllm.on_host.bench.record import Record
from pyinfra_vllm.on_host.gate.noise import Noise
from pyinfra_vllm.on_host.gate.relative import compare
from pyinfra_vllm.text import counted
from pyinfra_vllm.tuning import search as searching
from pyinfra_vllm.tuning.pareto import Slo, Speed, place, speeds
from pyinfra_vllm.tuning.search import Done, Pair, Search, Trial

METRIC = "tokens_per_s"  # in the phase of the objective: what a ratio of the search is about
MOST_ATTEMPTS = 3
CURRENT = "current configuration"  # its name beside those of the candidates
DEFERRED, STOPPED = "deferred", "stopped"
SETTINGS = {  # of a search, in words
    "service": "the service",
    "current": "the release that serves",
    "objective": "the objective",
    "slo": "the limits",
    "groups": "the candidates' groups",
    "criteria": "the gate",
    "tries": "what the candidates come to",
    "place": "the place",
}

Line = Mapping[str, Any]
Step = Trial | Pair


class Damaged(ValueError):
    """The journal of a search can't be read: the message says which line."""


@dataclass(frozen=True)
class Setup:
    """The settings of a search: where one of them changes, another search begins.

    + current: the release that serves, against which everything is tried
    + groups: name -> group of each candidate (search.Search)
    + criteria: of the service's gate, which judges each trial
    + tries: name -> flags and variables of each candidate, as resolved
    + place: the card with its memory, the number of GPUs, the model and the runtime
    """

    service: str
    current: str
    objective: str
    slo: Slo
    groups: Mapping[str, str]
    criteria: Mapping[str, Any]
    tries: Mapping[str, Sequence[str]] = field(default_factory=dict)
    place: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Names the journal."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def changed(self, earlier: Mapping[str, Any]) -> str:
        """The settings that an earlier search had otherwise, by its header; empty where none."""
        told = []
        for key, value in json.loads(json.dumps(asdict(self))).items():
            other = earlier.get(key)
            if value != other:
                parts = _differing(value, other)
                told.append(SETTINGS[key] + (f" ({', '.join(parts)})" if parts else ""))
        return ", ".join(told)

    def header(self, noise: Noise | None, seed: int, at: str, because: str = "") -> Line:
        """The first line of its journal: numbers of pairs and lengths of looks are fixed before any trial.

        + noise: what a calibration found; None: a noisy service is assumed
        + because: what has changed since an earlier search; empty where there was none
        """
        budget_s = Criteria.from_dict(self.criteria).budget_s
        deviation = searching.deviation_of(noise, _phase(noise, self.objective), METRIC)
        fixed = {
            **asdict(self),
            "seed": seed,
            "pairs": searching.pairs_needed(deviation),
            "looks_s": list(searching.looks(budget_s, deviation)),
        }
        return {"search": fixed, **({"because": because} if because else {}), "at": at}


@dataclass(frozen=True)
class Measured:
    """A trial that was measured on both sides.

    + ratio: after / before in METRIC, in the phase of the objective
    + worse: why the gate would not keep it, or which limit of the SLO it misses; empty where neither
    + workload: median tokens of prompts and answers, and requests at a time
    """

    ratio: float
    before: tuple[Speed, ...]
    after: tuple[Speed, ...]
    verdict: str
    worse: str
    workload: Mapping[str, Any] = field(default_factory=dict)
    tx: str = ""


@dataclass(frozen=True)
class Failed:
    """This configuration can't be used, and never comes back. The old release serves."""

    why: str


@dataclass(frozen=True)
class Cut:
    """The trial died on the host, and the old release serves again: it may be tried again.

    + tx: the transaction, which counts once
    """

    why: str
    tx: str


@dataclass(frozen=True)
class PutOff:
    """The host found that it is too late in the window. Nothing was touched."""

    why: str


@dataclass(frozen=True)
class Stopped:
    """Nothing further may be tried before a person has looked, or before the host has finished. It says
    nothing about the configuration.
    """

    why: str


Result = Measured | Failed | Cut | PutOff | Stopped


class Host(Protocol):
    """Carries trials out and keeps the journal (operations/tuning.py; tests have one of their own)."""

    def lines(self) -> Sequence[Line]:
        """The journal, oldest first; empty where there is none."""

    def note(self, line: Line) -> None:
        """Add a line, durably, before it returns."""

    def no_room(self, step: Step) -> str:
        """Why this step can't begin now, as its window leaves too little time; empty where it may."""

    def carry_out(self, step: Step) -> Result:
        """Try it, and go back. The old release serves afterwards, or the result is Stopped.

        Raises HostError, which is the same.
        """

    def now(self) -> str:
        """ISO 8601 with its offset."""


@dataclass(frozen=True)
class Ended:
    """How a night ended: with the end of the search, or before it, by `status` and `why`."""

    done: Done | None
    status: str = ""
    why: str = ""


def run(host: Host) -> Ended:
    """Go on with the search of this journal until it is done, the window closes, or something stops it.

    The journal has a header. Raises Damaged.
    """
    while True:
        lines = host.lines()
        step = next_step(lines)
        if isinstance(step, Done):
            return Ended(step)
        if _attempts(lines, step) >= MOST_ATTEMPTS:
            host.note(_failed(step, f"cut off {MOST_ATTEMPTS} times", host.now()))
            continue
        if why := host.no_room(step):
            return Ended(None, DEFERRED, why)
        host.note({"begin": step.candidate, **_which(step), "at": host.now()})
        try:
            result = host.carry_out(step)
        except HostError as error:
            result = Stopped(str(error))
        if isinstance(result, PutOff | Stopped):
            host.note({"put_off": step.candidate, **_which(step), "why": result.why, "at": host.now()})
            return Ended(None, DEFERRED if isinstance(result, PutOff) else STOPPED, result.why)
        if isinstance(result, Cut):
            cut = {"cut": step.candidate, **_which(step), "tx": result.tx, "why": result.why}
            host.note({**cut, "at": host.now()})
        elif isinstance(result, Failed):
            host.note(_failed(step, result.why, host.now()))
        elif isinstance(result, Measured):
            host.note(_line(step, result, host.now()))


def next_step(lines: Sequence[Line]) -> Step | Done:
    """The step after all that the journal has. Raises Damaged."""
    try:
        return search_of(lines).next(results(lines))
    except (ValueError, TypeError) as error:
        raise Damaged(str(error)) from error


def search_of(lines: Sequence[Line]) -> Search:
    """The search of the newest header. Raises Damaged."""
    fixed = header(lines)
    try:
        return Search(dict(fixed["groups"]), fixed["seed"], fixed["pairs"], tuple(fixed["looks_s"]))
    except (KeyError, TypeError, ValueError) as error:
        raise Damaged(f"its first line lacks {error}") from error


def header(lines: Sequence[Line]) -> Mapping[str, Any]:
    """All that was fixed at the beginning of the newest search. Raises Damaged where there is none."""
    found = [line["search"] for line in lines if isinstance(line.get("search"), Mapping)]
    if not found:
        raise Damaged("it has no line that says what is searched")
    newest: Mapping[str, Any] = found[-1]
    return newest


def results(lines: Sequence[Line]) -> list[Line]:
    """The ends of trials and pairs of the newest search, as search.py reads them."""
    return [line for line in _newest(lines) if "trial" in line or "pair" in line]


def speeds_of(lines: Sequence[Line]) -> dict[str, list[Speed]]:
    """The speeds of each configuration in its last look or pair, the current one's too. Raises Damaged."""
    found: dict[str, list[Speed]] = {}
    try:
        for line in results(lines):
            for name, side in ((CURRENT, "before"), (line.get("trial", line.get("pair")), "after")):
                if line.get(side):
                    found[str(name)] = [Speed.read(each) for each in line[side]]
    except (TypeError, ValueError) as error:
        raise Damaged(f"a result can't be read: {error}") from error
    return found


def read(text: str) -> list[Line]:
    """The lines of a journal. Raises Damaged."""
    found: list[Line] = []
    for number, each in enumerate(text.splitlines(), 1):
        try:
            line = json.loads(each)
        except (ValueError, RecursionError) as error:
            raise Damaged(f"line {number} is no JSON: {error}") from error
        if not isinstance(line, dict):
            raise Damaged(f"line {number} is no map")
        found.append(line)
    return found


def sentence(line: Line) -> str:
    """A line for a person who watches; empty for one that says nothing new."""
    name = line.get("trial", line.get("pair", line.get("begin", line.get("put_off"))))
    where = f"look {line['rung'] + 1}" if "rung" in line else f"pair {line.get('number')}"
    if "search" in line:
        fixed = line["search"]
        return (
            f"the search begins: {counted(len(fixed['groups']), 'configuration')}, and"
            f" {counted(fixed['pairs'], 'pair')} of starts to confirm the best"
            + (f". It begins anew, for this has changed: {line['because']}" if "because" in line else "")
        )
    if "begin" in line:
        return f"{name}: {where} begins"
    if "cut" in line:
        return f"{line['cut']}: {where}: cut off: {line['why']}"
    if "failed" in line:
        return f"{name}: {where}: not taken: {line['failed']}"
    if "ratio" in line:
        return f"{name}: {where}: {line['ratio']:.3f} times the current configuration"
    return ""


def measured(
    before: Record,
    after: Record,
    objective: str,
    slo: Slo,
    criteria: Criteria,
    verdict: str = "",
    worse: str = "",
    tx: str = "",
) -> Measured | Failed | Stopped:
    """The result of a trial, from what was measured on both sides.

    The ratio is the gate's own, of the rounds that both sides have.

    + criteria: that it was measured with
    + verdict, worse: of the gate, and why it would not keep this
    """
    phases = sorted(before.phases, key=lambda each: each.concurrency)
    phase = phases[place(len(phases), objective)].name  # also where the time ran out before it was measured
    then, now = speeds(before), speeds(after)
    if phase not in {speed.phase for speed in then}:
        return Stopped(
            f"nothing was answered at {phase} when the current configuration was measured: `gate.budget_s`"
            " may be too short for it"
        )
    if phase not in {speed.phase for speed in now}:
        return Failed(f"nothing was answered at {phase}")
    (one,), (other,) = ([each for each in side.phases if each.name == phase] for side in (before, after))
    rows = compare(one, other, criteria, {}, 0.0)
    ratio = next((row.ratio for row in rows if row.name == METRIC), None)
    if ratio is None or not 0 < ratio < math.inf:
        return Failed(f"its tokens/s at {phase} can't be compared")
    own = next(speed for speed in now if speed.phase == phase)
    return Measured(ratio, then, now, verdict, worse or slo.missed(own), _workload(after), tx)


def _differing(one: Any, other: Any) -> list[str]:
    """The names under which two maps differ; none where one of them is no map."""
    if not isinstance(one, Mapping) or not isinstance(other, Mapping):
        return []
    return [name for name in sorted({*one, *other}) if one.get(name) != other.get(name)]


def _workload(record: Record) -> dict[str, Any]:
    answered = [request for phase in record.phases for request in phase.answered]
    inputs, outputs = (
        sorted(getattr(request, name) for request in answered) for name in ("input_tokens", "output_tokens")
    )
    return {
        "input_tokens": max(1, inputs[len(inputs) // 2]),
        "output_tokens": max(1, outputs[len(outputs) // 2]),
        "streams": sorted({phase.concurrency for phase in record.phases if phase.answered}),
    }


def _phase(noise: Noise | None, objective: str) -> str:
    """The calibrated phase of an objective; empty where there is none."""
    streams = sorted(int(name[1:]) for name in (noise.phases if noise else {}) if name[1:].isdigit())
    return f"c{streams[place(len(streams), objective)]}" if streams else ""


def _newest(lines: Iterable[Line]) -> list[Line]:
    """The lines behind the newest header."""
    found: list[Line] = []
    for line in lines:
        found = [] if "search" in line else [*found, line]
    return found


def _attempts(lines: Sequence[Line], step: Step) -> int:
    """How often this step died on the host."""
    which = {"cut": step.candidate, **_which(step)}
    return sum(which.items() <= line.items() for line in _newest(lines))


def _which(step: Step) -> dict[str, int]:
    return {"rung": step.rung} if isinstance(step, Trial) else {"number": step.number}


def _named(step: Step) -> dict[str, Any]:
    kind = "trial" if isinstance(step, Trial) else "pair"
    return {kind: step.candidate, **_which(step)}


def _failed(step: Step, why: str, at: str) -> Line:
    return {**_named(step), "failed": why, "at": at}


def _line(step: Step, result: Measured, at: str) -> Line:
    sides = {
        "before": [speed.as_dict() for speed in result.before],
        "after": [speed.as_dict() for speed in result.after],
    }
    end = {"failed": result.worse} if result.worse else {"ratio": result.ratio}
    more = {"seen": result.ratio, "verdict": result.verdict, "workload": dict(result.workload)}
    return {**_named(step), **end, **more, **sides, "tx": result.tx, "at": at}
