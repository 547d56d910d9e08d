"""Hosts and services now: a row each, and how declared, staged, current and running release differ.

Pure: it turns answers of hosts into rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from ..answers import CheckpointPlace, RuntimePlace, ToldService
from ..asking import Answer
from ..on_host.inspect.gpus import Gpu
from ..on_host.state.observed import Holder, Observed, Summary
from ..on_host.state.transactions import RESTORE_FAILED
from ..text import gpu_memory
from .looking import Look, Wish

OK, CHANGING, DRIFT, DOWN, UNPROVEN = "ok", "switching", "drift", "down", "unproven"
STOPPED = "stopped"  # for people: a `drift` that serves nothing
WORST_FIRST = (DOWN, UNPROVEN, STOPPED, DRIFT, CHANGING, OK)


@dataclass(frozen=True)
class Row:
    """One service of one host; a host that said nothing is one row with a `problem`.

    since: when the release became current (UTC), or the process's start where no record says
    flags: a short hash of the command line's flags: equal hashes are equal flags
    verdict: how the newest switch ended
    drift: the differences, in words; empty when declared, current and running agree
    switching: who switches it at this moment
    asleep: the release that sleeps beside it, and can be woken until `asleep_until` (UTC)
    """

    host: str
    service: str = ""
    state: str = OK
    release: str | None = None
    since: str = ""
    model: str = ""
    commit: str = ""
    runtime: str = ""
    flags: str = ""
    kernel: str = ""
    verdict: str = ""
    drift: tuple[str, ...] = ()
    switching: str = ""
    asleep: str | None = None
    asleep_until: str = ""
    declared: str | None = None
    current: str | None = None
    running: str | None = None
    previous: str | None = None
    staged: tuple[str, ...] = ()
    rejected: tuple[str, ...] = ()
    note: str = ""
    problem: str = ""

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def rows(answers: Iterable[Answer[Look]]) -> list[Row]:
    """Every service that a host has or should have, in the inventory's order; unreachable hosts stay in."""
    found: list[Row] = []
    for answer in answers:
        if answer.value is None:
            found.append(Row(answer.host, state=DOWN, problem=answer.problem))
        else:
            found += _host_rows(answer.host, answer.value)
    return found


def word(row: Row) -> str:
    """The state as people are told it."""
    stopped = row.state == DRIFT and row.current is not None and row.running is None
    return STOPPED if stopped else row.state


def memory_of(service: str, gpus: Iterable[Gpu]) -> str:
    """The GPU memory in use now where the service runs: `61.2 of 79.6 GiB`; empty where nobody can tell.

    + gpus: every card and instance of the host
    """
    unit = f"vllm-{service}.service"
    own = [gpu for gpu in gpus if not gpu.split and unit in {one.unit for one in gpu.processes}]
    sizes = [
        (gpu.used_mib, gpu.memory_mib)
        for gpu in own
        if gpu.used_mib is not None and gpu.memory_mib is not None
    ]
    if not own or len(sizes) < len(own):
        return ""
    used, whole = (gpu_memory(sum(side)) for side in zip(*sizes, strict=True))
    cards = f", {len(own)} GPUs" if len(own) > 1 else ""
    return f"{used.removesuffix(' GiB')} of {whole}{cards}"


def severity(row: Row) -> int:
    """0 for the state that needs a person most."""
    return WORST_FIRST.index(word(row))


def exit_code(found: Sequence[Row]) -> int:
    """1 when a host could not be asked, or serves a release that was never proven."""
    return int(any(row.problem or row.state == UNPROVEN for row in found))


def flags_hash(argv: Sequence[str]) -> str:
    """Eight hex digits that name the flags of a command line, whatever stands before the first of them."""
    first = next((place for place, word in enumerate(argv) if word.startswith("--")), len(argv))
    return hashlib.sha256(json.dumps(list(argv[first:])).encode()).hexdigest()[:8]


def _host_rows(host: str, look: Look) -> list[Row]:
    wishes = {wish.service: wish for wish in look.wishes or ()}
    present = {observed.service for observed in look.running}
    found = [
        _row(
            host,
            observed,
            look.record.get(observed.service),
            wishes.get(observed.service),
            look.wishes is not None,
        )
        for observed in look.running
    ]
    found += [_missing(host, wish) for wish in wishes.values() if wish.service not in present]
    return found or [Row(host, note="no service here, and none declared")]


def _missing(host: str, wish: Wish) -> Row:
    return Row(
        host,
        wish.service,
        DRIFT,
        model=wish.model,
        declared=wish.release,
        drift=("declared, and never staged on this host",),
        note=_unplanned(wish),
    )


def _unplanned(wish: Wish | None) -> str:
    return f"the declared release is unknown: {wish.problem}" if wish and wish.problem else ""


def _row(
    host: str, observed: Observed, record: ToldService | None, wish: Wish | None, declaration: bool
) -> Row:
    release = observed.release
    checkpoint: CheckpointPlace = release["checkpoint"] if release else {}
    runtime: RuntimePlace = release.get("runtime", {}) if release else {}
    different = tuple(drift(observed, wish, declaration))
    switching = _switching(observed.lock)
    return Row(
        host=host,
        service=observed.service,
        state=_state(observed, switching, different),
        release=observed.running or observed.current,
        since=_since(observed),
        model=checkpoint.get("repo", ""),
        commit=checkpoint.get("commit", ""),
        runtime=runtime.get("version", ""),
        flags=flags_hash(release["argv"]) if release and release["argv"] else "",
        kernel=_kernel(observed, record),
        verdict=_verdict(observed.last),
        drift=different,
        switching=switching,
        asleep=observed.asleep.release if observed.asleep else None,
        asleep_until=observed.asleep.until if observed.asleep else "",
        declared=wish.release if wish else None,
        current=observed.current,
        running=observed.running,
        previous=observed.previous,
        staged=tuple(observed.staged),
        rejected=tuple(sorted(observed.rejected)),
        note=_unplanned(wish),
    )


def _state(observed: Observed, switching: str, different: tuple[str, ...]) -> str:
    if _failing(observed):
        return UNPROVEN
    if switching:
        return CHANGING
    return DRIFT if different else OK


def _failing(observed: Observed) -> str:
    """Why the release that was to serve again does not; empty where the newest switch came to its end."""
    last = observed.last
    if last is None or last.outcome != RESTORE_FAILED or observed.running == observed.proven:
        return ""
    return f"the switch to {last.new} could not be taken back: {brief(last.reason)}"


def drift(observed: Observed, wish: Wish | None, declaration: bool = True) -> list[str]:
    """The differences between declared, staged, current and running, in words.

    + wish: the declaration of the service; None: it is not declared
    + declaration: whether the declaration could be read at all
    """
    current, running = observed.current, observed.running
    found = list(filter(None, [_failing(observed)]))
    if current is None:
        found.append("no release is current")
    if current is not None and running is None:
        found.append(f"not running ({observed.active or 'unknown to systemd'})")
    elif running is not None and running != current:
        found.append(f"the process was started from {running}, current is {current}")
    if observed.front_lost:
        found.append("its front leads to no server; the host mends that within two minutes")
    if wish is None:
        return [*found, "runs here, and is not declared"] if declaration else found
    if wish.release is None:
        return [*found, *_visible_drift(observed, wish)]
    if wish.release != current:
        found.append(_not_current(wish.release, observed))
    return found


def _not_current(release: str, observed: Observed) -> str:
    if release in observed.rejected:
        return f"declared {release} was rejected: {brief(observed.rejected[release].reason)}"
    if release in observed.staged:
        return f"declared {release} is staged, not yet switched to"
    return f"declared {release} is not staged"


def brief(reason: str) -> str:
    """The first of several reasons, and how many more there are."""
    first, *more = reason.split("; ")
    return f"{first} (and {len(more)} more)" if more else first


def _visible_drift(observed: Observed, wish: Wish) -> list[str]:
    """The state where the declared release's id can't be computed."""
    release = observed.release
    model = release["checkpoint"].get("repo") if release else None
    if model is not None and model != wish.model:
        return [f"declared is {wish.model}, current is {model}"]
    return []


def _switching(lock: Holder | None) -> str:
    if lock is None:
        return ""
    return (
        f"{lock.purpose or 'a switch'} by {lock.holder or 'someone'} since {lock.since or 'an unknown time'}"
    )


def _since(observed: Observed) -> str:
    committed = [
        switch.ended or ""
        for switch in observed.history
        if switch.outcome == "committed" and switch.new == observed.current
    ]
    return committed[-1] if committed else observed.since or ""


def _kernel(observed: Observed, record: ToldService | None) -> str:
    checked = record["kernels"].get(observed.current or "") if record else None
    if kernels := checked.get("kernels") if checked else None:
        return ", ".join(kernels)
    release = observed.release
    expected = release.get("kernel") if release else None
    return f"unchecked, expected {', '.join(expected)}" if expected else ""


def _verdict(last: Summary | None) -> str:
    if last is None:
        return ""
    outcome = last.outcome or "under way"
    return f"{outcome} ({last.verdict})" if last.verdict else outcome
