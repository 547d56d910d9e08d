"""One case from its beginning to its end: switch, break, perhaps break again, wait, judge, mend, judge again,
converge.
"""

from __future__ import annotations

import dataclasses
import queue
import random
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from lab.shell import say

from pyinfra_vllm.on_host.switch.order import CALIBRATION

from . import invariants
from .classes import FAULTS
from .fault import Fault, Scene
from .ground import ENDS, ROOT, SWITCH, Ground
from .invariants import Answers, Expected
from .operators import OPERATORS, Operator
from .table import CALIBRATED, CALIBRATION_RUNS, GATES, LEFT, LIFE, NEEDS_DISK, ORDERS, RANDOM, Case

SWITCH_S = 12.0  # as long as a switch to a good release takes here, roughly; random faults strike within
REST_S = 1.0  # so long nothing may stir before a host counts as at rest
HELD_S = 1.0  # an answer that takes longer is held until a server is there again
STAYS_S = 6.0  # after its switch a host that waits for its cause to be mended is looked at
_operators = threading.Semaphore(3)  # so many command lines at once on two cores


@dataclass
class Result:
    """How one case ended. Times in seconds.

    silent_s: without tokens of the old or the new release, from the fault on; the switch's own restart
        included
    recovery_s: from the cause's end until tokens were generated without a further interruption
    over_s: from the cause's end until the switch, its recovery included, had ended
    missed: the second fault's point was never reached: the host had nothing to do there
    """

    case: Case
    host: str
    outcome: str = ""
    violations: list[str] = field(default_factory=list)
    silent_s: float = 0.0
    recovery_s: float = 0.0
    over_s: float = 0.0
    missed: bool = False


def run_all(grounds: Sequence[Ground], cases: Sequence[Case]) -> list[Result]:
    """All cases, each on the first host that is free; what needs a small disk waits for a host
    that has one.
    """
    waiting = {True: queue.SimpleQueue[Case](), False: queue.SimpleQueue[Case]()}
    for case in sorted(cases, key=_turn):
        waiting[needs_disk(case)].put(case)
    results: list[Result] = []
    workers = [threading.Thread(target=_work, args=(ground, waiting, results)) for ground in grounds]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return results


def needs_disk(case: Case) -> bool:
    return any(fault in NEEDS_DISK for fault in case.faults)


def _turn(case: Case) -> tuple[float, bool]:
    """Those that wait longest begin first, then what an operator types: few at a time, they must not be left
    to the end.
    """
    longest = max((FAULTS[name].lasts_s for name in case.faults if name in FAULTS), default=0.0)
    return -longest if longest >= 60 else 0.0, case.by != "pyinfra"


def _work(ground: Ground, waiting: dict[bool, queue.SimpleQueue[Case]], results: list[Result]) -> None:
    for disk in (True, False) if ground.disk else (False,):
        while True:
            try:
                case = waiting[disk].get_nowait()
            except queue.Empty:
                break
            began = time.monotonic()
            result = run_case(ground, case)
            results.append(result)
            wrong = f": {result.violations}" if result.violations else ""
            late = " (its second fault was not reached)" if result.missed else ""
            seconds = time.monotonic() - began
            say(f"{len(results)}: {case} on {result.host}: {result.outcome}{late}, {seconds:.0f} s{wrong}")


def run_case(ground: Ground, case: Case) -> Result:
    result = Result(case, ground.host.name)
    scenes: list[Scene] = []
    try:
        _Run(ground, case, result, scenes).run()
    except Exception as error:  # one broken case must not end the others; it counts as a violation
        result.violations.append("".join(traceback.format_exception_only(error)).strip())
        say(traceback.format_exc())
    if result.violations:
        say(f"{case} on {ground.host.name}, what our units logged:\n{_logged(ground)}")
        _make_good(ground, result, scenes)
    return result


def _logged(ground: Ground) -> str:
    """The last lines of the host's journal of our units and of the service."""
    units = ("--unit=pyinfra-vllm-*", "--unit=vllm-*")
    words = ("journalctl", "--no-pager", "--lines=120", "--output=short-monotonic", *units)
    try:
        return ground.inside(*words, check=False)
    except Exception as error:
        return f"(it can't be asked: {error})"


def _make_good(ground: Ground, result: Result, scenes: Sequence[Scene]) -> None:
    """After a case that went wrong, so that the next one on this host is judged for itself."""
    try:
        ground.disarm()
        ground.reboot()
        _mend(ground, [FAULTS.get(name, Fault(name)) for name in result.case.faults], scenes)
        ground.until(lambda: not ground.busy, "end what was left", 120 * ground.patience)
        ground.back(ground.releases["a"])
    except Exception as error:
        result.violations.append(f"and the host could not be made good: {error}")


def _mend(ground: Ground, faults: Sequence[Fault], scenes: Sequence[Scene]) -> None:
    """Undo the faults, first those that keep the host from acting: undoing the others may need it."""
    for fault, scene in sorted(zip(faults, scenes, strict=False), key=lambda pair: not pair[0].lasting):
        fault.mend(ground, scene)


class _Run:
    def __init__(self, ground: Ground, case: Case, result: Result, scenes: list[Scene]) -> None:
        self.ground, self.case, self.result, self.scenes = ground, case, result, scenes
        self.faults = [FAULTS.get(name, Fault(name)) for name in case.faults]
        self.fault = self.faults[0]
        spares_new = any(fault.spares_new for fault in self.faults)
        if spares_new and not case.good and ground.current() != ground.releases["a"]:
            ground.back(ground.releases["a"])  # the worse release has the checkpoint and the runtime of b
        old = ground.current()
        self.operator: Operator | None = None
        true_clock = not any(fault.clock_s for fault in self.faults)
        self.expected = Expected(old, self._new(old), ground.voices, ground.mounts, true_clock)
        self.began = time.monotonic()
        self.before = ground.transaction()

    @property
    def limit_s(self) -> float:
        return max(fault.limit_s for fault in self.faults) * self.ground.patience

    @property
    def waits(self) -> bool:
        """Whether the host may have to wait until somebody mends what is broken."""
        return any(fault.lasting or fault.spares_new for fault in self.faults)

    def run(self) -> None:
        """Held by one of few operators, where one types the order."""
        with _operators if self.case.by == "pyinfra" else nullcontext():
            try:
                self._run()
            finally:
                if self.operator is not None:
                    self.operator.end()

    def _run(self) -> None:
        ground = self.ground
        self._begin()
        struck = self._strike()
        self._strike_again()
        ended = self._wait_for_the_end(struck)
        self._measure(struck, ended)
        lasting = any(fault.lasting for fault in self.faults)
        in_order = self._at_rest() and not lasting
        look = self._judge(invariants.PROMISE + invariants.ORDER if in_order else invariants.PROMISE)
        _mend(ground, self.faults, self.scenes)
        self.result.violations += [line for scene in self.scenes for line in scene.wrong]
        if self.waits and not in_order:
            look = self._mended(lasting)
        if self.operator is not None:
            self.result.violations += self.operator.told(ground.outcome(), look["service"]["running"])
        self.result.outcome = str((look["service"]["last"] or {}).get("outcome"))
        self._converge(look)

    def _mended(self, lasting: bool) -> dict[str, Any]:
        """The host gets in order by itself.

        What it had no room for in the evidence is added by the next one who looks.
        """
        self._settle(time.monotonic())
        evidence = (invariants.evidence_is_closed,) if lasting else ()
        which = tuple(check for check in invariants.PROMISE + invariants.ORDER if check not in evidence)
        look = self._judge(which, "once it was mended: ")
        if lasting:
            self.ground.inside("python3", f"{ROOT}/bin/on-host.pyz", "recover", "--wait", "60", timeout=120)
            self._judge(evidence, "once somebody looked: ")
        return look

    # The switch and the faults

    def _new(self, old: str) -> str:
        releases = self.ground.releases
        if self.case.to == CALIBRATED:
            return old
        if self.case.good:
            return releases["b"] if old == releases["a"] else releases["a"]
        return releases[self.case.to]

    def _begin(self) -> None:
        ground = self.ground
        ground.disarm()
        if self.case.point not in (LIFE, RANDOM):
            clock = {"clock_s": self.fault.clock_s} if self.fault.clock_s else {}
            ground.arm(self.case.point, **clock)
        self.began = time.monotonic()
        if self.case.by == "pyinfra":
            name = next(name for name in ground.releases if ground.releases[name] == self.expected.new)
            self.operator = OPERATORS[self.case.fault](ground, name, self.case.to)
            return
        order: dict[str, Any] = {"criteria": {**ground.gate, **GATES.get(self.case.to, {})}}
        order |= ORDERS.get(self.case.to, {})
        if self.case.to == CALIBRATED:
            order |= {"purpose": CALIBRATION, "runs": CALIBRATION_RUNS}
        if (
            "stop" in self.case.faults
        ):  # longer than a case may take: nobody waits it out for a server that was stopped
            order["ready_timeout_s"] = 90.0 * ground.patience
        if self.fault.clock_s:  # the one thing that a switch asks the clock
            order["last_start"] = time.time() + 3600
        ground.start(self.expected.new, **order)

    def _strike(self) -> float:
        """The first fault; returns when it struck."""
        if self.case.point == LIFE:
            self._scene(0)
            return time.monotonic()
        if self.case.point == RANDOM:
            return self._strike_at_random()
        scene = self._scene(self.ground.reached())
        if self.case.then is not None:
            self.ground.arm(self.case.then[1])
        struck = time.monotonic()
        if self.operator is not None:
            self.operator.strike()
        self._do(self.fault, scene)
        return struck

    def _scene(self, pid: int) -> Scene:
        self.scenes.append(Scene(pid, self.expected.old, self.expected.new))
        return self.scenes[-1]

    def _do(self, fault: Fault, scene: Scene) -> None:
        fault.strike(self.ground, scene)
        if scene.pid and not fault.deadly:
            self.ground.signal("CONT", scene.pid)

    def _strike_again(self) -> None:
        """The second fault, where there is one: at its entry, or on a host at rest that never comes to it."""
        if self.case.then is None:
            return
        pid = self.ground.reached_later(120)
        self.result.missed = pid is None
        if pid is not None or self.case.then[1].startswith("+"):
            self._do(self.faults[1], self._scene(pid or 0))

    def _strike_at_random(self) -> float:
        chance = random.Random(self.case.fault)
        self.ground.until(lambda: self.ground.transaction() != self.before, "begin its switch", 60)
        time.sleep(chance.uniform(0, SWITCH_S))
        struck = time.monotonic()
        victim = chance.choices(("main", "all", "vllm", "power"), (60, 15, 15, 10))[0]
        self.result.case = dataclasses.replace(self.case, point=f"{RANDOM}: {victim}")
        if victim == "power":
            FAULTS["power"].strike(self.ground, self._scene(0))
        elif victim == "vllm":
            FAULTS["crash"].strike(self.ground, self._scene(0))
        else:
            words = ("systemctl", "kill", "--signal=KILL", f"--kill-whom={victim}", SWITCH)
            self.ground.inside(*words, check=False)  # it may have ended already
        return struck

    # What becomes of it

    def _wait_for_the_end(self, struck: float) -> float:
        """Until the host is at rest, or was given its time for that. Returns when the cause had ended."""
        if self.operator is not None:
            self.operator.wait(self.ground)
        if not self.waits:
            return self._settle(struck)
        self.ground.until(
            lambda: self._at_rest() or not self.ground.groups(SWITCH),
            "end its switch",
            120 * self.ground.patience,
        )
        end = time.monotonic() + STAYS_S
        while time.monotonic() < end and not self._at_rest():
            time.sleep(0.2)
        self.ground.witness.hear(self.limit_s)
        return struck

    def _settle(self, ended: float) -> float:
        """Until the host is at rest for a moment, within its time after the cause's end; a violation where it
        isn't.
        """
        quiet: float | None = None
        while True:
            now = time.monotonic()
            if any(fault.goes_on(self.ground) for fault in self.faults):
                ended, quiet = now, None
            elif self._at_rest():
                quiet = quiet or now
            else:
                quiet = None
            if quiet is not None and now - quiet >= REST_S and not self.ground.stirs():
                return ended
            if quiet is None and now - ended > self.limit_s:
                last = self.ground.entries()[-1]
                step = f"{last['step']}.{last['state']} {last.get('outcome') or last.get('error') or ''}"
                running = ", ".join(group.name for group in self.ground.groups()) or "nothing of ours"
                self.result.violations.append(
                    f"not in order {self.limit_s:.0f} s after the cause's end: the last entry is {step},"
                    f" {running} runs, the witness heard {self._answers().last}"
                )
                return ended
            time.sleep(0.1)

    def _at_rest(self) -> bool:
        """Whether nothing of ours runs, the record has a good end, and who it names is heard."""
        entries = self.ground.entries()
        begin, ends = entries[0], [entry for entry in entries if entry["step"] == "end"]
        if begin["tx"] == self.before or not ends or ends[-1]["outcome"] not in ENDS or self.ground.busy:
            return False
        serves = begin["to"] if ends[-1]["outcome"] == "committed" else begin["from"]
        answers = self._answers()
        if answers.last is None and self._is_masked():
            return True
        if answers.last is None or time.monotonic() - answers.last.at > HELD_S * self.ground.patience:
            return False
        return serves in invariants.speakers(answers.last, self.expected)

    def _is_masked(self) -> bool:
        """Whether a colleague masked a service that the switch then never touched: once it is down, nobody
        may start it.
        """
        steps = [entry["step"] for entry in self.ground.entries()]
        return "mask" in self.case.faults and "activate" not in steps

    def _answers(self) -> Answers:
        return Answers(self.ground.witness.since(self.began))

    def _measure(self, struck: float, ended: float) -> None:
        """A case that waits for somebody's hand is measured as long as it had to wait."""
        gaps = self.ground.witness.gaps(struck, time.monotonic())
        self.result.silent_s = round(sum(end - begin for begin, end in gaps), 1)
        self.result.recovery_s = round(max(0.0, gaps[-1][1] - ended), 1) if gaps else 0.0
        self.result.over_s = round(max(0.0, time.monotonic() - REST_S - ended), 1)
        if self.result.recovery_s > self.limit_s:
            self.result.violations.append(
                f"tokens came again after {self.result.recovery_s} s; {self.limit_s:.0f} s is the limit"
            )

    def _judge(self, which: tuple[Any, ...], when: str = "") -> dict[str, Any]:
        look = self.ground.look()
        if self._is_masked() and self._answers().last is None:
            which = tuple(check for check in which if check not in invariants.PROMISE)
        found = invariants.violated(look, self._answers(), self.expected, which)
        self.result.violations += [f"{when}{line}" for line in found]
        return look

    def _converge(self, look: dict[str, Any]) -> None:
        """The next ordinary order brings what was wanted, and everything is in order then.

        Where the old release sleeps on, it is wanted back.
        """
        forward = self.case.good and self.case.to != LEFT
        wanted = self.expected.new if forward else self.expected.old
        if look["service"]["running"] == wanted or self.result.violations:
            return
        self.began = time.monotonic()
        self.ground.back(wanted)
        self.ground.witness.hear(self.limit_s)
        look = self._judge(invariants.PROMISE + invariants.ORDER, "afterwards: ")
        if look["service"]["running"] != wanted:
            self.result.violations.append(
                f"afterwards: {wanted} was ordered, and {look['service']['running']} runs:"
                f" {look['service']['last']}"
            )
