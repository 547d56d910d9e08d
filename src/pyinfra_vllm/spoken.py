"""Reads pyinfra's command line of one run: its options, `--data`, `--limit`.

Contacts no host.

A slip here must end the run before anything is touched, whatever is declared: rollback.py is checked as
deploy.py is.
"""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pyinfra.api.inventory import Inventory
from pyinfra_cli.util import parse_cli_arg

from .config import Overrides, Problems
from .config.declared import KEYS
from .config.problems import nearest
from .config.reading import read
from .errors import DeclarationError
from .inventory import matching

OVERRIDE_KEYS = tuple(Overrides.model_fields)
ROLLBACK_KEYS = ("service", "release")
# Names and sentences, whatever they look like: a ticket's number is not arithmetic, and 4711e0000000 is a
# release.
TEXTS = ("operator", "reason", *ROLLBACK_KEYS)
# How like one of our keys a foreign key must be to be taken for a slip of the pen.
_SLIP = 0.85


@dataclass(frozen=True)
class WayBack:
    """The arguments of rollback.py: which service (None: all) goes back to which release (None: previous)."""

    overrides: Overrides = field(default_factory=Overrides)
    service: str | None = None
    release: str | None = None


def check_options(given: Mapping[str, Any], *, waves: bool) -> None:
    """Refuses what pyinfra offers but we must not have. Raises DeclarationError.

    + waves: whether hosts take turns in waves, as in deploy.py
    """
    if given.get("no_wait"):
        # pyinfra 3.10, api/operations.py: without waiting, failed hosts are never counted and the exit code
        # is 0.
        raise DeclarationError(
            "--no-wait hides failed hosts from pyinfra; run without it. No host was touched."
        )
    if given.get("retry"):
        # A wave whose release went back would be carried out again, and its outcome be the second one's.
        raise DeclarationError(
            "--retry would switch a host again whose release has just gone back; run without it: downloads"
            " and lost connections are tried again anyhow. No host was touched."
        )
    if waves and given.get("serial"):
        # One host runs all waves before the next runs any: hosts would be held for want of a canary's
        # verdict.
        raise DeclarationError(
            "--serial takes hosts in another order than the waves; run with `--parallel 1`. No host was"
            " touched."
        )


def parse_data(items: Iterable[str]) -> dict[str, Any]:
    """`key=value` arguments, the way pyinfra reads `--data`, but texts as they were typed.

    Raises DeclarationError.
    """
    values = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals:
            raise DeclarationError(f"--data {item}: must be key=value. No host was contacted.")
        values[key] = value if key in TEXTS else parse_cli_arg(value)
    return values


def overrides(data: Mapping[str, Any], problems: Problems) -> Overrides:
    """The settings of `data` that hold for this run only."""
    for key, value in data.items():
        if (meant := slip(key, (*OVERRIDE_KEYS, *ROLLBACK_KEYS, *KEYS))) is not None:
            problems.add("--data", key, f'unknown key; did you mean "{meant}"?', value)
    given = {key: value for key, value in data.items() if key in OVERRIDE_KEYS}
    given |= {key: str(given[key]) for key in TEXTS if key in given}
    given.setdefault("operator", _operator())
    found = read(Overrides, given, problems, lambda path: ("--data", ".".join(map(str, path))))
    return found or Overrides()


def refuse_rollback_keys(data: Mapping[str, Any], problems: Problems) -> None:
    """Refuses settings that would narrow a rollout to one service or release, which it can't."""
    for key in ROLLBACK_KEYS:
        if key in data:
            fix = "only for rollback.py; a rollout takes all that its hosts declare: name hosts with --limit"
            problems.add("--data", key, fix, data[key])


def way_back(data: Mapping[str, Any]) -> WayBack:
    """The same for rollback.py. Raises DeclarationError."""
    problems = Problems()
    said = overrides(data, problems)
    problems.raise_if_any()
    service, release = (str(data[key]) if key in data else None for key in ROLLBACK_KEYS)
    return WayBack(said, service, release)


def selected(
    inventory: Inventory, limit: Sequence[str], exclude: Sequence[str], problems: Problems
) -> tuple[str, ...]:
    """The hosts of this run, in the inventory's order.

    That there is none of them is an error, not an empty success.
    """
    chosen = _matching(inventory, limit, "--limit", problems) if limit else {host.name for host in inventory}
    dropped = _matching(inventory, exclude, "--exclude", problems)
    if chosen and chosen <= dropped:
        problems.add("--exclude", "", f"leaves none of the hosts {', '.join(sorted(chosen))}")
    return tuple(host.name for host in inventory if host.name in chosen and host.name not in dropped)


def check_way_back_hosts(inventory: Inventory, limit: Sequence[str], exclude: Sequence[str]) -> None:
    """rollback.py has no waves: hosts go back together, so which ones must have been said.

    Raises DeclarationError.
    """
    problems = Problems()
    selected(inventory, limit, exclude, problems)
    problems.raise_if_any()
    if not limit and len(inventory) > 1:
        raise DeclarationError(
            f"rollback.py restarts all of its hosts at once, and the inventory has {len(inventory)}: name"
            " one with `--limit HOST`, or all of them with `--limit '*'`. No host was contacted."
        )


def slip(key: str, known: Sequence[str]) -> str | None:
    """The key of ours that `key` was probably meant to be; None for one of ours, and for somebody else's."""
    return None if key in known or key.startswith("_") else nearest(key, known, cutoff=_SLIP)


def _operator() -> str:
    """The operator, for the record: the person behind `sudo`, where there is one."""
    try:
        user = os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError, ImportError):  # an account without a name, as in some containers
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def _matching(inventory: Inventory, patterns: Sequence[str], option: str, problems: Problems) -> set[str]:
    found: set[str] = set()
    for pattern in patterns:
        names = matching(inventory, pattern)
        if not names:
            problems.add(option, "", f"{pattern!r} matches no host or group of the inventory")
        found |= names
    return found
