"""One case from its beginning to its end: switch, break, watch, judge, mend, converge, judge again."""

from __future__ import annotations

import dataclasses
import queue
import random
import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from lab import control
from lab.shell import say

from . import invariants
from .breaking import FAULTS, Fault, Scene
from .fleet import declared
from .ground import ROOT, SWITCH, Ground
from .invariants import Expected
from .table import GOOD, NEEDS_DISK, SLOW, SOAKED, Case

LIFE = "its whole life"
SWITCH_S = 12.0  # as long as a switch to a good release takes here, roughly; random faults strike within
RANDOM = "random"
_operators = threading.Semaphore(2)  # so many command lines at once on two cores


@dataclass
class Result:
    """How one case ended. Times in seconds.

    silent_s: without tokens of the old or the new release, from the fault on; the switch's own restart included
    flowing_s: from the fault until tokens flowed for good
    over_s: from the fault until the switch, its recovery included, had ended
    """

    case: Case
    host: str
    outcome: str = ""
    violations: list[str] = field(default_factory=list)
    silent_s: float = 0.0
    flowing_s: float = 0.0
    over_s: float = 0.0


def run_all(grounds: Sequence[Ground], cases: Sequence[Case]) -> list[Result]:
    """All cases, each on the first host that is free; what needs a small disk waits for a host that has one."""
    first = sorted(
        cases, key=lambda case: case.by != "pyinfra"
    )  # few at a time: they must not be left to the end
    waiting = {True: queue.SimpleQueue[Case](), False: queue.SimpleQueue[Case]()}
    for case in first:
        waiting[case.fault in NEEDS_DISK].put(case)
    results: list[Result] = []
    workers = [threading.Thread(target=_work, args=(ground, waiting, results)) for ground in grounds]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return results


def _work(ground: Ground, waiting: dict[bool, queue.SimpleQueue[Case]], results: list[Result]) -> None:
    for needs_disk in (True, False) if ground.disk else (False,):
        while True:
            try:
                case = waiting[needs_disk].get_nowait()
            except queue.Empty:
                break
            began = time.monotonic()
            result = run_case(ground, case)
            results.append(result)
            wrong = f": {result.violations}" if result.violations else ""
            say(
                f"{len(results)}: {case} on {result.host}: {result.outcome}, {time.monotonic() - began:.0f} s{wrong}"
            )


def run_case(ground: Ground, case: Case) -> Result:
    result = Result(case, ground.host.name)
    try:
        _Run(ground, case, result).run()
    except Exception as error:  # one broken case must not end the others; it counts as a violation
        result.violations.append("".join(traceback.format_exception_only(error)).strip())
        say(traceback.format_exc())
        _make_good(ground, result)
    return result


def _make_good(ground: Ground, result: Result) -> None:
    """After a case that went wrong, so that the next one on this host is judged for itself."""
    try:
        ground.disarm()
        ground.reboot()
        ground.back(ground.releases["a"])
    except Exception as error:
        result.violations.append(f"and the host could not be made good: {error}")


class _Run:
    def __init__(self, ground: Ground, case: Case, result: Result) -> None:
        self.ground, self.case, self.result = ground, case, result
        self.fault = FAULTS.get(case.fault, Fault(case.fault))
        if self.fault.spares_new and case.to == SLOW and ground.current() != ground.releases["a"]:
            ground.back(ground.releases["a"])  # the worse release has the checkpoint and the runtime of b
        old = ground.current()
        self.operator: subprocess.Popen[str] | None = None
        self.expected = Expected(old, self._new(old), ground.voices, ground.mounts)

    @property
    def limit_s(self) -> float:
        return self.fault.limit_s * self.ground.patience

    @property
    def good(self) -> bool:
        return self.case.to in (GOOD, SOAKED)

    def run(self) -> None:
        """Held by one of few operators, where one types the order."""
        with _operators if self.case.by == "pyinfra" else nullcontext():
            try:
                self._run()
            finally:
                if self.operator is not None:
                    self.operator.kill()

    def _run(self) -> None:
        ground, fault = self.ground, self.fault
        ends = self._begin()
        scene, struck = self._strike()
        self._plug_in_late(scene)
        ground.wait_over()
        over = time.monotonic()
        if self.case.fault == "cable":  # pyinfra follows to the end, and asks the host as long as it does
            ends()
        heard = ground.watch.hear(self.limit_s)
        self._measure(struck, over)
        holds_now = invariants.PROMISE if fault.lasting else invariants.PROMISE + invariants.ORDER
        look = self._judge(heard, holds_now)
        self.result.outcome = str((look["service"]["last"] or {}).get("outcome"))
        if self.case.fault != "cable":
            ends()
        fault.mend(ground, scene)
        if fault.lasting:
            ground.inside("python3", f"{ROOT}/bin/on-host.pyz", "recover", "--wait", "60", timeout=120)
        self._converge(look)

    # The switch and the fault

    def _new(self, old: str) -> str:
        releases = self.ground.releases
        if self.good:
            return releases["b"] if old == releases["a"] else releases["a"]
        return releases[self.case.to]

    def _begin(self) -> Callable[[], None]:
        """Order the switch; returns what must be seen of whoever ordered it, once the switch has ended."""
        self.ground.disarm()
        if self.case.point not in (LIFE, RANDOM):
            clock = {"clock_s": self.fault.clock_s} if self.fault.clock_s else {}
            self.ground.arm(self.case.point, **clock)
        if self.case.by == "pyinfra":
            return self._begin_as_operator()
        order: dict[str, Any] = {}
        if self.case.to == SOAKED:
            order["criteria"] = {**self.ground.gate, "soak_s": 3.0}
        if self.fault.clock_s:  # the one thing that a switch asks the clock
            order["last_start"] = time.time() + 3600
        self.ground.start(self.expected.new, **order)
        return lambda: None

    def _begin_as_operator(self) -> Callable[[], None]:
        name = next(name for name in ("a", "b") if self.ground.releases[name] == self.expected.new)
        arguments = ("deploy.py", "-y", "--limit", self.ground.host.name, "--data", "retry_rejected=true")
        process = control.spawn("pyinfra", control.INVENTORY, *arguments, env=declared(name, self.ground))
        self.operator = process

        def ends() -> None:
            if self.case.fault != "control":
                said = process.communicate(timeout=120)[0]
                outcome = str((self.ground.look()["service"]["last"] or {}).get("outcome"))
                told = (process.returncode == 0) == (outcome == "committed") and f"tiny: {outcome}: " in said
                if not told:  # three real servers on two cores: the gate may have gone back, rightly
                    self.result.violations.append(
                        f"{outcome}, and pyinfra exited {process.returncode}: {said[-1500:]}"
                    )
                return
            again = control.pyinfra(*arguments, env=declared(name, self.ground))
            if again.returncode or "since the last run" not in again.stderr:
                self.result.violations.append(
                    f"the next pyinfra exited {again.returncode}: {again.stderr[-1500:]}"
                )

        return ends

    def _strike(self) -> tuple[Scene, float]:
        ground, fault = self.ground, self.fault
        if self.case.point == LIFE:
            return Scene(0, self.expected.old, self.expected.new), time.monotonic()
        if self.case.point == RANDOM:
            return self._strike_at_random()
        scene = Scene(ground.reached(), self.expected.old, self.expected.new)
        struck = time.monotonic()
        if self.case.fault == "control" and self.operator is not None:
            self.operator.kill()
            self.operator.communicate()
        fault.strike(ground, scene)
        if not fault.deadly:
            ground.signal("CONT", scene.pid)
        return scene, struck

    def _strike_at_random(self) -> tuple[Scene, float]:
        chance = random.Random(self.case.fault)
        time.sleep(chance.uniform(0.2, SWITCH_S))
        struck = time.monotonic()
        victim = chance.choices(("main", "all", "vllm", "power"), (60, 15, 15, 10))[0]
        self.result.case = dataclasses.replace(self.case, point=f"{RANDOM}: {victim}")
        scene = Scene(0, self.expected.old, self.expected.new)
        if victim == "power":
            FAULTS["power"].strike(self.ground, scene)
        elif victim == "vllm":
            FAULTS["crash"].strike(self.ground, scene)
        else:
            words = ("systemctl", "kill", "--signal=KILL", f"--kill-whom={victim}", SWITCH)
            self.ground.inside(*words, check=False)  # it may have ended already
        return scene, struck

    def _plug_in_late(self, scene: Scene) -> None:
        """A host that is cut off ends its switch alone."""
        if self.case.fault == "cable":
            self.ground.wait_over()
            self.fault.mend(self.ground, scene)

    # What is seen of it

    def _measure(self, struck: float, over: float) -> None:
        gaps = self.ground.watch.gaps(struck, time.monotonic())
        self.result.silent_s = round(sum(end - begin for begin, end in gaps), 1)
        self.result.flowing_s = round(gaps[-1][1] - struck, 1) if gaps else 0.0
        self.result.over_s = round(over - struck, 1)
        if self.result.flowing_s > self.limit_s:
            self.result.violations.append(
                f"tokens flowed again after {self.result.flowing_s} s; {self.limit_s:.0f} s is the limit"
            )

    def _judge(self, heard: str | None, which: tuple[Any, ...], when: str = "") -> dict[str, Any]:
        look = self.ground.look()
        found = invariants.violated(look, heard, self.expected, which)
        self.result.violations += [f"{when}{line}" for line in found]
        return look

    def _converge(self, look: dict[str, Any]) -> None:
        """The next ordinary order brings what was wanted, and everything is in order then."""
        wanted = self.expected.new if self.good else self.expected.old
        if look["service"]["running"] == wanted and not self.fault.lasting:
            return
        if self.ground.current() != wanted:
            self.ground.back(wanted)
        look = self._judge(
            self.ground.watch.hear(self.limit_s), invariants.PROMISE + invariants.ORDER, "afterwards: "
        )
        if look["service"]["running"] != wanted:
            self.result.violations.append(
                f"afterwards: {wanted} was ordered, and {look['service']['running']} runs"
            )
