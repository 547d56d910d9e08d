"""Loads the declaration of a whole fleet: inventory and group data, layer by layer, checked before any host is contacted.

`check()` is pyinfra's hook (top-level config.py calls it), `declared()` is what deploy.py uses, `load()` serves the
`pyinfra-vllm` commands. Layers go from general to particular, all, groups of every host, groups of some in the
inventory's order, host, --data.
"""

from __future__ import annotations

import ast
import getpass
import os
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from pyinfra.api.exceptions import PyinfraError
from pyinfra.api.inventory import Inventory
from pyinfra.context import state
from pyinfra_cli.exceptions import CliError
from pyinfra_cli.util import parse_cli_arg
from typing_extensions import override

from . import hub_endpoint
from . import inventory as inventories
from .checkpoint import LOCK_FILE, Lock
from .config import Declared, Fleet, Layer, Merged, Overrides, Problems, declare, merge
from .config.checks import common_rollout, network_warnings, window_warnings
from .config.declared import DEFAULT_ROOT, KEYS
from .config.fields import no_control
from .config.layers import located
from .config.models import API_KEY
from .config.problems import nearest
from .config.reading import read
from .errors import CheckpointRefused, DeclarationError, LockError, RolloutError

__all__ = [
    "DEFAULT_ROOT",
    "InvalidDeclaration",
    "check",
    "declared",
    "from_inventory",
    "load",
    "parse_data",
    "spoken",
]

_OVERRIDE_KEYS = tuple(Overrides.model_fields)
# The way back must stay open when the declaration is broken: it asks the host what it has.
NEEDS_NO_DECLARATION = "rollback.py"
_ROLLBACK_KEYS = ("service", "release")
# How like one of our keys a foreign key must be to be taken for a slip of the pen.
_SLIP = 0.85

_current: Fleet | None = None


class InvalidDeclaration(CliError, PyinfraError):  # type: ignore[misc]  # pyinfra_cli is untyped
    """Stops the pyinfra command line with one message and exit code 2.

    Both bases are needed: pyinfra lets a PyinfraError out of config.py as it is, and prints a CliError without traceback.
    """

    def __init__(self, error: RolloutError) -> None:
        super().__init__(str(error))
        self.exit_code = error.exit_code

    @override
    def show(self, file: Any = None) -> None:
        click.echo(f"--> {click.style('Not started', 'red', bold=True)}: {self.message}", err=True)


def load(
    inventory: str | Path,
    overrides: Mapping[str, Any] | None = None,
    group_data: Sequence[str] = (),
    *,
    limit: Iterable[str] = (),
    exclude: Iterable[str] = (),
    need_lock: bool = True,
) -> Fleet:
    """The checked fleet of an inventory file, relative to the current directory.

    `overrides` are the values of `--data`, already parsed; `need_lock=False` is for commands that read the declaration
    without rolling it out: then neither the lock file nor the secrets must be there.
    Raises DeclarationError with everything that is wrong, or LockError.
    """
    path = str(inventory)
    loaded = inventories.load(path, overrides or {}, group_data)
    if not len(loaded):
        raise DeclarationError(f"{path} has no hosts. Nothing was done.")
    files = _Files(path, str(Path.cwd()), group_data)
    return from_inventory(loaded, files, need_lock=need_lock, limit=limit, exclude=exclude)


def check() -> None:
    """Validates what the running pyinfra command is about, before it loads the inventory or contacts a host.

    Does nothing unless deploy files are run, so that `pyinfra INVENTORY exec`, `fact` and the like stay usable, nor for
    rollback.py. Raises InvalidDeclaration, which ends pyinfra with exit code 2.
    """
    global _current
    context = click.get_current_context(silent=True)
    operations = context.params.get("operations") if context is not None else None
    if context is None or not operations or not all(name.endswith(".py") for name in operations):
        return
    if all(Path(name).name == NEEDS_NO_DECLARATION for name in operations):
        return
    given = context.params
    try:
        _check_options(given)
        _current = load(
            given["inventory"],
            parse_data(given.get("data") or ()),
            given.get("group_data") or (),
            limit=given.get("limit") or (),
            exclude=given.get("exclude") or (),
        )
    except RolloutError as error:
        raise InvalidDeclaration(error) from error
    for warning in _current.warnings:
        click.echo(f"--> {click.style('Warning', 'yellow')}: {warning}", err=True)


def _check_options(given: Mapping[str, Any]) -> None:
    """Refuses what pyinfra offers but a rollout must not have."""
    if given.get("no_wait"):
        # pyinfra 3.10, api/operations.py: without waiting, failed hosts are never counted and the exit code is 0.
        raise DeclarationError(
            "--no-wait hides failed hosts from pyinfra; run without it. No host was contacted."
        )
    if given.get("serial"):
        # One host runs all waves before the next runs any: hosts would be held for want of a canary's verdict.
        raise DeclarationError(
            "--serial takes hosts in another order than the waves; run with `--parallel 1`. No host was contacted."
        )


def declared() -> Fleet:
    """The fleet of this run: what `check()` found, or else what the running inventory says."""
    global _current
    if _current is None:
        try:
            _current = from_inventory(state.inventory, _Files("inventory", str(Path.cwd()), ()))
        except RolloutError as error:
            raise InvalidDeclaration(error) from error
    return _current


def spoken() -> Overrides:
    """What the operator said by `--data`, without a look at anything declared. Raises InvalidDeclaration."""
    problems = Problems()
    overrides = _overrides(state.inventory.override_data, problems)
    try:
        problems.raise_if_any()
    except RolloutError as error:
        raise InvalidDeclaration(error) from error
    return overrides


def parse_data(items: Iterable[str]) -> dict[str, Any]:
    """`key=value` arguments, the way pyinfra reads `--data`. Raises DeclarationError."""
    values = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals:
            raise DeclarationError(f"--data {item}: must be key=value. No host was contacted.")
        values[key] = parse_cli_arg(value)
    return values


def from_inventory(
    inventory: Inventory,
    files: _Files,
    *,
    need_lock: bool = True,
    limit: Iterable[str] = (),
    exclude: Iterable[str] = (),
) -> Fleet:
    """The checked fleet of a loaded inventory. Raises DeclarationError or LockError."""
    problems = Problems()
    overrides = _overrides(inventory.override_data, problems)
    merged = {host.name: merge(list(_layers(inventory, host.name, files))) for host in inventory}
    _check_keys(inventory, files, problems)
    selected = _selected(inventory, tuple(limit), tuple(exclude), problems)
    hosts = {}
    for name, values in merged.items():
        found = declare(name, values, problems)
        if found is not None:
            hosts[name] = found
    problems.raise_if_any()
    rollout = common_rollout(hosts, merged, problems)
    if need_lock:
        _check_secrets(hosts, merged, selected, problems)
    problems.raise_if_any()
    lock = _locked(hosts) if need_lock else Lock()
    warnings = (*network_warnings(hosts), *window_warnings(hosts))
    if not any(declared.services for declared in hosts.values()):
        warnings = ("no service is declared for any host; is this the project's directory?",)
    return Fleet(hosts, rollout, lock, overrides, selected, warnings)


class _Files:
    """Which file declares a key: group data is executed by pyinfra, which does not remember where a value was."""

    def __init__(self, inventory: str, cwd: str, group_data: Sequence[str]) -> None:
        self.inventory = inventories.shortened(inventory)
        beside = Path(inventory).resolve().parent / "group_data"
        folders = [Path(cwd) / "group_data", beside, *map(Path, group_data)]
        self._folders = list(dict.fromkeys(folder.resolve() for folder in folders))
        self._keys: dict[Path, frozenset[str]] = {}

    def source(self, group: str, key: str) -> str:
        """The last file that assigns `key` for `group`: the same one that won in pyinfra."""
        for folder in reversed(self._folders):
            file = folder if folder.is_file() and folder.stem == group else folder / f"{group}.py"
            if key in self._assigned(file):
                return inventories.shortened(str(file))
        return self.inventory

    def _assigned(self, file: Path) -> frozenset[str]:
        if file not in self._keys:
            tree = ast.parse(file.read_text(encoding="utf-8")) if file.is_file() else ast.Module([], [])
            names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
            self._keys[file] = frozenset(names)
        return self._keys[file]


def _layers(inventory: Inventory, name: str, files: _Files) -> Iterator[Layer]:
    """Every layer of one host, general to particular, each key labelled with its file."""
    host = inventory.get_host(name)
    yield from _labelled("all", inventory.data, files)
    for group in sorted(dict.fromkeys(host.groups), key=lambda group: not _holds_all(inventory, group)):
        yield from _labelled(group, inventory.group_data.get(group, {}), files)
    yield Layer(f"{files.inventory} (host {name})", _ours(inventory.host_data.get(name, {})))
    yield Layer("--data", _ours(inventory.override_data))


def _holds_all(inventory: Inventory, group: str) -> bool:
    """A group of every host (as pyinfra makes one of the inventory file's name) is more general than one of some."""
    return len(inventory.get_group(group, [])) == len(inventory)


def _labelled(group: str, values: Mapping[str, Any], files: _Files) -> Iterator[Layer]:
    for key, value in _ours(values).items():
        yield Layer(files.source(group, key), {key: value})


def _ours(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key in KEYS}


def _check_keys(inventory: Inventory, files: _Files, problems: Problems) -> None:
    """Other people's data may stand beside ours, but not a slip of the pen, nor what belongs to `--data`."""
    places = [(key, files.source("all", key)) for key in inventory.data]
    for group, values in inventory.group_data.items():
        places += [(key, files.source(group, key)) for key in values]
    for name, values in inventory.host_data.items():
        places += [(key, f"{files.inventory} (host {name})") for key in values]
    for key, source in places:
        if key in _OVERRIDE_KEYS:
            problems.add(source, key, f"only for one run: give it as `--data {key}=...`")
        elif (meant := _slip(key, KEYS)) is not None:
            problems.add(source, key, f'unknown key; did you mean "{meant}"?')


def _slip(key: str, known: Sequence[str]) -> str | None:
    return None if key in known or key.startswith("_") else nearest(key, known, cutoff=_SLIP)


def _overrides(data: Mapping[str, Any], problems: Problems) -> Overrides:
    for key, value in data.items():
        known = (*_OVERRIDE_KEYS, *_ROLLBACK_KEYS, *KEYS)
        if (meant := _slip(key, known)) is not None:
            problems.add("--data", key, f'unknown key; did you mean "{meant}"?', value)
    given = {key: value for key, value in data.items() if key in _OVERRIDE_KEYS}
    for key in ("operator", "reason"):
        if key in given:
            given[key] = str(given[key])  # `--data reason=1234` is a ticket's number, not arithmetic
    given.setdefault("operator", _operator())
    found = read(Overrides, given, problems, lambda path: ("--data", ".".join(map(str, path))))
    return found or Overrides()


def _operator() -> str:
    """Who runs this, for the record: the person behind `sudo`, where there is one."""
    try:
        user = os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError, ImportError):  # an account without a name, as in some containers
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def _selected(
    inventory: Inventory, limit: tuple[str, ...], exclude: tuple[str, ...], problems: Problems
) -> tuple[str, ...]:
    """The hosts of this run, in the inventory's order. A limit that matches nothing is an error, not an empty success."""
    chosen = _matching(inventory, limit, "--limit", problems) if limit else {host.name for host in inventory}
    dropped = _matching(inventory, exclude, "--exclude", problems)
    return tuple(host.name for host in inventory if host.name in chosen and host.name not in dropped)


def _matching(inventory: Inventory, patterns: tuple[str, ...], option: str, problems: Problems) -> set[str]:
    found: set[str] = set()
    for pattern in patterns:
        names = inventories.matching(inventory, pattern)
        if not names:
            problems.add(option, "", f"{pattern!r} matches no host or group of the inventory")
        found |= names
    return found


def _check_secrets(
    hosts: Mapping[str, Declared], merged: Mapping[str, Merged], selected: tuple[str, ...], problems: Problems
) -> None:
    """Each secret that this run needs must be there now, and whole: no host may be left half way for want of one."""
    for name in selected:
        for service in hosts[name].services:
            for on_host, on_control in service.secrets.items():
                if reason := _unusable(on_host, os.environ.get(on_control)):
                    place = located(merged[name], service.name, ("secrets", on_host))
                    problems.add(
                        *place, f"the environment variable {on_control} {reason}; set it and run again"
                    )


def _unusable(name: str, secret: str | None) -> str:
    """Why a secret's value can't be used, empty where it can; the value itself is in no message."""
    if not secret:
        return "is not set here"
    try:
        no_control(secret)
    except ValueError as error:
        return f"has a value that {error}"
    if name == API_KEY and not secret.isascii():
        return "has a value that must be ASCII, as it is sent in a header of HTTP"
    return ""


def _locked(hosts: Mapping[str, Declared]) -> Lock:
    """The lock file, with an entry for every declared model. Raises LockError, or DeclarationError where no Hub can be meant."""
    models = {(item.model, item.revision) for host in hosts.values() for item in host.services}
    if not models:
        return Lock()
    hub_endpoint.endpoint()
    lock = Lock.load(LOCK_FILE)
    missing = []
    for model, revision in sorted(models):
        try:
            lock.get(model, revision)
        except LockError as error:
            missing.append(str(error))
    if missing:
        raise LockError("\n".join(missing))
    _refuse_code(hosts, lock)
    return lock


def _refuse_code(hosts: Mapping[str, Declared], lock: Lock) -> None:
    """A checkpoint locked with code of its own serves only where a reason says so. Raises CheckpointRefused."""
    refused = [
        f"{host}: service {service.name}: {service.model} is locked with Python code of its own, and the service does not "
        f"allow it. No host was contacted. Declare why it may run (`allow_code`), or run `pyinfra-vllm lock` without it."
        for host, declared in hosts.items()
        for service in declared.services
        if not service.allow_code and lock.get(service.model, service.revision).brings_code
    ]
    if refused:
        raise CheckpointRefused("\n".join(refused))
