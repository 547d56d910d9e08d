"""`pyinfra-vllm validate`: everything that is wrong with a declaration, at once. Contacts no host."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import click

from pyinfra_vllm.rollout.plans import host_names

from .. import fleet, validation
from .. import inventory as inventories
from ..checkpoint import LOCK_FILE, Lock
from ..config import Merged, Problems, Service, profiles
from ..config.checks import window_warnings
from ..config.layers import ABSENT, located, lookup
from ..config.layers import Path as LayerPath
from ..config.problems import MISSING, Problem
from ..errors import DeclarationError, LockError, RolloutError
from ..printable import printable
from ..text import counted, wrapped
from . import options

NARROWEST = 40
# Of a LockError: the entry that it is about, and what is wrong.
IN_LOCK = re.compile(rf"{re.escape(str(LOCK_FILE))}(?:, entry (\S+?))?:? (.*)")


@dataclass(frozen=True)
class Result:
    """The problems and warnings of one declaration.

    + unchecked: checks that only the hosts can make, in words
    """

    hosts: tuple[str, ...]
    problems: tuple[Problem, ...]
    warnings: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        return DeclarationError.exit_code if self.problems else 0


def run(inventory: str, group_data: Sequence[str] = (), at: datetime | None = None) -> Result:
    """The problems of a declaration. Raises DeclarationError where inventory or group data can't be read."""
    loaded = inventories.load(inventory, {}, group_data)
    found = fleet.read(loaded, inventories.Files(inventory, str(Path.cwd()), group_data))
    problems = found.problems
    if not found.merged:
        fix = f"{inventories.NO_HOSTS}{inventories.meant(inventory)}"
        problems.add(inventories.shortened(inventory), "", fix)
    services = [(host, service) for host, declared in found.hosts.items() for service in declared.services]
    lock = _lock(problems) if services else None
    known: list[tuple[Service, list[validation.Found]]] = []
    broken = problems.found and not services  # what is declared can't be read, so nothing is said of it
    warned = [] if broken else _warnings(found)
    for host, service in services:
        with problems.about(host):
            _check_locked(service, lock, problems)
            _note(service, lock, known, warned)
            for path, message in _once(known, service, lock, at or datetime.now(UTC)):
                where = _where(found.merged[host], service.name, path)
                value = lookup(service.model_dump(), path) if path[0] != "window" else ABSENT
                problems.add(*where, message, MISSING if value is ABSENT else value)
    unchecked = dict.fromkeys(filter(None, (validation.unchecked(service) for _, service in services)))
    return Result(tuple(found.merged), tuple(problems.found), tuple(warned), tuple(unchecked))


def _where(merged: Merged, service: str, path: LayerPath) -> tuple[str, str]:
    """File and key of a problem: of the declaration, or of a measured profile's own file."""
    if path[0] == profiles.KEY:
        return str(path[1]), ""
    return located(merged, service, path)


def _warnings(found: fleet.Read) -> list[str]:
    """Return warnings, once for all hosts. Windows that never open are problems here, not warnings."""
    windows = window_warnings(found.hosts)
    about: dict[str, list[str]] = {}
    for warning in fleet.warnings(found.hosts):
        if warning not in windows:
            host, _, text = warning.rpartition(": service ")
            about.setdefault(f"service {text}" if host else text, []).append(host)
    return [f"{text} ({_named(hosts, found.merged)})" if hosts[0] else text for text, hosts in about.items()]


def _note(
    service: Service,
    lock: Lock | None,
    known: list[tuple[Service, list[validation.Found]]],
    warned: list[str],
) -> None:
    """Adds the resolver's warnings about a service that wasn't seen before."""
    if lock is None or any(other == service for other, _ in known):
        return
    texts = validation.warnings(service, lock.find(service.model, service.revision))
    warned += [text for text in (f"{service.name}: {each}" for each in texts) if text not in warned]


def _named(hosts: Sequence[str], everyone: Iterable[str]) -> str:
    return f"on {', '.join(text for text, _ in host_names(hosts, tuple(everyone)))}"


def _once(
    known: list[tuple[Service, list[validation.Found]]], service: Service, lock: Lock | None, at: datetime
) -> list[validation.Found]:
    """The problems of a service, worked out once however many hosts declare the same."""
    for other, problems in known:
        if other == service:
            return problems
    checkpoint = lock.find(service.model, service.revision) if lock else None
    problems = list(validation.problems(service, checkpoint, at))
    known.append((service, problems))
    return problems


def _lock(problems: Problems) -> Lock | None:
    try:
        return Lock.load(LOCK_FILE)
    except LockError as error:
        message = inventories.naming(str(error))
        found = IN_LOCK.fullmatch(message)
        entry, fix = found.groups("") if found else ("", message)
        problems.add(str(LOCK_FILE), entry, fix)
        return None


def _check_locked(service: Service, lock: Lock | None, problems: Problems) -> None:
    if lock is None:
        return
    key = f"{service.model}@{service.revision}"
    problem = fleet.unlocked(lock, service.model, service.revision)
    problem = problem or fleet.refused_code(lock, service) or fleet.refused_form(lock, service)
    if problem:
        problems.add(str(LOCK_FILE), key, problem.removeprefix(f"{LOCK_FILE} "))


def sentences(result: Result, inventory: str, width: int) -> list[str]:
    """The result for a person: each cause once, with the hosts that have it."""
    count = len(result.problems)
    hosts = counted(len(result.hosts), "host")
    if not count:
        made = [f"{inventory} is valid: {hosts}."]
    else:
        made = [f"{inventory} has {counted(count, 'problem')} ({hosts}):"]
    for problem in result.problems:
        made += ["", *_wrapped(problem.where, width, ""), *_wrapped(problem.fix, width, "    ")]
        if problem.hosts:
            made += _wrapped(_named(problem.hosts, result.hosts), width, "    ")
    for title, told in (("Warning", result.warnings), ("Only the hosts can tell", result.unchecked)):
        made += [line for text in told for line in _wrapped(f"{title}: {text}", width, "")]
    if not count:
        made.append(f"Next: `{inventories.command('plan')}`")
    return made


def _wrapped(text: str, width: int, indent: str) -> list[str]:
    return wrapped(printable(text), width, indent, indent or "    ")


@click.command()
@options.inventory
@options.group_data
@click.option("--json", "json_wanted", is_flag=True, help="Print the problems as JSON.")
def validate(inventory: str, group_data: tuple[str, ...], json_wanted: bool) -> int:
    """Check a declaration without asking a host: form, flags, fit, windows, hooks and lock; all at once.

    Exit code 2 when there is a problem.
    """
    try:
        result = run(inventory, group_data)
    except RolloutError as error:
        if not json_wanted:
            raise
        file = error.file if isinstance(error, inventories.BrokenFile) else inventory
        result = Result((), (Problem(file, "", str(error)),))
    if json_wanted:
        told = {
            "problems": [problem.as_dict() for problem in result.problems],
            "warnings": list(result.warnings),
            "unchecked": list(result.unchecked),
        }
        click.echo(json.dumps(told, indent=2))
    else:
        width = max(NARROWEST, shutil.get_terminal_size((80, 24)).columns)
        click.echo("\n".join(sentences(result, inventory, width)))
    return result.exit_code
