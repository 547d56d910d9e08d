"""Which faults strike at which steps: the matrix as data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

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

LIFE, RANDOM = "its whole life", "random"
GOOD, SOAKED, WATCHED, CALIBRATED = "good", "soaked", "watched", "calibrated"
LEFT = "left-asleep"
SLOW, SLOWER = "slow-kernel", "slower"
# What the order asks beside the tests' usual gate, by what it is to.
GATES: dict[str, dict[str, Any]] = {
    SOAKED: {"soak_s": 3.0},
    WATCHED: {"soak_s": 90.0},
    # Its answers are all finished in time: nothing but the missing baseline is against it.
    SLOWER: {"throughput_margin": 0.4, "on_inconclusive": "rollback", "budget_s": 10.0},
}
ORDERS: dict[str, dict[str, Any]] = {LEFT: {"standby_for_s": 3600.0}}
CALIBRATION_RUNS = 13  # restarts the service more often than a start limit of ten allows
OWN_FAULTS = {
    "crashes": "crashes after it was healthy, again and again",
    "exits": "ends with status 0, again and again",
    "hangs-start": "hangs in its start",
    "hangs-stop": "hangs in its stop",
    "silent": "answers, and gives no tokens",
}


@dataclass(frozen=True)
class Case:
    """One fault at one step of a switch to one kind of release, and perhaps a second one after it.

    to: `good` is the other good release, `soaked` and `watched` the same with a short and a long soak,
        `calibrated` the same release measured again and again, `left-asleep` the other good release, beside
        which the old one sleeps on after the commit; else a release that is worse or fails by
        itself
    by: who orders it: the host's own switch unit with the product's order, or `pyinfra` as an operator types
        it
    then: a second fault, and its step after the first one; `+3` is the third entry, whoever writes it
    """

    fault: str
    point: str
    to: str = GOOD
    by: str = "order"
    then: tuple[str, str] | None = None

    def __str__(self) -> str:
        words = [self.fault, self.point]
        words += [self.to] if self.to != GOOD else []
        words += [self.by] if self.by != "order" else []
        return "/".join([*words, *(["then", *self.then] if self.then else [])])

    @property
    def faults(self) -> tuple[str, ...]:
        return (self.fault, self.then[0]) if self.then else (self.fault,)

    @property
    def good(self) -> bool:
        """Whether the release that it switches to is as good as the old one."""
        return self.to in (GOOD, SOAKED, WATCHED, LEFT)


def _each(fault: str, *points: str, to: str = GOOD, by: str = "order") -> list[Case]:
    return [Case(fault, point, to, by) for point in points]


def _then(second: str, fault: str, points: Iterable[str], *steps: str, to: str = GOOD) -> list[Case]:
    """Both faults, for every pair of a step of the first and a step of the second."""
    return [Case(fault, point, to, then=(second, step)) for point in points for step in steps]


_back = {"to": SLOW}
_soaked = {"to": SOAKED}
STRATEGIC = ("prove-way-back.done", "activate.intended", "activate.done", "ready.done", "judge.done")
SERVER_IS_OLD = ("begin.done", "prove-way-back.done", "measure-before.intended", "window.done")
SERVER_IS_NEW = ("ready.done", "kernel.done", "measure-after.intended", "judge.done", "commit.done")

OPERATED = ("begin.done", "measure-before.intended", "activate.intended", "judge.done")

BY_STEP: list[Case] = [
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
    *_each("port-5", "activate.intended", "prove-way-forward.done"),
    *_each("port-5", "activate.intended", **_back),
    *_each("clock-ahead", "begin.done", "measure-before.done", *STRATEGIC, "commit.done"),
    *_each("clock-back", "begin.done", "measure-before.done", *STRATEGIC, "commit.done"),
    *_each("second-operator", "begin.done", "activate.intended", "ready.done", "judge.done", "commit.done"),
    *_each("second-recovery", "begin.done", "activate.done", "judge.done", "commit.done"),
    *_each("stale-lock", "begin.done", *STRATEGIC),
    *_each("torn-lock", "begin.done", "activate.intended", "judge.done"),
    *[case for kind in OWN_FAULTS for case in _each("itself", LIFE, to=kind)],
    *_each("cable", *OPERATED, by="pyinfra"),
    *_each("control", *OPERATED, by="pyinfra"),
]

# Other people and other programs, as one finds them on a host that others use too.
AMONG_OTHERS: list[Case] = [
    *_each("inodes", *KEPT),
    *_each("inodes", *BACK, **_back),
    *_each("run-low", *STRATEGIC, "begin.done", "measure-before.intended", "window.done", "commit.done"),
    *_each("run-low", "judge.done", *BACK, **_back),
    *_each("run-full", *STRATEGIC, "begin.done", "window.done", "commit.done"),
    *_each("run-full", "judge.done", *BACK, **_back),
    *_each("handles", *STRATEGIC, "begin.done", "measure-before.intended", "measure-after.intended"),
    *_each("handles", "restore.intended", **_back),
    *_each("memory", *STRATEGIC, "begin.done", "measure-before.intended", "measure-after.intended"),
    *_each("memory", "restore.intended", **_back),
    *[case for act in ("edit", "mask", "disable") for case in _each(act, *BEFORE, *BETWEEN)],
    *[case for act in ("edit", "mask", "disable") for case in _each(act, "judge.done", *BACK, **_back)],
    *_each("stop", *BEFORE, *BETWEEN),
    *_each("stop", "judge.done", "restore.intended", **_back),
    *_each("stop", "prove-way-back.done", "prove-way-forward.done", "measure-before.intended", to=SLOWER),
    *_each("restart", *BEFORE, *BETWEEN),
    *_each("restart", "judge.done", *BACK, **_back),
    *_each("restart", "prove-way-forward.done", to=SLOWER),
    *[case for how in ("reboot", "power-off") for case in _each(how, *KEPT)],
    *[case for how in ("reboot", "power-off") for case in _each(how, "judge.done", *BACK, **_back)],
    *_each("frozen-5", *STRATEGIC, "begin.done", "measure-before.intended", "window.done", "commit.done"),
    *_each("frozen-5", *BACK, **_back),
    *_each("frozen-60", "window.done", "activate.intended", "ready.done", "judge.done"),
    *_each("frozen-60", "judge.done", **_back),
    *_each("frozen-300", "activate.intended"),
    *_each("frozen-300", "judge.done", **_back),
    *_each("reexec", "window.done", "activate.intended", "judge.done"),
    *_each("reexec", "judge.done", **_back),
    *_each("port-60", "prove-way-forward.done", "activate.intended", "ready.done"),
    *_each("port-60", "judge.done", **_back),
    *_each("port-300", "activate.intended"),
    *_each("port-300", "judge.done", **_back),
    *[
        case
        for seconds in (10, 25, 60, 110, 200, 400)
        for case in (
            *_each(f"no-start-{seconds}", "activate.intended"),
            *_each(f"no-start-{seconds}", "judge.done", **_back),
        )
    ],
    *_each("drop-in-20", "window.done", "activate.intended", "judge.done"),
    *_each("drop-in-110", "activate.intended"),
    *_each("drop-in-110", "judge.done", **_back),
    *[
        case
        for how in ("crash", "restart", "reboot", "kill-children")
        for case in _each(how, SOAK[0], **_soaked)
    ],
    *_each("calibration", LIFE, to=CALIBRATED),
]

# Whoever finishes what was left is killed too.
TWICE: list[Case] = [
    *_then("kill", "kill", BEFORE, "end.done"),
    *_then("kill", "kill", BETWEEN, *BACK, "end.done"),
    *_then("kill", "kill", ["commit.done"], "end.done"),
    *_then("kill", "kill", ["judge.done", "restore.intended"], *BACK, "end.done", **_back),
    *_then("kill", "kill", ["restore.done"], "end.done", **_back),
    *_then("power", "kill", ["activate.done", "judge.done"], *BACK, "end.done"),
    *_then("kill", "power", ["activate.intended", "activate.done", "judge.done"], *BACK, "end.done"),
    # Pairs that Hypothesis found: the recovery at boot is killed, lacks room or handles, or finds the unit
    # disabled.
    *_then("kill", "power", ["begin.done", "window.done"], "end.done"),
    *_then("handles", "power", ["measure-after.intended"], "restore.intended"),
    *_then("run-low", "torn-power", ["judge.done"], "+1"),
    *_then("power", "disable", ["prove-way-back.done"], "+3"),
    # Stopped by a colleague, and started again without a reload, which a full /run refuses.
    *_then("run-full", "stop", ["window.done"], "+2", **_back),
]

# What the operator is told, and whether it comes true.
BY_OPERATORS: list[Case] = [
    *[case for end in ("ctrl-c", "term", "hang-up") for case in _each(end, *KEPT, by="pyinfra")],
    *[
        case
        for end in ("ctrl-c", "term", "hang-up")
        for case in _each(end, "measure-after.intended", "judge.done", **_back, by="pyinfra")
    ],
    *_each("second-run", "ready.done", "measure-after.intended", "judge.done", **_back, by="pyinfra"),
    *_each("second-run", "measure-after.intended", by="pyinfra"),
    *_each("rollback-now", SOAK[0], to=WATCHED, by="pyinfra"),
]

# What `make test-full` runs: each class of faults, at the steps where it hurts most.
SAMPLE: list[Case] = [
    *_each("kill", "measure-before.intended", "activate.done", "commit.done"),
    *_each("kill", "restore.intended", **_back),
    *_each("stubborn-child", "activate.done"),
    *_each("no-way-back", "activate.done"),
    *_each("deleted-old", "activate.intended", **_back),
    *_each("torn", "judge.done"),
    *_each("power", "activate.intended", "commit.done"),
    *_each("power-off", "activate.done"),
    *_each("reboot", "restore.intended", **_back),
    *_each("kill-children", "activate.intended"),
    *_each("full", "begin.done", "activate.intended"),
    *_each("read-only", "activate.intended"),
    *_each("inodes", "activate.done"),
    *_each("inodes", "judge.done", **_back),
    *_each("run-low", "activate.intended"),
    *_each("run-low", "judge.done", **_back),
    *_each("run-full", "judge.done"),
    *_each("handles", "activate.intended"),
    *_each("memory", "measure-after.intended"),
    *_each("crash", "measure-before.intended", "ready.done"),
    *_each("exit-0", "ready.done"),
    *_each("hang", "activate.done"),
    *_each("truncated-new", "activate.intended"),
    *_each("flipped-old", "activate.done"),
    *_each("no-runtime-new", "activate.intended"),
    *_each("clock-ahead", "activate.intended"),
    *_each("clock-back", "begin.done"),
    *_each("second-operator", "activate.done"),
    *_each("stale-lock", "activate.intended"),
    *_each("itself", LIFE, to="crashes"),
    *_each("calibration", LIFE, to=CALIBRATED),
    *_each("edit", "measure-before.intended", "activate.intended"),
    *_each("edit", "judge.done", **_back),
    *_each("mask", "window.done"),
    *_each("mask", "judge.done", **_back),
    *_each("disable", "ready.done"),
    *_each("stop", "prove-way-forward.done", to=SLOWER),
    *_each("stop", "ready.intended"),
    *_each("restart", "measure-before.intended", "measure-after.intended"),
    *_each("port-5", "activate.intended"),
    *_each("port-60", "activate.intended"),
    *_each("frozen-5", "activate.done"),
    *_each("frozen-60", "judge.done", **_back),
    *_each("reexec", "activate.intended"),
    *_each("drop-in-20", "activate.intended"),
    *_each("no-start-25", "activate.intended"),
    *_each("no-start-110", "judge.done", **_back),
    *_each("crash", SOAK[0], **_soaked),
    *_then("kill", "kill", ["window.done"], "end.done"),
    *_then("kill", "kill", ["activate.done", "judge.done"], BACK[0]),
    *_then("kill", "kill", ["judge.done"], "end.done", **_back),
    *_then("power", "kill", ["activate.done"], BACK[0]),
    *_then("kill", "power", ["window.done"], "end.done"),
    *_then("power", "disable", ["prove-way-back.done"], "+3"),
    *_each("mask", "restore.done", **_back),
    *_each("cable", "activate.intended", by="pyinfra"),
    *_each("ctrl-c", "activate.intended", by="pyinfra"),
    *_each("ctrl-c", "measure-after.intended", **_back, by="pyinfra"),
    *_each("term", "judge.done", by="pyinfra"),
    *_each("hang-up", "ready.done", by="pyinfra"),
    *_each("second-run", "measure-after.intended", **_back, by="pyinfra"),
    *_each("rollback-now", SOAK[0], to=WATCHED, by="pyinfra"),
]
# What `make test` runs of these: of each kind of fault, what is over soon.
FEW: list[Case] = [
    *_each("kill", "activate.done", "commit.done"),
    *_each("kill", "restore.intended", **_back),
    *_each("power", "activate.intended"),
    *_each("full", "activate.intended"),
    *_each("handles", "activate.intended"),
    *_each("crash", "ready.done"),
    *_each("flipped-old", "activate.done"),
    *_each("second-operator", "activate.done"),
    *_each("mask", "judge.done", **_back),
    *_each("stop", "ready.intended"),
    *_then("kill", "kill", ["judge.done"], "end.done", **_back),
    *_each("cable", "activate.intended", by="pyinfra"),
]
# With standby, where the old release sleeps while the new one is judged. The acts of a turn are notes: the
# first are sleep old, start new, await new, canary new, sleep new, lead new, wake new, canary new, serve new,
# relay old.
TURN = tuple(f"turn.note#{number}" for number in range(1, 11))
STANDBY_KEPT = (
    "begin.done",
    "canary.done",
    "reserve-rollback.done",
    "activate.intended",
    *TURN,
    "canary.done#2",
    "activate.done",
    "ready.done",
    "kernel.done",
    "measure-after.intended",
    # In turns: the servers change in each block.
    "turns.intended",
    *(f"turn.note#{number}" for number in (11, 13, 15, 17, 19)),
    "turns.done",
    "judge.done",
    "point.intended",
    "point.done",
    "commit.done",
    "end.done",
)
# The way back: lead old, sleep new, wake old, canary old, serve old, relay new.
STANDBY_BACK = (
    "restore.intended",
    *(f"restore.intended+{number}" for number in range(1, 7)),
    "restore.done",
)
# Where the old release sleeps on after the commit.
SLEEPS_ON = ("commit.done", "standby-for.note", "end.done")
_left = {"to": LEFT}
STANDBY: list[Case] = [
    *_each("nothing", LIFE),
    *_each("nothing", LIFE, **_back),
    *_each("kill", *STANDBY_KEPT),
    *_each("kill", *STANDBY_BACK, **_back),
    *_each("power", *STANDBY_KEPT),
    *_each("power", *STANDBY_BACK, **_back),
    *_each("torn", "activate.intended", "turn.note#2", "point.intended"),
    *_each(
        "full", "begin.done", "canary.done", "activate.intended", *TURN[:3], "judge.done", "point.intended"
    ),
    *_each("full", "restore.intended", "restore.intended+3", **_back),
    *_each("front", "begin.done", "activate.intended", *TURN, "ready.done", "judge.done", "commit.done"),
    *_each("front", *STANDBY_BACK[:4], **_back),
    *_each("symlink", "activate.intended", *TURN[:3], "ready.done", "judge.done"),
    *_each("symlink", *STANDBY_BACK[:3], **_back),
    *_each("no-sleep-old", "begin.done", "activate.intended"),
    *_each("no-sleep-old", "activate.intended", **_back),
    *_each("no-sleep-new", "activate.intended", "ready.done", "judge.done", "restore.intended", **_back),
    *_each(
        "no-wake-old", "activate.intended", "judge.done", "restore.intended", "restore.intended+2", **_back
    ),
    *_each("wrong-old", "activate.intended", "judge.done", "restore.intended", "restore.intended+2", **_back),
    *_each("memory-held", "activate.intended", "turn.note#1", "turn.note#5"),
    *_each("memory-held", "restore.intended", **_back),
    *_each("crash-old", "begin.done", "activate.intended", *TURN, "ready.done", "judge.done", "commit.done"),
    *_each("crash-old", *STANDBY_BACK[:5], **_back),
    *_each("crash-new", *TURN[2:9], "ready.done", "measure-after.intended", "judge.done"),
    *_each("crash-new", *STANDBY_BACK[:3], **_back),
    *_each("symlink-late", "end.done"),
    *_each("nothing", LIFE, **_left),
    *[case for how in ("kill", "power", "front", "crash-new") for case in _each(how, *SLEEPS_ON, **_left)],
    *_each("reboot", "end.done", **_left),
    *_each("full", *SLEEPS_ON[:2], **_left),
    *_each("symlink", *SLEEPS_ON[:2], **_left),
    *_each("symlink-late", "end.done", **_left),
    *_each("crash-old", *SLEEPS_ON[:2], **_left),
    *_each("crash-sleeper", "end.done", **_left),
    *_each("no-wake-old", *SLEEPS_ON[:2], **_left),
    *_each("wrong-old", "standby-for.note", **_left),
    *_each("memory-held", "standby-for.note", **_left),
]
STANDBY_SAMPLE: list[Case] = [
    *_each("kill", "turn.note#1", "point.done"),
    *_each("kill", "restore.intended+3", **_back),
    *_each("power", "turn.note#2"),
    *_each("kill", "turn.note#5", "turn.note#15"),
    *_each("front", "turn.note#2"),
    *_each("symlink", "judge.done"),
    *_each("no-sleep-old", "activate.intended"),
    *_each("no-wake-old", "judge.done", **_back),
    *_each("wrong-old", "judge.done", **_back),
    *_each("nothing", LIFE, **_left),
    *_each("kill", "standby-for.note", **_left),
    *_each("crash-sleeper", "end.done", **_left),
]
CASES: list[Case] = list(dict.fromkeys([*BY_STEP, *AMONG_OTHERS, *TWICE, *BY_OPERATORS, *SAMPLE]))
NEEDS_DISK = ("full", "read-only", "inodes")
