"""Whether an unattended rollout is due now, and for which hosts.

Pure: a declaration, a moment and answers in.

A release is tried once in each opening of its window. A rejected release waits for a person.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from pyinfra_vllm.rollout.estimate import History, estimate
from pyinfra_vllm.rollout.opening import never

from ..asking import Answer
from ..config import Fleet, Overrides, Service
from ..on_host.state.observed import Observed, Summary
from ..report.history import moment
from ..report.looking import Look, Wish
from ..window import LONGEST_DURATION, WindowState, open_between, state

DUE, RUNS, CLOSED, BUSY, REJECTED, TRIED, NEVER, UNKNOWN = (
    "due", "runs", "closed", "busy", "rejected", "tried", "never", "unknown",
)  # fmt: skip
# Ends of a switch after which trying again in the same opening would only do the same again.
FAILED_ENDS = frozenset({"rolled_back", "restore_failed", "refused"})
# A service without a window is always open: for it, a day is an opening.
DAY = timedelta(days=1)


@dataclass(frozen=True)
class Opening:
    """When one service of one host may switch: its windows at `at`, and since when they are open."""

    host: str
    service: Service
    at: datetime
    state: WindowState
    since: datetime | None

    @property
    def open(self) -> bool:
        return self.since is not None


@dataclass(frozen=True)
class Finding:
    """The action that one service of one host needs, and why."""

    host: str
    service: str
    kind: str
    why: str

    def as_dict(self) -> dict[str, str]:
        return vars(self)


@dataclass(frozen=True)
class Decision:
    """`hosts` are due for a rollout now; `stopped` says why none is, though some would be."""

    findings: tuple[Finding, ...] = ()
    hosts: tuple[str, ...] = ()
    stopped: str = ""

    @property
    def exit_code(self) -> int:
        """1 where a host that matters now could not be asked or planned for, or can never switch; else 0."""
        return int(any(finding.kind in (UNKNOWN, NEVER) for finding in self.findings))


def openings(fleet: Fleet, at: datetime) -> list[Opening]:
    """Every service of the selected hosts, open or closed at `at` (aware).

    Asks no host, so too late counts as open.
    """
    return [_opening(host, service, at) for host in fleet.selected for service in fleet.hosts[host].services]


def next_opening(found: Iterable[Opening]) -> datetime | None:
    """When the first of the closed windows opens; None when none ever does."""
    coming = [opening.state.next[0] for opening in found if opening.state.next]
    return min(coming, default=None)


def decide(found: Sequence[Opening], answers: Iterable[Answer[Look]], max_failures: int) -> Decision:
    """The decision, once hosts were asked.

    + max_failures: hosts that may have failed before the rest is left alone, as in the rollout's own rule
    """
    told = {answer.host: answer for answer in answers}
    findings = tuple(_finding(opening, told[opening.host]) for opening in found)
    failed = sorted({finding.host for finding in findings if finding.kind in (REJECTED, TRIED)})
    due = dict.fromkeys(finding.host for finding in findings if finding.kind == DUE)
    # a host with one service that failed is not touched for another: the run would try both
    hosts = tuple(host for host in due if host not in failed)
    if hosts and len(failed) > max_failures:
        return Decision(findings, stopped=f"the rollout stopped at {', '.join(failed)}")
    return Decision(findings, hosts)


def _opening(host: str, service: Service, at: datetime) -> Opening:
    found = state(service.window, at)
    return Opening(host, service, at, found, _open_since(service, at) if found.open else None)


def _open_since(service: Service, at: datetime) -> datetime:
    if not service.window:
        return at - DAY
    pieces = open_between(service.window, at - LONGEST_DURATION, at + timedelta(seconds=1))
    return next(piece.start for piece in pieces if piece.start <= at < piece.end)


def _finding(opening: Opening, answer: Answer[Look]) -> Finding:
    def finding(kind: str, why: str) -> Finding:
        return Finding(opening.host, opening.service.name, kind, why)

    if answer.value is None:
        return finding(UNKNOWN if opening.open else CLOSED, answer.problem)
    name = opening.service.name
    wish = next((wish for wish in answer.value.wishes or () if wish.service == name), None)
    if wish is None or wish.release is None:
        why = wish.problem if wish else "its declaration could not be read"
        return finding(UNKNOWN if opening.open else CLOSED, why)
    return finding(*_need(wish, answer.value.observed(name), opening))


def _need(wish: Wish, observed: Observed | None, opening: Opening) -> tuple[str, str]:
    release = str(wish.release)
    if observed and observed.runs(release):
        return RUNS, f"runs {release}"
    if observed and observed.lock is not None:
        return BUSY, f"{observed.lock.holder or 'someone'} switches it now"
    if observed and observed.rejection(release, opening.service.gate.criteria().as_dict()):
        return (
            REJECTED,
            f"{release} was rejected: change the declaration or its gate, or run with --data"
            " retry_rejected=true",
        )
    if not opening.open:
        return CLOSED, opening.state.reason
    history = observed.history if observed else []
    needed = estimate(opening.service, history)
    left = state(opening.service.window, opening.at, needed.length, needed.source)
    if left.last_start and opening.at > left.last_start:
        why = never(opening.service, Overrides(), opening.at, history)
        return (NEVER, why) if why else (CLOSED, left.reason)
    last = _last_failure(release, history, opening)
    if last:
        return (
            TRIED,
            f"{release} was tried at {last.began} and ended {last.outcome}; again in the next window",
        )
    return DUE, f"{release} is declared, {(observed and observed.running) or 'nothing'} runs"


def _last_failure(release: str, history: History, opening: Opening) -> Summary | None:
    tried = [
        switch
        for switch in history
        if switch.new == release
        and switch.outcome in FAILED_ENDS
        and opening.since is not None
        and moment(switch.began) >= opening.since
    ]
    return tried[-1] if tried else None
