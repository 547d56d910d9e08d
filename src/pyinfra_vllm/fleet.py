"""Loads the declaration of a whole fleet, layer by layer, all checked before any host is contacted.

`check()` is pyinfra's hook (top-level config.py calls it), `declared()` is what deploy.py uses, `way_back()`
and `root_of()` are what rollback.py uses, `load()` serves the `pyinfra-vllm` commands. inventory.py has the
layers' order.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from pyinfra.api.exceptions import PyinfraError
from pyinfra.api.inventory import Inventory
from pyinfra.context import state
from pyinfra_cli.exceptions import CliError
from typing_extensions import override

from . import hearing, hub_endpoint, pyinfra_command, spoken
from . import inventory as inventories
from .catalog import shapes
from .checkpoint import LOCK_FILE, Lock
from .config import (
    Declared,
    Fleet,
    Merged,
    Overrides,
    Problems,
    Rollout,
    Service,
    cards,
    declare,
    merge,
    profiles,
)
from .config.checks import (
    check_swarm,
    common_rollout,
    estimate_warnings,
    network_warnings,
    profile_warnings,
    restarts_warnings,
    window_warnings,
)
from .config.declared import KEYS
from .config.fields import no_control
from .config.layers import located
from .config.models import API_KEY
from .config.problems import nearest
from .errors import CheckpointRefused, DeclarationError, LockError, RolloutError
from .inventory import root_of
from .printable import printable
from .spoken import WayBack

__all__ = [
    "InvalidDeclaration",
    "check",
    "declared",
    "from_inventory",
    "load",
    "root_of",
    "way_back",
]

# A rollback must work when the declaration is broken: it asks the host for its releases.
NEEDS_NO_DECLARATION = "rollback.py"
# Then not even `root` is known: hosts would be prepared as if they kept nothing anywhere else.
NOTHING_DECLARED = (
    "nothing is declared for any of its hosts; run in the project's directory, which has group_data/, or name"
    " that folder with --group-data"
)

_current: Fleet | None = None
_way_back: WayBack | None = None


class InvalidDeclaration(CliError, PyinfraError):  # type: ignore[misc]  # pyinfra_cli is untyped
    """Stops the pyinfra command line with one message and exit code 2.

    Both bases are needed: pyinfra lets a PyinfraError out of config.py, and prints a CliError plainly.
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
    need_secrets: bool | None = None,
) -> Fleet:
    """The checked fleet of an inventory file, relative to the current directory.

    `overrides` are the values of `--data`, already parsed; `need_lock=False` is for commands that read the
    declaration without rolling it out: then neither the lock file nor the secrets must be there.
    `need_secrets` is as `need_lock` where it is left out.
    Raises DeclarationError with everything that is wrong, or LockError.
    """
    path = str(inventory)
    loaded = _inventory(path, overrides or {}, group_data)
    files = inventories.Files(path, str(Path.cwd()), group_data)
    return from_inventory(
        loaded, files, need_lock=need_lock, need_secrets=need_secrets, limit=limit, exclude=exclude
    )


def check() -> None:
    """Validates what the running pyinfra command is about, before it loads the inventory or contacts a host.

    Does nothing unless deploy files are run, so that `pyinfra INVENTORY exec`, `fact` and the like stay
    usable. Raises InvalidDeclaration, which ends pyinfra with exit code 2.
    """
    hearing.guard()
    pyinfra_command.order_groups()
    context = click.get_current_context(silent=True)
    operations = context.params.get("operations") if context is not None else None
    if context is None or not operations or not all(name.endswith(".py") for name in operations):
        return
    pyinfra_command.watch_over(context.params)
    back = [name for name in operations if Path(name).name == NEEDS_NO_DECLARATION]
    try:
        spoken.check_options(context.params, waves=len(back) < len(operations))
        if back:
            _check_way_back(context.params)
        if len(back) < len(operations):
            _check_declaration(context.params)
    except RolloutError as error:
        raise InvalidDeclaration(error) from error


def _check_way_back(given: Mapping[str, Any]) -> None:
    global _way_back
    data = spoken.parse_data(given.get("data") or ())
    _way_back = spoken.way_back(data)
    loaded = _inventory(given["inventory"], data, given.get("group_data") or ())
    spoken.check_way_back_hosts(loaded, given.get("limit") or (), given.get("exclude") or ())


def _check_declaration(given: Mapping[str, Any]) -> None:
    global _current
    _current = load(
        given["inventory"],
        spoken.parse_data(given.get("data") or ()),
        given.get("group_data") or (),
        limit=given.get("limit") or (),
        exclude=given.get("exclude") or (),
    )
    for warning in _current.warnings:
        click.echo(f"--> {click.style('Warning', 'yellow')}: {printable(warning)}", err=True)


def declared() -> Fleet:
    """The fleet of this run: what `check()` found, or else what the running inventory says."""
    global _current
    hearing.guard()
    if _current is None:
        try:
            given = pyinfra_command.given()
            spoken.check_options(given, waves=True)
            path = str(given["inventory"])
            loaded = inventories.in_order(state.inventory, path)
            _current = from_inventory(loaded, inventories.Files(path, str(Path.cwd()), ()))
        except RolloutError as error:
            raise InvalidDeclaration(error) from error
    return _current


def way_back() -> WayBack:
    """The arguments of rollback.py, from `check()` or else from the running inventory (`--data`)."""
    global _way_back
    if _way_back is None:
        try:
            _way_back = spoken.way_back(state.inventory.override_data)
        except RolloutError as error:
            raise InvalidDeclaration(error) from error
    return _way_back


def _inventory(path: str, data: Mapping[str, Any], group_data: Sequence[str]) -> Inventory:
    loaded = inventories.load(path, data, group_data)
    if not len(loaded):
        raise DeclarationError(f"{path} {inventories.NO_HOSTS}{inventories.meant(path)} Nothing was done.")
    return loaded


def from_inventory(
    inventory: Inventory,
    files: inventories.Files,
    *,
    need_lock: bool = True,
    need_secrets: bool | None = None,
    limit: Iterable[str] = (),
    exclude: Iterable[str] = (),
) -> Fleet:
    """The checked fleet of a loaded inventory. Raises DeclarationError or LockError."""
    found = read(inventory, files, limit, exclude)
    found.problems.raise_if_any()
    if need_lock if need_secrets is None else need_secrets:
        _check_secrets(found)
        found.problems.raise_if_any()
    lock = _locked(found.hosts) if need_lock else Lock()
    return Fleet(found.hosts, found.rollout, lock, found.overrides, found.selected, warnings(found.hosts))


@dataclass(frozen=True)
class Read:
    """The declarations of an inventory and its group data, as far as they could be read, and every problem.

    hosts: those whose declaration is whole
    merged: the layers of every host
    """

    hosts: dict[str, Declared]
    merged: dict[str, Merged]
    rollout: Rollout
    overrides: Overrides
    selected: tuple[str, ...]
    problems: Problems


def read(
    inventory: Inventory,
    files: inventories.Files,
    limit: Iterable[str] = (),
    exclude: Iterable[str] = (),
) -> Read:
    """Everything that is declared. Raises nothing for what is wrong: it is in `problems`."""
    problems = Problems()
    overrides = spoken.overrides(inventory.override_data, problems)
    spoken.refuse_rollback_keys(inventory.override_data, problems)
    own = (cards.layer(problems), profiles.layer(problems))
    layers = {host.name: list(inventories.layers(inventory, host.name, files)) for host in inventory}
    if layers and not any(layer.values for mine in layers.values() for layer in mine):
        problems.add(files.inventory, "", NOTHING_DECLARED)
    merged = {name: merge([*own, *mine]) for name, mine in layers.items()}
    _check_keys(inventory, files, problems)
    selected = spoken.selected(inventory, tuple(limit), tuple(exclude), problems)
    declared = {name: declare(name, values, problems) for name, values in merged.items()}
    hosts = {name: host for name, host in declared.items() if host is not None}
    rollout = common_rollout(hosts, merged, problems)
    check_swarm(hosts, merged, problems)
    return Read(hosts, merged, rollout, overrides, selected, problems)


def warnings(hosts: Mapping[str, Declared]) -> tuple[str, ...]:
    """Return warnings: declarations that are valid and probably a mistake."""
    if not any(declared.services for declared in hosts.values()):
        return ("no service is declared for any host; is this the project's directory?",)
    return (
        *network_warnings(hosts),
        *window_warnings(hosts),
        *estimate_warnings(hosts),
        *restarts_warnings(hosts),
        *profile_warnings(hosts),
    )


def _check_keys(inventory: Inventory, files: inventories.Files, problems: Problems) -> None:
    """Other people's data may stand beside ours, but not a slip of the pen, nor what belongs to `--data`."""
    places = [(key, files.source("all", key)) for key in inventory.data]
    for group, values in inventory.group_data.items():
        places += [(key, files.source(group, key)) for key in values]
    for name, values in inventory.host_data.items():
        places += [(key, f"{files.inventory} (host {name})") for key in values]
    for key, source in places:
        if key in spoken.OVERRIDE_KEYS:
            problems.add(source, key, f"only for one run: give it as `--data {key}=...`")
        elif (meant := spoken.slip(str(key), KEYS)) is not None:
            problems.add(source, key, f'unknown key; did you mean "{meant}"?')


def _check_secrets(found: Read) -> None:
    """Each secret that this run needs must be there now, so that no host is left half way without it."""
    for name in found.selected:
        for service in found.hosts[name].services:
            for on_host, on_control in service.secrets.items():
                if reason := _unusable(on_host, os.environ.get(on_control)):
                    place = located(found.merged[name], service.name, ("secrets", on_host))
                    fix = f"the environment variable {on_control} {reason}; set it and run again"
                    found.problems.add(*place, fix)


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
    """The lock file, with an entry for every declared model.

    Raises LockError, or DeclarationError where no Hub can be meant.
    """
    models = {(item.model, item.revision) for host in hosts.values() for item in host.services}
    if not models:
        return Lock()
    hub_endpoint.check()
    try:
        lock = Lock.load(LOCK_FILE)
    except LockError as error:
        raise LockError(inventories.naming(str(error))) from error
    if missing := [problem for model in sorted(models) if (problem := unlocked(lock, *model))]:
        raise LockError("\n".join(missing))
    refused = [
        f"{host}: service {service.name}: {problem}"
        for host, declared in hosts.items()
        for service in declared.services
        if (problem := refused_code(lock, service) or refused_form(lock, service))
    ]
    if refused:
        raise CheckpointRefused("\n".join(refused))
    return lock


def unlocked(lock: Lock, model: str, revision: str) -> str:
    """Why the lock file does not say what a model means, and what to do; empty where it does."""
    try:
        lock.get(model, revision)
    except LockError as error:
        known = {entry.repo for entry in lock.entries} | set(shapes.names())
        meant = None if model in known else nearest(model, known, cutoff=0.85)
        return inventories.naming(str(error)) + (f' Or did you mean "{meant}"?' if meant else "")
    return ""


SENTENCE_TRANSFORMERS = "modules.json"  # transformers_utils/config.py get_pooling_config
# Flags for repositories in Mistral's own form, and the files that vLLM then reads
# (transformers_utils/config.py, tokenizers/registry.py).
MISTRAL_FORMS = (
    ("--config-format", re.compile(r"params\.json"), "params.json"),
    (
        "--tokenizer-mode",
        re.compile(r"tekken\.json|tokenizer(\.mm)?\.model\.v.*"),
        "tekken.json or tokenizer.model.v*",
    ),
)


def loads_consolidated(service: Service) -> bool:
    """Whether a service loads Mistral's own form of weights (model_loader/default_loader.py)."""
    return service.flags.get("--load-format") == "mistral"


def refused_form(lock: Lock, service: Service) -> str:
    """Why the files that are locked are not those that the service's flags load; empty where they are."""
    paths = [file.path for file in lock.get(service.model, service.revision).files]
    again = f"Take the flag out, or run `{inventories.command('lock')}` again."
    if loads_consolidated(service) and not any(path.startswith("consolidated") for path in paths):
        return (
            f"{service.model} is locked without consolidated*.safetensors, and flags: {{load-format:"
            f" mistral}} loads nothing else. No host was contacted. {again}"
        )
    if SENTENCE_TRANSFORMERS in paths and service.flags.get("--runner") != "generate":
        return (
            f"{service.model} is a model for embeddings (sentence-transformers: it has"
            f" {SENTENCE_TRANSFORMERS}), and the gate measures generated text, so it could never pass."
            " No host was contacted. Declare another model."
        )
    for flag, needed, told in MISTRAL_FORMS:
        elsewhere = flag == "--tokenizer-mode" and "--tokenizer" in service.flags
        asked = service.flags.get(flag) == "mistral" and not elsewhere
        if asked and not any(map(needed.fullmatch, paths)):
            return (
                f"{service.model} is locked without {told}, which flags: {{{flag.removeprefix('--')}:"
                f" mistral}} needs: it is in Hugging Face's form. No host was contacted. {again}"
            )
    return ""


def refused_code(lock: Lock, service: Service) -> str:
    """Why a checkpoint locked with code of its own may not serve; empty where it has none, or a reason."""
    if service.allow_code or not lock.get(service.model, service.revision).brings_code:
        return ""
    return (
        f"{service.model} is locked with Python code of its own, and the service does not allow it. No host"
        f" was contacted. Declare why it may run (`allow_code`), or run"
        f" `{inventories.command('lock')}` without it."
    )
