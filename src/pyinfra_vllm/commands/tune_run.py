"""`pyinfra-vllm tune` without --plan: tunes one service on its host, inside its window."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyinfra_vllm import fleet, tuned
from pyinfra_vllm.commands.one_service import followed, host_of, service_of, tell_on_stderr
from pyinfra_vllm.config import profiles
from pyinfra_vllm.errors import DeclarationError, one_line
from pyinfra_vllm.printable import printable
from pyinfra_vllm.tuning import night, search
from pyinfra_vllm.tuning.pareto import front

if TYPE_CHECKING:
    from pyinfra_vllm.operations.tuning import Found

FAILED = "failed"
EXIT_CODES = {"": 0, night.DEFERRED: 4}
PAGE = "tuning.html"
# What is known of a tuning whose host could not be asked.
UNKNOWN: Mapping[str, Any] = {
    "status": FAILED,
    "why": "",
    "winner": None,
    "ratio": None,
    "interval": None,
    "next": None,
    "results": [],
    "front": {"on": [], "behind": {}, "missed": {}},
    "candidates": {},
    "ruled_out": [],
}


@dataclass(frozen=True)
class Ran:
    """How a run ended: `found` is None where the host could not be asked, and `problem` says why.

    + profile: the file that was written; None where nothing was found to be better
    """

    host: str
    service: str
    found: Found | None
    problem: str = ""
    profile: str | None = None
    page: str | None = None

    @property
    def exit_code(self) -> int:
        return EXIT_CODES.get(self.found.status, 1) if self.found else 1


def run(
    inventory: str,
    limit: Sequence[str],
    named: str | None,
    overrides: Mapping[str, object],
    group_data: Sequence[str],
    *,
    dry: bool = False,
    anew: bool = False,
    out: Path | None = None,
) -> Ran:
    """Go on with the tuning of one service on one host, and write its profile where it ends with a winner.

    + dry: only look where it stands
    + anew: from the first trial on
    + out: the folder for its page

    Raises DeclarationError or LockError before anything is touched.
    """
    from pyinfra_vllm.asking import Hosts
    from pyinfra_vllm.operations.tuning import Tuning

    wanted = fleet.load(inventory, overrides, group_data, limit=limit)
    declared = host_of(wanted, f"--limit {', '.join(limit)}" if limit else inventory)
    service = service_of(declared, named)
    checkpoint = wanted.checkpoint(service)
    if out is not None:
        with _telling(out):  # before a night is spent
            out.mkdir(parents=True, exist_ok=True)
    tell_on_stderr()

    def say(text: str) -> None:
        click.echo(printable(f"[{declared.host}] {service.name}: {text}"), err=True)

    with followed(), Hosts(inventory, [declared.host], group_data) as hosts:
        (answer,) = hosts.ask(
            lambda host: _tuned(
                Tuning(host, declared, service, checkpoint, wanted.overrides, say), dry=dry, anew=anew
            ),
            limit_s=None,
        )
    found = answer.value
    profile = None if dry or found is None else _kept(found)
    page = _page(out, declared.host, found) if out and found else None
    return Ran(declared.host, service.name, found, answer.problem, profile, page)


def _tuned(tuning: Any, *, dry: bool, anew: bool) -> Found:
    found: Found = tuning.look(anew) if dry else tuning.run(anew)
    return found


def show(ran: Ran, *, dry: bool) -> None:
    """The end for a person."""
    for line in lines(ran, dry=dry):
        click.echo(printable(line))


def lines(ran: Ran, *, dry: bool) -> list[str]:
    from pyinfra_vllm.operations.tuning import begins

    found = ran.found
    if found is None:
        return [f"{FAILED}: {ran.problem}"]
    told = [f"{len(found.space.candidates)} configurations; {len(night.results(found.lines))} results so far"]
    if dry:
        told += [f"Would try {name}: {change}" for name, change in _changes(found).items()]
        told += [f"Not tried: {each.name}: {each.because}" for each in found.space.ruled_out]
    if found.step is not None:
        told.append(f"Next: {begins(found)}")
    if found.done is not None:
        told.append(f"Done: {found.done.why}")
        on = front(found.measured, found.setup.objective, found.setup.slo).on
        told += [f"On the Pareto front: {', '.join(on)}"] if on else []
    else:
        told += [f"{found.status or 'could begin now'}{': ' if found.why else ''}{found.why}"]
    if ran.profile:
        told.append(f"Written: {ran.profile}. Commit it; the next rollout uses it.")
    if ran.page:
        told.append(f"Page: {ran.page}")
    return told


def as_dict(ran: Ran) -> dict[str, Any]:
    """The same for programs (docs/tune.md): always the same keys."""
    known = _known(ran.found) if ran.found else {**UNKNOWN, "why": ran.problem}
    return {"host": ran.host, "service": ran.service, **known, "profile": ran.profile, "page": ran.page}


def _known(found: Found) -> dict[str, Any]:
    shown = front(found.measured, found.setup.objective, found.setup.slo)
    done = found.done
    return {
        "status": "done" if done else found.status,
        "why": done.why if done else found.why,
        "winner": done.winner if done else None,
        "ratio": done.ratio if done else None,
        "interval": list(done.interval) if done and done.interval else None,
        "next": _step(found.step) if found.step else None,
        "results": list(night.results(found.lines)),
        "front": {"on": list(shown.on), "behind": dict(shown.behind), "missed": dict(shown.missed)},
        "candidates": _changes(found),
        "ruled_out": [{"name": each.name, "because": each.because} for each in found.space.ruled_out],
    }


def _step(step: night.Step) -> dict[str, Any]:
    if isinstance(step, search.Pair):
        return {"pair": step.candidate, "number": step.number, "of": step.of}
    return {"trial": step.candidate, "rung": step.rung, "look_s": step.look_s}


def _changes(found: Found) -> dict[str, str]:
    return {each.name: each.changes for each in found.space.candidates}


def _kept(found: Found) -> str | None:
    """Write the winner's profile; the path of its file."""
    if found.done is None or found.done.winner is None:
        return None
    settings = found.space.settings(found.space.candidate(found.done.winner))
    try:
        made = tuned.proven(found.place, settings, found.lines, found.done)
    except (LookupError, TypeError, ValueError) as error:
        raise DeclarationError(f"the host's journal makes no profile: {one_line(error)}") from error
    return str(profiles.keep(made))


def _page(out: Path, host: str, found: Found) -> str:
    from pyinfra_vllm.operations.tuning import begins
    from pyinfra_vllm.report import tuning as pages

    told = pages.Tuned(
        host=host,
        place=found.place,
        slo=found.setup.slo,
        changes=_changes(found),
        ruled_out=found.space.ruled_out,
        lines=found.lines,
        done=found.done,
        waits=f"next is {begins(found)}" + (f"; {found.why}" if found.why else ""),
    )
    path = out / PAGE
    with _telling(out):
        path.write_text(pages.render(told, datetime.now(UTC)), encoding="utf-8")
    return str(path)


@contextmanager
def _telling(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DeclarationError(f"--out {out} can't be written to: {error.strerror}") from error
