"""A rollout as it happens: which host is in which wave, at which step, since when. Pure; it steers nothing.

The hosts know nothing of waves: they are planned here from the hosts that need a switch or had one lately, by
the same rule as in the rollout itself.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta

from rich.table import Table

from pyinfra_vllm.config import Rollout
from pyinfra_vllm.rollout import waves
from pyinfra_vllm.rollout.story import STEPS

from ..asking import Answer
from ..on_host.state.evidence import HOW_FAR
from ..on_host.state.observed import Observed
from ..on_host.state.transactions import Transaction
from ..printable import printable
from ..text import duration
from .history import moment
from .looking import Look, Wish
from .status import brief
from .tables import escape

# A rollout of one night: older switches belong to another one.
RECENT = timedelta(hours=12)
WAITING, SWITCHING, RUNS, DOWN = "waiting", "switching", "runs", "down"
COLOURS = {WAITING: "yellow", SWITCHING: "cyan", RUNS: "green", "committed": "green", "deferred": "yellow"}


@dataclass(frozen=True)
class Live:
    """One service of one host now.

    `state` is `waiting`, `switching`, `runs`, `down`, or how a recent switch ended.
    """

    host: str
    service: str
    state: str
    wave: int | None = None
    step: str = ""
    since_s: float | None = None
    said: str = ""

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def lives(
    answers: Sequence[Answer[Look]],
    rollout: Rollout,
    now: datetime,
    serving: Mapping[str, Collection[str]] | None = None,
) -> list[Live]:
    """Every declared service, wave by wave, in the inventory's order; hosts that are down come last.

    + serving: service -> every host that declares it; left out: those that need a switch
    """
    numbers = _waves(answers, rollout, now, serving)
    found = []
    for answer in answers:
        if answer.value is None:
            found.append(Live(answer.host, "", DOWN, said=answer.problem))
            continue
        for wish in answer.value.wishes or ():
            found.append(_live(answer.host, answer.value, wish, numbers.get(answer.host), now))
    return sorted(found, key=lambda item: (item.state == DOWN, item.wave is None, item.wave or 0))


def table(found: Iterable[Live]) -> Table:
    made = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("wave", "host", "service", "state", "step", "for"):
        made.add_column(name, no_wrap=True)
    made.add_column("says", min_width=16)  # the one that folds on a narrow screen
    for item in found:
        made.add_row(
            "" if item.wave is None else str(item.wave),
            escape(item.host),
            escape(item.service),
            f"[{COLOURS.get(item.state, 'red')}]{escape(item.state)}[/]",
            escape(item.step),
            "" if item.since_s is None else duration(item.since_s),
            escape(item.said),
        )
    return made


def sentence(item: Live) -> str:
    """One line for a log: without times, so that it changes only when something happened."""
    wave = f"wave {item.wave}, " if item.wave is not None else ""
    said = f": {item.said}" if item.said and item.state != SWITCHING else ""
    return printable(
        f"{wave}{item.host} {item.service}: {item.state}{f', {item.step}' if item.step else ''}{said}"
    )


def _live(host: str, look: Look, wish: Wish, wave: int | None, now: datetime) -> Live:
    observed = look.observed(wish.service)
    found = _newest(look, wish.service)
    last = found.entries[-1] if found else None
    if observed and observed.lock is not None and last and last["step"] not in ("end", "reported"):
        step = STEPS.get(last["step"], str(last["step"]))
        since = max(0.0, (now - moment(last["at"])).total_seconds())
        said = look.record[wish.service]["progress"].partition(" ")[2].removeprefix(HOW_FAR)
        return Live(host, wish.service, SWITCHING, wave, step, since, said)
    if found and found.end and _recent(found, wish, now):
        return Live(host, wish.service, str(found.outcome), wave, said=brief(found.reason))
    if _runs(observed, wish):
        return Live(host, wish.service, RUNS, wave, said=f"release {wish.release}")
    return Live(host, wish.service, WAITING, wave, said=wish.problem or f"for release {wish.release}")


def _waves(
    answers: Sequence[Answer[Look]],
    rollout: Rollout,
    now: datetime,
    serving: Mapping[str, Collection[str]] | None,
) -> dict[str, int]:
    """Host -> its wave, counted from 1, for the hosts that a rollout of these hours is about."""
    candidates = []
    for answer in sorted(answers, key=lambda answer: answer.host):
        wishes = answer.value.wishes if answer.value else None
        if answer.value and wishes and any(_concerned(answer.value, wish, now) for wish in wishes):
            names = tuple(wish.service for wish in wishes)
            candidates.append(waves.Candidate(answer.host, wishes[0].gpu, names))
    down = [answer.host for answer in answers if answer.value is None]
    planned = waves.plan(candidates, rollout, serving, down)
    return {host: number for number, hosts in enumerate(planned, start=1) for host in hosts}


def _concerned(look: Look, wish: Wish, now: datetime) -> bool:
    return not _runs(look.observed(wish.service), wish) or _recent(_newest(look, wish.service), wish, now)


def _runs(observed: Observed | None, wish: Wish) -> bool:
    return observed is not None and observed.runs(wish.release)


def _recent(found: Transaction | None, wish: Wish, now: datetime) -> bool:
    """Whether the newest switch was to the declared release, and not long ago."""
    return found is not None and found.new == wish.release and now - moment(found.began) < RECENT


def _newest(look: Look, service: str) -> Transaction | None:
    told = look.record[service]["transactions"] if service in look.record else []
    return Transaction(told[-1]["entries"]) if told else None
