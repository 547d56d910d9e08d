"""The switches of a whole fleet, merged by time: operator, releases, reasons, overrides and outcome.

Pure: it reads journals that hosts told and writes none.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, tzinfo

from ..answers import Entry, ToldService
from ..asking import Answer
from ..on_host.state.transactions import Transaction, seconds_between
from .looking import Look

UNDER_WAY = "under way"


@dataclass(frozen=True)
class Switch:
    """One transaction of one service. Times are ISO 8601 in UTC; `took_s` is None while it is under way.

    why: the operator's reason for the switch; `reason`: the host's reason for the outcome
    """

    began: str
    host: str
    service: str
    tx: str
    operator: str
    purpose: str
    old: str | None
    new: str
    outcome: str
    verdict: str | None = ""
    reason: str = ""
    why: str = ""
    overrides: tuple[str, ...] = ()
    ended: str = ""
    took_s: float | None = None
    recovered: bool = False

    def as_dict(self) -> dict[str, object]:
        """For --json: `from` and `to` as the journal calls them."""
        values = asdict(self)
        return {
            {"old": "from", "new": "to"}.get(key, key): list(value) if isinstance(value, tuple) else value
            for key, value in values.items()
        }


def switches(answers: Iterable[Answer[Look]], since: datetime | None = None) -> list[Switch]:
    """Every switch in the answers that began at `since` or later, oldest first."""
    found = [
        switch(answer.host, service["service"], told["tx"], told["entries"])
        for answer in answers
        if answer.value is not None
        for service in answer.value.record.values()
        for told in service["transactions"]
    ]
    kept = [item for item in found if since is None or moment(item.began) >= since]
    return sorted(kept, key=lambda item: (item.began, item.host, item.service))


def left_out(answers: Iterable[Answer[Look]], since: datetime | None = None) -> int:
    """Number of switches that hosts left out, and that may have begun at `since` or later."""
    services = [service for answer in answers if answer.value for service in answer.value.record.values()]
    return sum(service["older"] for service in services if since is None or _reaches(service, since))


def _reaches(service: ToldService, since: datetime) -> bool:
    """Whether even the oldest switch in the answer began after `since`."""
    return all(moment(told["entries"][0]["at"]) >= since for told in service["transactions"][:1])


def problems(answers: Iterable[Answer[Look]]) -> dict[str, str]:
    """Host -> why its history is missing here."""
    return {answer.host: answer.problem for answer in answers if answer.value is None}


def switch(host: str, service: str, tx: str, entries: list[Entry]) -> Switch:
    """One transaction from its journal entries, of which the first is its `begin`."""
    found = Transaction(entries)
    return Switch(
        began=found.began,
        host=host,
        service=service,
        tx=tx,
        operator=found.operator,
        purpose=found.purpose,
        old=found.old,
        new=found.new,
        outcome=str(found.outcome) if found.ended else UNDER_WAY,
        verdict=found.verdict,
        reason=found.reason if found.ended else "",
        why=found.why,
        overrides=found.overrides,
        ended=found.ended or "",
        took_s=round(seconds_between(found.began, found.ended), 1) if found.ended else None,
        recovered=found.recovered,
    )


def moment(text: str) -> datetime:
    """An ISO 8601 time; one without offset is in UTC. Raises ValueError."""
    at = datetime.fromisoformat(text)
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def local(at: str | datetime, zone: tzinfo | None = None) -> str:
    """A time in the reader's timezone, with its name. A text that is no ISO 8601 time stays as it is.

    + zone: None: this machine's
    """
    try:
        found = moment(at) if isinstance(at, str) else at
        return f"{found.astimezone(zone):%Y-%m-%d %H:%M %Z}"
    except (ValueError, OverflowError):
        return str(at)
