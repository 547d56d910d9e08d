"""One tick of the timer: look at the windows, then at the hosts, and run pyinfra only when due."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from .. import deploying, fleet
from ..asking import Hosts
from ..errors import DeclarationError
from ..report import looking
from .due import CLOSED, RUNS, Decision, decide, next_opening, openings

OPERATOR = "schedule"
NOTHING = Decision()

Say = Callable[[str], None]


@dataclass(frozen=True)
class Tick:
    """The result of a tick.

    `ran` is the command line, empty where nothing was due; `exit_code` is its own then.
    """

    exit_code: int
    said: str
    decision: Decision = NOTHING
    ran: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, object]:
        return {
            "exit_code": self.exit_code,
            "said": self.said,
            "findings": [finding.as_dict() for finding in self.decision.findings],
            "ran": list(self.ran),
        }


def tick(
    inventory: str,
    limit: Sequence[str],
    at: datetime,
    say: Say,
    run: deploying.Run = deploying.run,
    dry: bool = False,
    group_data: Sequence[str] = (),
) -> Tick:
    """Roll out what is due at `at`, alone. Raises DeclarationError or LockError before any host is contacted.

    + dry: decide, and do not run
    """
    deploying.need_deploy()
    with alone(inventory) as first:
        if not first:
            return Tick(0, "another run for this inventory has not ended; nothing to do")
        found = _decision(inventory, limit, at, group_data)
        if isinstance(found, Tick):
            return found
        for finding in found.findings:
            if finding.kind not in (RUNS, CLOSED):
                say(f"{finding.host} {finding.service}: {finding.kind}: {finding.why}")
        if not found.hosts:
            return Tick(found.exit_code, found.stopped or "nothing is due", found)
        words = command(inventory, found.hosts, group_data)
        if dry:
            return Tick(found.exit_code, f"due: {', '.join(found.hosts)}", found, tuple(words))
        say(f"due: {', '.join(found.hosts)}")
        code = run(words)
        return Tick(code or found.exit_code, f"pyinfra ended with {code}", found, tuple(words))


def command(inventory: str, hosts: Sequence[str], group_data: Sequence[str] = ()) -> list[str]:
    """The rollout of those hosts, as a person would type it."""
    data = {"operator": f"{OPERATOR}@{os.uname().nodename}", "reason": "its window is open"}
    return deploying.command(inventory, hosts, group_data, data)


@contextmanager
def alone(inventory: str) -> Iterator[bool]:
    """Whether nobody else ticks for this inventory; the kernel forgets the lock with the process."""
    path = _lock_file(inventory)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise DeclarationError(
            f"{path} can't be written: {error.strerror}. It keeps two ticks apart: make it writable, or set"
            " HOME to a folder that is. No host was contacted."
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def _decision(
    inventory: str, limit: Sequence[str], at: datetime, group_data: Sequence[str]
) -> Decision | Tick:
    loaded = fleet.load(inventory, group_data=group_data, limit=limit)
    found = openings(loaded, at)
    if not any(opening.open for opening in found):
        coming = next_opening(found)
        following = f"the next opens at {coming.isoformat()}" if coming else "none opens again"
        return Tick(0, f"every window is closed; {following}")
    with Hosts(inventory, loaded.selected, group_data) as hosts:
        answers = hosts.ask(looking.at_status(loaded))
    return decide(found, answers, loaded.rollout.max_failures)


def _lock_file(inventory: str) -> Path:
    """Private to this account, never a name in /tmp that others could take; and the same for a timer as for a
    session, which alone has XDG_RUNTIME_DIR.
    """
    name = hashlib.sha256(str(Path(inventory).resolve()).encode()).hexdigest()[:16]
    return Path.home() / ".cache/pyinfra-vllm" / f"schedule-{name}.lock"
