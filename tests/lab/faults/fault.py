"""A fault: how it strikes, whether it passes by itself, and within what time the host must be in
order after it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from .ground import Ground

SOON_S = 30.0
# After a long cause: whoever tries again waits up to a minute, and the host looks after itself every two
# minutes.
RETRIED_S = 150.0


@dataclass(frozen=True)
class Scene:
    """The situation in which a fault strikes, and where it notes what is wrong.

    pid: the process at the fault point; 0 where none stands there
    old, new: the two releases
    wrong: a sentence for everything that a fault sees and that must not be
    """

    pid: int
    old: str
    new: str
    wrong: list[str] = field(default_factory=list)


Act = Callable[[Ground, Scene], None]
Look = Callable[[Ground], bool]


def nothing(ground: Ground, scene: Scene) -> None:
    """No fault, or one that the release itself brings."""


def never(ground: Ground) -> bool:
    """The cause has ended as soon as it has struck."""
    return False


@dataclass(frozen=True)
class Fault:
    """One class of faults.

    It gets the host, and the process at the fault point, which goes on afterwards unless it is `deadly`.

    title: what is broken, for people
    strike, mend: do it; take it away again, where it lasts
    goes_on: whether the cause is still there, where it passes by itself
    deadly: the process at the fault point is gone
    lasting: the host can't write down how it ended, or can't act, until it is mended
    limit_s: within so long after the cause's end the old or the proven new release generates tokens and the
        switch has ended
    spares_new: it breaks what the old release needs, and nothing of the new one's, so they must not share it
    clock_s: seconds by which the process's clock steps at the fault point, instead of stopping there
    lasts_s: about as long as its cause lasts: long ones begin first
    """

    title: str
    strike: Act = nothing
    mend: Act = nothing
    goes_on: Look = never
    deadly: bool = False
    lasting: bool = False
    limit_s: float = SOON_S
    spares_new: bool = False
    clock_s: float = 0.0
    lasts_s: float = 0.0


def both(first: Act, then: Act) -> Act:
    def strike(ground: Ground, scene: Scene) -> None:
        first(ground, scene)
        then(ground, scene)

    return strike


class Passing:
    """When the cause of a fault that passes by itself ends, for each host."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}

    def begin(self, ground: Ground, seconds: float) -> None:
        self._until[ground.host.name] = time.monotonic() + seconds

    def goes_on(self, ground: Ground) -> bool:
        return time.monotonic() < self._until.get(ground.host.name, 0.0)
