"""Asks the hosts of an inventory something, in parallel; a host that is down keeps no other from answering.

The commands that only look go through here. With operations/, facts/, fleet.py, spoken.py and inventory.py it
is what imports pyinfra: hosts are reached exactly as `pyinfra INVENTORY deploy.py` reaches them (ssh_*,
`_sudo` and host keys of the inventory). It runs no operation, and changes nothing unless the question does:
only `calibrate`, `tune` and `prune --yes` ask for something to be done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Generic, Self, TypeVar

import gevent
from paramiko import SSHException
from pyinfra.api import Config, Host
from pyinfra.api.exceptions import ConnectError, PyinfraError
from pyinfra.api.inventory import Inventory
from pyinfra.api.state import State
from pyinfra.context import ctx_host, ctx_inventory, ctx_state

from pyinfra_vllm.facts.told import fact

from . import hearing
from . import inventory as inventories
from .errors import DeclarationError, HostError
from .printable import printable

__all__ = ["Answer", "Host", "Hosts", "fact"]

# A host whose disk hangs must not keep a person waiting at night.
LIMIT_S = 60.0

T = TypeVar("T")


@dataclass(frozen=True)
class Answer(Generic[T]):
    """The answer of one host; `problem` says why there is no `value`."""

    host: str
    value: T | None = None
    problem: str = ""


class Hosts:
    """The hosts of an inventory, connected as long as the `with` block lasts. Needs no valid declaration."""

    def __init__(self, inventory: str, limit: Sequence[str] = (), group_data: Sequence[str] = ()) -> None:
        """Raises DeclarationError where the inventory can't be loaded or `limit` matches nothing."""
        hearing.guard()
        self._state = State()
        self._state.cwd = str(Path.cwd())
        ctx_state.set(self._state)
        loaded = inventories.load(inventory, {}, group_data)
        ctx_inventory.set(loaded)
        self._state.init(loaded, Config(IGNORE_ERRORS=True))  # a question without an answer fails alone
        self._hosts = _matching(loaded, limit)

    @property
    def names(self) -> list[str]:
        return [host.name for host in self._hosts]

    def ask(self, question: Callable[[Host], T], limit_s: float | None = LIMIT_S) -> list[Answer[T]]:
        """The answer of each host, in the inventory's order; whatever goes wrong on one is its answer's
        `problem`.

        + limit_s: None waits as long as the question itself does
        """
        asked = [self._state.pool.spawn(_answer, host, question, limit_s) for host in self._hosts]
        gevent.joinall(asked)
        return [greenlet.get() for greenlet in asked]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        gevent.joinall([gevent.spawn(host.disconnect) for host in self._hosts if host.connected], timeout=5)


def _answer(host: Host, question: Callable[[Host], T], limit_s: float | None) -> Answer[T]:
    ctx_host.set(host)  # local to this greenlet
    try:
        with gevent.Timeout(limit_s, TimeoutError(f"no answer within {limit_s or 0:g} s")):
            host.connect(show_errors=False, raise_exceptions=True)
            return Answer(host.name, question(host))
    except HostError as error:
        return Answer(host.name, problem=printable(error))
    except (ConnectError, OSError, EOFError, SSHException, PyinfraError, ValueError) as error:
        host.connected = False  # the next question connects anew
        return Answer(host.name, problem=f"not reached: {_words(error)}")
    except Exception as error:  # whatever it is: it is about what this host said, and the others are asked on
        unexpected = f"{type(error).__name__}: {printable(error)}"
        return Answer(
            host.name, problem=f"internal error (bug in pyinfra-vllm) over its answer: {unexpected}"
        )


def _words(error: Exception) -> str:
    return (
        "the connection was closed"
        if isinstance(error, EOFError)
        else printable(error) or type(error).__name__
    )


def _matching(inventory: Inventory, limit: Iterable[str]) -> list[Host]:
    """The hosts that `--limit` names, by name, pattern or group; all of them without one."""
    wanted: set[str] = set()
    for pattern in limit:
        names = inventories.matching(inventory, pattern)
        if not names:
            raise DeclarationError(f"{pattern!r} matches no host or group; no host was contacted.")
        wanted |= names
    return [host for host in inventory if not wanted or host.name in wanted]
