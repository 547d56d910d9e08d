"""Which faults strike at which steps: the matrix as data."""

from __future__ import annotations

from dataclasses import dataclass

# Every entry that a rollout writes, in its order. A fault point is the moment after its entry is on the disk.
BEFORE = (
    "begin.done",
    "prove-way-back.intended",
    "prove-way-back.done",
    "prove-way-forward.intended",
    "prove-way-forward.done",
    "measure-before.intended",
    "measure-before.done",
    "window.intended",
    "window.done",
)
BETWEEN = (
    "activate.intended",
    "activate.done",
    "ready.intended",
    "ready.done",
    "kernel.intended",
    "kernel.done",
    "measure-after.intended",
    "measure-after.done",
    "judge.done",
)
AFTER = ("commit.done", "end.done")
KEPT = BEFORE + BETWEEN + AFTER
BACK = ("restore.intended", "restore.done")
SOAK = ("soak.intended", "soak.done")

GOOD, SLOW, SOAKED = "good", "slow-kernel", "soaked"
OWN_FAULTS = {
    "crashes": "crashes after it was healthy, again and again",
    "exits": "ends with status 0, again and again",
    "hangs-start": "hangs in its start",
    "hangs-stop": "hangs in its stop",
    "silent": "answers, and gives no tokens",
}


@dataclass(frozen=True)
class Case:
    """One fault at one step of a switch to one kind of release.

    to: `good` is the other good release, `soaked` the same with a soak; else a release that fails by itself
    by: who orders it: the host's own switch unit with the product's order, or `pyinfra` as an operator types it
    """

    fault: str
    point: str
    to: str = GOOD
    by: str = "order"

    def __str__(self) -> str:
        words = [self.fault, self.point]
        words += [self.to] if self.to != GOOD else []
        return "/".join([*words, *([self.by] if self.by != "order" else [])])


def _each(fault: str, *points: str, to: str = GOOD, by: str = "order") -> list[Case]:
    return [Case(fault, point, to, by) for point in points]


_back = {"to": SLOW}
_soaked = {"to": SOAKED}
STRATEGIC = ("prove-way-back.done", "activate.intended", "activate.done", "ready.done", "judge.done")
SERVER_IS_OLD = ("begin.done", "prove-way-back.done", "measure-before.intended", "window.done")
SERVER_IS_NEW = ("ready.done", "kernel.done", "measure-after.intended", "judge.done", "commit.done")

CASES: list[Case] = [
    *_each("kill", *KEPT),
    *_each("kill", *BACK, "end.done", **_back),
    *_each("kill", *SOAK, **_soaked),
    *_each("kill", "judge.done", **_back),
    *_each("stubborn-child", "begin.done", "activate.intended", "activate.done", "judge.done"),
    *_each("torn", *KEPT[:-1:2], "activate.intended", "judge.done"),
    *_each("torn", *BACK, **_back),
    *_each("power", *KEPT),
    *_each("power", "judge.done", *BACK, **_back),
    *_each("no-way-back", "activate.done", "judge.done"),
    *_each("power", *SOAK, **_soaked),
    *_each("torn-power", "begin.done", "activate.intended", "activate.done", "judge.done", "commit.done"),
    *_each(
        "kill-children",
        *BEFORE[:6],
        "activate.intended",
        "activate.done",
        "ready.intended",
        "kernel.intended",
    ),
    *_each("kill-children", "restore.intended", **_back),
    *_each("full", *KEPT),
    *_each("full", *BACK, **_back),
    *_each("read-only", *KEPT[:-1:2], "activate.intended"),
    *_each("read-only", "restore.intended", **_back),
    *_each("crash", *BEFORE[::3], *BETWEEN, "commit.done"),
    *_each("crash", *BACK, **_back),
    *_each("exit-0", *SERVER_IS_OLD, *SERVER_IS_NEW),
    *_each("hang-a-while", *SERVER_IS_OLD, *SERVER_IS_NEW),
    *_each("hang", "activate.done", "ready.done", "kernel.done", "measure-after.intended"),
    *_each("hang-stop", "measure-before.done", "window.done", "activate.intended"),
    *[
        case
        for which in ("new", "old")
        for how in ("truncated", "flipped", "deleted")
        for case in _each(f"{how}-{which}", "begin.done", "activate.intended", "judge.done")
    ],
    *[
        case
        for which in ("new", "old")
        for case in _each(f"no-runtime-{which}", "begin.done", "activate.intended", "ready.done")
    ],
    *_each("deleted-old", "activate.intended", "judge.done", **_back),
    *_each("truncated-old", "activate.done", **_back),
    *_each("no-runtime-old", "activate.intended", **_back),
    *_each("port", "activate.intended", "prove-way-forward.done"),
    *_each("port", "activate.intended", **_back),
    *_each("clock-ahead", "begin.done", "measure-before.done", *STRATEGIC, "commit.done"),
    *_each("clock-back", "begin.done", "measure-before.done", *STRATEGIC, "commit.done"),
    *_each("second-operator", "begin.done", "activate.intended", "ready.done", "judge.done", "commit.done"),
    *_each("second-recovery", "begin.done", "activate.done", "judge.done", "commit.done"),
    *_each("stale-lock", "begin.done", *STRATEGIC),
    *_each("torn-lock", "begin.done", "activate.intended", "judge.done"),
    *[case for kind in OWN_FAULTS for case in _each("itself", "its whole life", to=kind)],
    *_each("cable", "begin.done", "measure-before.intended", "activate.intended", "judge.done", by="pyinfra"),
    *_each(
        "control", "begin.done", "measure-before.intended", "activate.intended", "judge.done", by="pyinfra"
    ),
]

# What `make test` runs: each class of faults, at the steps where it hurts most.
SAMPLE: list[Case] = [
    *_each(
        "kill", "measure-before.intended", "activate.intended", "activate.done", "judge.done", "commit.done"
    ),
    *_each("kill", "judge.done", "restore.intended", **_back),
    *_each("stubborn-child", "activate.done"),
    *_each("no-way-back", "activate.done"),
    *_each("deleted-old", "activate.intended", **_back),
    *_each("torn", "begin.done", "activate.done", "judge.done"),
    *_each("power", "activate.intended", "ready.done", "commit.done"),
    *_each("kill-children", "prove-way-back.intended", "activate.intended"),
    *_each("full", "begin.done", "activate.intended", "judge.done"),
    *_each("read-only", "measure-before.intended", "activate.intended"),
    *_each("crash", "measure-before.intended", "ready.done", "judge.done"),
    *_each("exit-0", "ready.done"),
    *_each("hang", "activate.done"),
    *_each("truncated-new", "begin.done", "activate.intended"),
    *_each("flipped-old", "activate.done"),
    *_each("deleted-new", "prove-way-back.done"),
    *_each("no-runtime-new", "activate.intended"),
    *_each("port", "activate.intended"),
    *_each("clock-ahead", "activate.intended"),
    *_each("clock-back", "begin.done"),
    *_each("second-operator", "activate.done"),
    *_each("stale-lock", "activate.intended"),
    *_each("itself", "its whole life", to="crashes"),
]
NEEDS_DISK = ("full", "read-only")
