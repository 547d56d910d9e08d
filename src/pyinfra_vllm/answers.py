"""Checks the JSON answers of hosts, which are not trusted, and turns them into typed values.

The one place where that happens, for facts and for the commands of operations. An answer that is none of
these is a HostError, which stops that host alone. Text stays as it is: it is made printable where it is
printed (printable.py).
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, NoReturn

from .errors import HostError, one_line
from .on_host import journal
from .on_host.values import (
    Check,
    RecordError,
    amount,
    count,
    flag,
    list_of,
    mapping,
    number,
    or_null,
    share,
    shown,
    text,
)


def read(answer: str, check: Check, where: str = "its answer") -> Any:
    """The value of a host's JSON. Raises HostError for whatever is not JSON, or not what `check` allows."""
    try:
        value = json.loads(answer, parse_constant=_refused)
        check(value, where)
    except RecordError as error:
        raise HostError(f"answered nonsense: {one_line(error)}. {ADVICE}") from error
    except (ValueError, RecursionError) as error:
        raise HostError(f"answered nonsense: no JSON, but {shown(answer)}. {ADVICE}") from error
    return value


ADVICE = "See what runs there as python3, and whether its files are damaged"


def _refused(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")


def texts(value: Any, where: str) -> None:
    list_of(text)(value, where)


def moment(value: Any, where: str) -> None:
    """A time as the journal writes it: ISO 8601 with its offset."""
    text(value, where)
    try:
        at = datetime.fromisoformat(value)
    except ValueError:
        at = datetime.min
    if at.tzinfo is None or not 1970 <= at.year <= 2999:
        raise RecordError(f"{where} must be a time, not {shown(value)}")


def entry(value: Any, where: str) -> None:
    """One line of a journal, as its own reader takes it."""
    mapping({"at": moment})(value, where)
    if not journal.is_whole(value):
        raise RecordError(f"{where} must be a journal's entry, not {shown(value)}")


def one_of(item: Check) -> Check:
    """A list with one thing in it."""

    def check(value: Any, where: str) -> None:
        list_of(item)(value, where)
        if len(value) != 1:
            raise RecordError(f"{where} must have one item, not {len(value)}")

    return check


def map_of(item: Check) -> Check:
    def check(value: Any, where: str) -> None:
        mapping()(value, where)
        for name, one in value.items():
            text(name, f"a name in {where}")
            item(one, f"{where}.{shown(name)}")

    return check


def pair(value: Any, where: str) -> None:
    list_of(number)(value, where)
    if len(value) != 2:
        raise RecordError(f"{where} must be two numbers, not {len(value)}")


TEXT_OR_NONE = or_null(text)
CHECKPOINT = mapping({"repo": text, "commit": text, "directory": text})
RELEASE = mapping(
    {
        "id": text,
        "service": text,
        "unit": TEXT_OR_NONE,
        "argv": texts,
        "environment": map_of(text),
        "runtime": mapping({"version": text, "path": text}),
        "checkpoint": CHECKPOINT,
        "secrets": texts,
        "kernel": or_null(texts),
    },
    ("id", "argv", "checkpoint"),
)
LOCK = mapping({"holder": text, "since": text, "purpose": text})
REJECTED = map_of(mapping({"at": text, "reason": text, "criteria": or_null(mapping())}, ("at", "reason")))
ENDED = mapping(
    {
        "tx": text,
        "began": moment,
        "ended": moment,
        "from": TEXT_OR_NONE,
        "to": text,
        "operator": text,
        "purpose": text,
        "outcome": TEXT_OR_NONE,
        "reason": text,
        "verdict": TEXT_OR_NONE,
        "reported": flag,
        "kept": flag,
        "turns": map_of(moment),
    },
    ("tx", "began", "outcome", "reported", "turns"),
)
# What on_host/observe.py tells of one service.
OBSERVED = mapping(
    {
        "service": text,
        "active": TEXT_OR_NONE,
        "since": TEXT_OR_NONE,
        "restarts": count,
        "current": TEXT_OR_NONE,
        "previous": TEXT_OR_NONE,
        "running": TEXT_OR_NONE,
        "proven": TEXT_OR_NONE,
        "release": or_null(RELEASE),
        "staged": texts,
        "rehearsed": texts,
        "rejected": REJECTED,
        "lock": or_null(LOCK),
        "last": or_null(ENDED),
        "history": list_of(ENDED),
    },
    ("service", "current", "running", "staged", "rejected", "lock", "last", "history"),
)
METRIC = mapping(
    {
        "name": text,
        "phase": TEXT_OR_NONE,
        "before": or_null(number),
        "after": or_null(number),
        "ratio": or_null(number),
        "interval": or_null(pair),
        "limit": or_null(number),
        "verdict": text,
        "decides": flag,
        "note": text,
        "doubt": text,
        "allowed_by": text,
    },
    ("name", "phase", "before", "after", "ratio", "limit", "verdict", "decides"),
)
VERDICT = mapping({"verdict": text, "metrics": list_of(METRIC), "reasons": texts})
# What on_host/recall.py tells of one service. Evidence is checked file by file (`evidence`).
TOLD = mapping(
    {
        "service": text,
        "kernels": map_of(mapping({"verdict": TEXT_OR_NONE, "kernels": or_null(texts)})),
        "progress": text,
        "older": count,
        "transactions": list_of(
            mapping(
                {
                    "tx": text,
                    "entries": list_of(entry),
                    "evidence": mapping(),
                    "left_out": map_of(text),
                },
                ("tx", "entries", "evidence", "left_out"),
            )
        ),
    },
    ("service", "kernels", "progress", "older", "transactions"),
)
EVIDENCE: dict[str, Check] = {"verdict": VERDICT, "release": RELEASE, "old": RELEASE}
# What on_host/follow.py tells.
NEWS = mapping(
    {
        "tx": TEXT_OR_NONE,
        "entries": list_of(entry),
        "progress": texts,
        "step": or_null(
            mapping(
                {"name": text, "elapsed_s": amount, "limit_s": or_null(amount)},
                ("name", "elapsed_s", "limit_s"),
            )
        ),
        "active": flag,
        "failing": TEXT_OR_NONE,
        "end": or_null(mapping({"outcome": text, "reason": text, "verdict": TEXT_OR_NONE, "log": texts})),
    },
    ("tx", "entries", "progress", "step", "active", "end"),
)
RUNTIME = or_null(
    mapping(
        {
            "path": text,
            "version": text,
            "distribution": text,
            "python": text,
            "executable": flag,
            "built": or_null(mapping({"packages": texts}, ("packages",))),
            "flags": or_null(texts),
            "compiled": share,
            "torch": TEXT_OR_NONE,
            "problem": TEXT_OR_NONE,
        },
        ("version", "distribution", "executable", "built"),
    )
)
CARD = mapping(
    {
        "index": or_null(count),
        "card": count,
        "uuid": TEXT_OR_NONE,
        "name": TEXT_OR_NONE,
        "memory_mib": or_null(count),
        "used_mib": or_null(count),
        "driver": TEXT_OR_NONE,
        "compute_capability": TEXT_OR_NONE,
        "ecc": TEXT_OR_NONE,
        "instance": TEXT_OR_NONE,
        "split": flag,
        "processes": list_of(
            mapping(
                {
                    "pid": or_null(count),
                    "unit": TEXT_OR_NONE,
                    "used_mib": or_null(count),
                    "name": TEXT_OR_NONE,
                },
                ("pid", "unit"),
            )
        ),
    },
    ("index", "name", "processes"),
)
GPUS = mapping({"problem": TEXT_OR_NONE, "gpus": list_of(CARD)}, ("problem", "gpus"))
STORED = mapping(
    {
        "directory": text,
        "name": text,
        "commit": text,
        "state": text,
        "problems": texts,
        "bytes": count,
        "referenced_by": texts,
    },
    ("directory", "state", "problems", "bytes", "referenced_by"),
)
FILESYSTEM = mapping(
    {
        "path": text,
        "mount": text,
        "device": text,
        "type": text,
        "read_only": flag,
        "free_bytes": count,
        "total_bytes": count,
        "free_inodes": or_null(count),
    },
    ("mount", "device", "read_only", "free_bytes", "free_inodes"),
)
HOST = mapping(
    {
        "python": list_of(count),
        "platform": text,
        "systemd": or_null(count),
        "program": TEXT_OR_NONE,
        "recovery_unit": TEXT_OR_NONE,
        "machine": text,
        "loose": TEXT_OR_NONE,
        "users": map_of(flag),
    },
    ("python", "systemd", "program", "recovery_unit", "users"),
)
PRUNED = mapping({"kind": text, "path": text, "bytes": count}, ("kind", "path", "bytes"))
# What on_host/doctor.py tells.
EXAMINED = mapping(
    {
        "checks": list_of(mapping({"name": text, "ok": flag, "detail": text}, ("name", "ok", "detail"))),
        "now": number,
    },
    ("checks", "now"),
)
LOGGED = list_of(
    mapping(
        {
            "service": text,
            "cause": or_null(
                mapping(
                    {"at": or_null(number), "process": text, "text": text, "traceback": texts},
                    ("text", "traceback"),
                )
            ),
            "problem": text,
            "lines": list_of(
                mapping({"at": or_null(number), "unit": text, "text": text}, ("at", "unit", "text"))
            ),
        },
        ("service", "cause", "problem", "lines"),
    )
)
# What a unit's program writes of how far it is (on_host/status.py).
STATUS = mapping(
    {
        "state": text,
        "message": text,
        "error": text,
        "bytes": amount,
        "total_bytes": amount,
        "rate": amount,
        "eta_s": or_null(amount),
    }
)


def evidence(told: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The switches that `TOLD` allowed, without the documents that are no evidence: those are named as left
    out, and the rest of the switch is shown.
    """
    for service in told:
        for switch in service["transactions"]:
            if not switch["entries"]:
                raise HostError(f"answered nonsense: a switch without an entry. {ADVICE}")
            for name, check in EVIDENCE.items():
                try:
                    or_null(check)(switch["evidence"].get(name), name)
                except RecordError as error:
                    del switch["evidence"][name]
                    switch["left_out"][name] = f"it can't be read ({error})"
    return told
