"""The JSON answers of hosts, which are not trusted: their types, and the one place that checks them.

An answer is checked against its type once, when it arrives; one that does not fit is a HostError, which stops
that host alone. Keys that a type does not name are allowed: newer programs tell more. Text stays as it is: it
is made printable where it is printed (printable.py).
"""

from __future__ import annotations

import json
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
    share,
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
        check_of(cast(Any, kind))(value, "its answer")
    except RecordError as error:
        raise HostError(f"sent an invalid answer: {one_line(error)}. {ADVICE}") from error
    except (ValueError, RecursionError) as error:
        raise HostError(f"sent an invalid answer: no JSON, but {shown(answer)}. {ADVICE}") from error
    found: T = value
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
    """The check that a type of this module stands for; `Annotated` carries its own."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind in SIMPLE:
        return SIMPLE[kind]
    if origin is Annotated:
        check: Check = inner[1]
        return check
    if origin in (Union, UnionType):
        return or_null(check_of(inner[0]))
    if origin is list:
        return list_of(check_of(inner[0]))
    if origin is dict:
        return map_of(check_of(inner[1]))
    keys = get_type_hints(kind, include_extras=True)
    needed = tuple(key for key, hint in keys.items() if get_origin(hint) is Required)
    known = {key: check_of(get_args(hint)[0] if key in needed else hint) for key, hint in keys.items()}
    return mapping(known, needed)


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


class Built(TypedDict, total=False):
    """The packages that a runtime was installed with."""

    packages: Required[list[str]]


class Runtime(TypedDict, total=False):
    """An installed vLLM (on_host/inspect/runtime.py); `compiled`: share of its files with byte code."""

    path: str
    version: Required[str]
    distribution: Required[str]
    python: str
    executable: Required[bool]
    built: Required[Built | None]
    flags: list[str] | None
    compiled: Annotated[float, share]
    torch: str | None
    problem: str | None


class GpuProcess(TypedDict, total=False):
    """A process on a GPU."""

    pid: Required[int | None]
    unit: Required[str | None]
    used_mib: int | None
    name: str | None


class Gpu(TypedDict, total=False):
    """A card or a MIG instance (on_host/inspect/gpus.py). `split`: a card in MIG mode."""

    index: Required[int | None]
    card: int
    uuid: str | None
    name: Required[str | None]
    memory_mib: int | None
    used_mib: int | None
    driver: str | None
    compute_capability: str | None
    ecc: str | None
    instance: str | None
    split: bool
    processes: Required[list[GpuProcess]]


class Gpus(TypedDict, total=False):
    """The GPUs of a host, or the problem why they are unknown."""

    problem: Required[str | None]
    gpus: Required[list[Gpu]]


class StoredCheckpoint(TypedDict, total=False):
    """A checkpoint on a host (on_host/inspect/checkpoints.py). `state`: complete, damaged or partial."""

    directory: Required[str]
    name: str
    commit: str
    state: Required[str]
    problems: Required[list[str]]
    bytes: Required[int]
    referenced_by: Required[list[str]]


class Filesystem(TypedDict, total=False):
    """The file system of a path (on_host/inspect/disk.py)."""

    path: str
    mount: Required[str]
    device: Required[str]
    type: str
    read_only: Required[bool]
    free_bytes: Required[int]
    total_bytes: int
    free_inodes: Required[int | None]


class Host(TypedDict, total=False):
    """The installation on a host (on_host/inspect/host.py)."""

    python: Required[list[int]]
    platform: str
    systemd: Required[int | None]
    program: Required[str | None]
    recovery_unit: Required[str | None]
    machine: str
    loose: str | None
    users: Required[dict[str, bool]]


class Removable(TypedDict, total=False):
    """Something that no release needs (on_host/staging/prune.py)."""

    kind: Required[str]
    path: Required[str]
    bytes: Required[int]


class DoctorCheck(TypedDict, total=False):
    """One check of `doctor`."""

    name: Required[str]
    ok: Required[bool]
    detail: Required[str]


class Examination(TypedDict, total=False):
    """A host's answer to `doctor` (on_host/doctor.py); `now` is its clock, in Unix time."""

    checks: Required[list[DoctorCheck]]
    now: Required[float]


class Cause(TypedDict, total=False):
    """The root cause of a failed start."""

    at: float | None
    process: str
    text: Required[str]
    traceback: Required[list[str]]


class LogLine(TypedDict, total=False):
    """One line of a unit's log."""

    at: Required[float | None]
    unit: Required[str]
    text: Required[str]


class ServiceLog(TypedDict, total=False):
    """The journal of one service's units (on_host/server/logs.py)."""

    service: Required[str]
    cause: Required[Cause | None]
    problem: Required[str]
    lines: Required[list[LogLine]]


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
    release = or_null(check_of(StagedRelease))
    found = []
    try:
        list_of(mapping({"release": release}))(value, "its answer")
        for place, one in enumerate(value):
            found.append(Observed.read(one, f"its answer[{place}]"))
    except RecordError as error:
        raise HostError(f"sent an invalid answer: {one_line(error)}. {ADVICE}") from error
    return found


def evidence(told: list[ToldService]) -> list[ToldService]:
    """The same switches without the documents that are no evidence: those are named as left out, and the rest
    of the switch is shown.
    """
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
