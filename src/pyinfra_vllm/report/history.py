"""The switches of a whole fleet, merged by time: operator, releases, reasons, overrides and outcome.

Pure: it reads journals that hosts told and writes none.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, tzinfo

from ..answers import Entry, ToldService
from ..asking import Answer
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
    begin = entries[0]
    end = next((entry for entry in reversed(entries) if entry["step"] == "end"), None)
    return Switch(
        began=begin["at"],
        host=host,
        service=service,
        tx=tx,
        operator=begin.get("operator", ""),
        purpose=begin.get("purpose", "rollout"),
        old=begin.get("from"),
        new=begin.get("to", ""),
        outcome=end.get("outcome", "unknown") if end else UNDER_WAY,
        verdict=end.get("verdict", "") if end else "",
        reason=end.get("reason", "") if end else "",
        why=begin.get("reason", ""),
        overrides=tuple(begin.get("overrides", ())),
        ended=end["at"] if end else "",
        took_s=seconds_between(begin, end) if end else None,
        recovered=bool(end and end.get("recovered")),
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


def seconds_between(first: Entry, last: Entry) -> float:
    """Seconds between two entries of a journal, to a tenth."""
    return round((moment(last["at"]) - moment(first["at"])).total_seconds(), 1)
