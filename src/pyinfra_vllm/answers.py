"""The JSON answers of hosts, which are not trusted: the one place that checks them, and some of their types.

The others are dataclasses beside the code that writes them (on_host/inspect, on_host/state/observed.py, ...).
An answer is checked against its type once, when it arrives; one that does not fit is a HostError, which stops
that host alone. Keys that a type does not name are allowed: newer programs tell more. Text stays as it is: it
is made printable where it is printed (printable.py).
"""

from __future__ import annotations

import json
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from types import UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NoReturn,
    Required,
    TypedDict,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from .errors import HostError, one_line
from .on_host.state import journal
from .on_host.state.observed import Observed
from .on_host.state.values import (
    Check,
    RecordError,
    amount,
    count,
    flag,
    list_of,
    map_of,
    mapping,
    number,
    or_null,
    shown,
    text,
    timestamp,
)

T = TypeVar("T")
ADVICE = "See what runs there as python3, and whether its files are damaged"
SIMPLE: dict[Any, Check] = {
    str: text,
    bool: flag,
    int: count,
    float: number,
    Any: lambda value, where: None,
}


def read(answer: str, kind: type[T]) -> T:
    """The value of a host's JSON. Raises HostError for whatever is not JSON, or not of that kind."""
    try:
        value = json.loads(answer, parse_constant=_refused)
        return typed(value, kind, "its answer")
    except RecordError as error:
        raise HostError(f"sent an invalid answer: {one_line(error)}. {ADVICE}") from error
    except (ValueError, RecursionError) as error:
        raise HostError(f"sent an invalid answer: no JSON, but {shown(answer)}. {ADVICE}") from error


def typed(value: Any, kind: type[T], where: str) -> T:
    """The value, once it is shown to be of that kind. Raises RecordError, which names the key."""
    check_of(cast(Any, kind))(value, where)
    found: T = _made(value, kind)
    return found


def only(found: list[T]) -> T:
    """The answer about the one service that was asked for."""
    if len(found) != 1:
        raise HostError(f"sent an invalid answer: {len(found)} services instead of one. {ADVICE}")
    return found[0]


def _refused(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")


@cache
def check_of(kind: Any) -> Check:
    """The check that a type stands for; `Annotated` carries its own.

    A dataclass stands for a mapping with its fields as keys; those without a default are needed.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if kind in SIMPLE:
        return SIMPLE[kind]
    if origin is Annotated:
        check: Check = inner[1]
        return check
    if origin in (Union, UnionType):
        return or_null(check_of(inner[0]))
    if origin in (list, tuple):
        return list_of(check_of(inner[0]))
    if origin is dict:
        return map_of(check_of(inner[1]))
    if keys := _keys(kind):
        hints = {key: hint for key, (_, hint) in keys.items()}
        needed = [_key(each) for each in fields(kind) if MISSING is each.default is each.default_factory]
    else:
        hints = get_type_hints(kind, include_extras=True)
        needed = [key for key, hint in hints.items() if get_origin(hint) is Required]
        hints |= {key: get_args(hints[key])[0] for key in needed}
    return mapping({key: check_of(hint) for key, hint in hints.items()}, tuple(needed))


@cache
def _keys(kind: Any) -> dict[str, tuple[str, Any]]:
    """For each key of a dataclass's JSON its field and the field's type; {} for any other type."""
    if not is_dataclass(kind):
        return {}
    hints = get_type_hints(kind, include_extras=True)
    return {_key(each): (each.name, hints[each.name]) for each in fields(kind)}


def _key(of: Field[Any]) -> str:
    """Some keys can't be the name of a field."""
    return str(of.metadata.get("key", of.name))


def _made(value: Any, kind: Any) -> Any:
    """A checked value with dataclasses and tuples where the type has some."""
    origin, inner = get_origin(kind), get_args(kind)
    if value is None or kind is Any:
        return value
    if origin in (Annotated, Union, UnionType):
        return _made(value, inner[0])
    if origin in (list, tuple):
        return origin(_made(one, inner[0]) for one in value)
    if origin is dict:
        return {key: _made(one, inner[1]) for key, one in value.items()}
    if keys := _keys(kind):
        known = ((name, key, hint) for key, (name, hint) in keys.items() if key in value)
        return kind(**{name: _made(value[key], hint) for name, key, hint in known})
    return value


def entry(value: Any, where: str) -> None:
    """One line of a journal, as its own reader takes it."""
    mapping({"at": timestamp})(value, where)
    wrong = journal.wrong_key(value)
    if wrong is not None:
        raise RecordError(f"{where}.{wrong} is not that of a journal's entry: {shown(value.get(wrong))}")


def pair(value: Any, where: str) -> None:
    list_of(number)(value, where)
    if len(value) != 2:
        raise RecordError(f"{where} must be two numbers, not {len(value)}")


Amount = Annotated[float, amount]
# The journal has a key that Python can't name as an attribute.
_From = TypedDict("_From", {"from": str | None}, total=False)


class CheckpointPlace(TypedDict, total=False):
    """A checkpoint on a host, as a release names it."""

    repo: str
    commit: str
    directory: str


class RuntimePlace(TypedDict, total=False):
    """A runtime on a host, as a release names it."""

    version: str
    path: str


class StagedRelease(TypedDict, total=False):
    """A release's release.json."""

    id: Required[str]
    service: str
    unit: str | None
    argv: Required[list[str]]
    environment: dict[str, str]
    runtime: RuntimePlace
    checkpoint: Required[CheckpointPlace]
    secrets: list[str]
    kernel: list[str] | None


class Metric(TypedDict, total=False):
    """One criterion of a verdict."""

    name: Required[str]
    phase: Required[str | None]
    before: Required[float | None]
    after: Required[float | None]
    ratio: Required[float | None]
    interval: Annotated[list[float], pair] | None
    limit: Required[float | None]
    verdict: Required[str]
    decides: Required[bool]
    note: str
    doubt: str
    allowed_by: str


class Verdict(TypedDict, total=False):
    """The verdict of a gate."""

    verdict: str
    metrics: list[Metric]
    reasons: list[str]


class Entry(_From, total=False):
    """One line of a journal: checked by `entry`, which says nothing of the keys that are Any here."""

    at: Required[str]
    tx: Required[str]
    step: Required[str]
    state: Required[str]
    to: str
    operator: str
    purpose: str
    outcome: str
    reason: str
    error: str
    release: str | None
    verdict: str | None
    overrides: list[str]
    kernels: list[str]
    reasons: list[str]
    log: list[str]
    after_s: Any
    baseline: Any
    by: Any
    metrics: Any
    of: Any
    recovered: Any
    run: Any
    serving: Any
    summary: Any


Entries = list[Annotated[Entry, entry]]


class Evidence(TypedDict, total=False):
    """The files of one switch; those that this names by a type are checked by `evidence`."""

    verdict: Verdict | None
    release: StagedRelease | None
    old: StagedRelease | None
    before: Any
    after: Any


class ToldSwitch(TypedDict, total=False):
    """One transaction with its evidence."""

    tx: Required[str]
    entries: Required[Entries]
    evidence: Required[Annotated[Evidence, mapping()]]
    left_out: Required[dict[str, str]]


class KernelCheck(TypedDict, total=False):
    """The kernels that a release was found to use."""

    verdict: str | None
    kernels: list[str] | None


class ToldService(TypedDict, total=False):
    """The switches of one service (on_host/state/recall.py)."""

    service: Required[str]
    kernels: Required[dict[str, KernelCheck]]
    progress: Required[str]
    older: Required[int]
    transactions: Required[list[ToldSwitch]]


class StepUnderWay(TypedDict, total=False):
    """The step that a transaction is at."""

    name: Required[str]
    elapsed_s: Required[Amount]
    limit_s: Required[Amount | None]


class End(TypedDict, total=False):
    """The end of a transaction."""

    outcome: str
    reason: str
    verdict: str | None
    log: list[str]


class News(TypedDict, total=False):
    """The progress of a transaction since it was last asked (on_host/state/follow.py)."""

    tx: Required[str | None]
    entries: Required[Entries]
    progress: Required[list[str]]
    step: Required[StepUnderWay | None]
    active: Required[bool]
    failing: str | None
    end: Required[End | None]


class Removable(TypedDict, total=False):
    """Something that no release needs (on_host/staging/prune.py)."""

    kind: Required[str]
    path: Required[str]
    bytes: Required[int]


class UnitStatus(TypedDict, total=False):
    """The progress of a unit, as its program writes it (on_host/state/status.py)."""

    state: str
    message: str
    error: str
    bytes: Amount
    total_bytes: Amount
    rate: Amount
    eta_s: Amount | None
    pieces: str
    notes: list[str]


class Libtorrent(TypedDict, total=False):
    """The host's first Python that can import libtorrent."""

    python: Required[str | None]


class CompiledWanted(TypedDict):
    """Whether a compile cache is of use on the host, and what its code would depend on there."""

    wanted: bool
    machine: str


class CompiledPacked(TypedDict):
    """The archive of a release's compile cache, laid ready."""

    sha256: str
    bytes: int
    files: int
    machine: str


class CompiledPiece(TypedDict):
    """A piece of that archive."""

    base64: str


class CompiledFolder(TypedDict):
    """Where the host expects the pieces."""

    folder: str


class CompiledTaken(TypedDict):
    """How many files arrived."""

    files: int


DOCUMENTS: tuple[tuple[Literal["verdict", "release", "old"], Any], ...] = (
    ("verdict", Verdict),
    ("release", StagedRelease),
    ("old", StagedRelease),
)


def observed(value: Any) -> list[Observed]:
    """The services of a host, from the JSON of on_host/state/observe.py. Raises HostError."""
    try:
        list_of(mapping({"release": or_null(check_of(StagedRelease))}))(value, "its answer")
        return typed(value, list[Observed], "its answer")
    except RecordError as error:
        raise HostError(f"sent an invalid answer: {one_line(error)}. {ADVICE}") from error


def evidence(told: list[ToldService]) -> list[ToldService]:
    """The same switches; documents that are no evidence are named as left out, the rest is shown."""
    for service in told:
        for switch in service["transactions"]:
            if not switch["entries"]:
                raise HostError(f"sent an invalid answer: a switch without an entry. {ADVICE}")
            for name, kind in DOCUMENTS:
                try:
                    or_null(check_of(kind))(switch["evidence"].get(name), name)
                except RecordError as error:
                    del switch["evidence"][name]
                    switch["left_out"][name] = f"it can't be read ({error})"
    return told
