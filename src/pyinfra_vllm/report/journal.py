"""The journal of one host's services for people: the root cause first, then its entries, all printable."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from ..on_host.server.logs import ServiceLog
from ..printable import printable

NONE = "no start that failed is in the journal, or none says why"


def lines(host: str, told: Sequence[ServiceLog]) -> Iterator[str]:
    """The lines to print for each service; a service without a line says so."""
    if not told:
        yield f"{host}: no service here"
    for service in told:
        yield from _service(f"{host} {printable(service.service)}", service)


def _service(name: str, told: ServiceLog) -> Iterator[str]:
    if told.problem:
        yield f"{name}: {printable(told.problem)}"
        return
    cause = told.cause
    if cause is None:
        yield f"{name}: {NONE}"
    else:
        text = ": ".join(filter(None, (cause.process, cause.text)))
        yield f"{name}: the start of {moment(cause.at)} failed: {printable(text)}"
        yield from (f"    {printable(line)}" for line in cause.traceback)
    yield ""
    for line in told.lines:
        yield f"{moment(line.at)}  {printable(line.unit):8}  {printable(line.text)}"
    if not told.lines:
        yield f"{name}: its units have logged nothing"


def moment(at: float | None) -> str:
    """In UTC, like every time that hosts tell."""
    try:
        return (
            datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
            if at is not None
            else "an unknown time"
        )
    except (ValueError, OverflowError, OSError):  # beyond any calendar
        return "an unknown time"
