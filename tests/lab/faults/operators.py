"""Operators who type `pyinfra` on a terminal, how their command ends, and what it told them, compared with
what came of it.
"""

from __future__ import annotations

import os
import re
import subprocess
import termios
import threading
import time

from lab import control

from .fleet import declared
from .ground import Ground
from .table import GATES

SIZE = (50, 160)  # lines and columns of the terminal
LAST_LINES = 25
EXIT_S = 120.0  # until a command that was interrupted has ended, or one that follows a switch
# What the last words must say of a switch that goes on, and what they may say only where it came true.
GOES_ON = re.compile(r"goes on|by itself|finishes it|still running|under way|continues", re.IGNORECASE)
UNTRUE = re.compile(r"\b(held|unchanged)\b")


class Screen:
    """A command on a terminal of its own, as a person has it: Ctrl-C is a key there, and
    closing it hangs up.
    """

    def __init__(self, *argv: str, env: dict[str, str]) -> None:
        self._master, slave = os.openpty()
        termios.tcsetwinsize(slave, SIZE)
        self._process = subprocess.Popen(
            ["setsid", "--ctty", "--wait", *argv],
            cwd=control.project(),
            env=control.environment({**env, "TERM": "xterm"}),
            stdin=slave,
            stdout=slave,
            stderr=slave,
        )
        os.close(slave)
        self._said = bytearray()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                part = os.read(self._master, 65536)
            except OSError:  # the last process on it has ended, or it was closed
                return
            if not part:
                return
            self._said += part

    def press(self, key: bytes) -> None:
        os.write(self._master, key)

    def signal(self, number: int) -> None:
        os.kill(self._process.pid, number)

    def close(self) -> None:
        os.close(self._master)

    def wait(self, timeout: float = EXIT_S) -> int | None:
        """Its exit code; None where it did not end in time, and was killed."""
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            return None

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    @property
    def words(self) -> str:
        return self._said.decode(errors="replace").replace("\r", "")


class Operator:
    """One who starts the rollout of a release on one host, and looks at the screen until it ends."""

    def __init__(self, ground: Ground, name: str, to: str) -> None:
        self.ground, self.name = ground, name
        self.gate = {**ground.gate, **GATES.get(to, {})}
        self.screen = self._deploys()
        self.code: int | None = None
        self.outcome_then: str | None = None

    def _deploys(self) -> Screen:
        return self._types("deploy.py", "-y", "--data", "retry_rejected=true")

    def _types(self, script: str, *words: str) -> Screen:
        arguments = (script, *words, "--limit", self.ground.host.name)
        environment = declared(self.name, self.ground, gate=self.gate)
        return Screen("pyinfra", control.INVENTORY, *arguments, env=environment)

    def strike(self) -> None:
        """Do it at the fault point, where the host's process stands still."""

    def wait(self, ground: Ground) -> None:
        """Until the command has ended, whatever the host does meanwhile."""
        self.code = self.screen.wait()
        self.outcome_then = ground.outcome()

    def end(self) -> None:
        self.screen.kill()

    def told(self, outcome: str | None, running: str | None) -> list[str]:
        """A sentence for each wrong claim of exit code and last lines. `outcome`: how the host ended."""
        last = "\n".join(self.screen.words.splitlines()[-LAST_LINES:])
        found = []
        if self.code is None:
            return [f"the command did not end within {EXIT_S:.0f} s: {last}"]
        if self.code == 0 and outcome != "committed":
            found.append(f"the host ended with {outcome}, and the command exited 0")
        if self.outcome_then is None and self.code == 0:
            found.append("the command exited 0 while the switch was under way")
        return [f"{line}: {last}" for line in found + self._words_are_true(last, outcome)]

    def _words_are_true(self, last: str, outcome: str | None) -> list[str]:
        if f"tiny: {outcome}: " in self.screen.words and (self.code == 0) == (outcome == "committed"):
            return []
        return [f"the host ended with {outcome}, and the command exited {self.code} without that word"]


class CutOff(Operator):
    """Its cable is cut, and plugged in again once the host has ended alone."""

    def strike(self) -> None:
        self.ground.host.cut_link()

    def wait(self, ground: Ground) -> None:
        ground.wait_over()
        ground.host.restore_link()
        super().wait(ground)


class Killed(Operator):
    """Its process is killed; the next run tells how it ended."""

    def strike(self) -> None:
        self.screen.kill()

    def wait(self, ground: Ground) -> None:
        """Nobody waits."""

    def told(self, outcome: str | None, running: str | None) -> list[str]:
        again = self._deploys()
        code = again.wait()
        if code == 0 and "since the last run" in again.words:
            return []
        return [f"the next run exited {code}: {again.words[-1500:]}"]


class Interrupted(Operator):
    """Ends its command in the middle of the switch: the host goes on, and the screen says so."""

    def strike(self) -> None:
        self.screen.press(b"\x03")

    def _words_are_true(self, last: str, outcome: str | None) -> list[str]:
        if self.outcome_then is not None:  # it had ended when the command did
            return []
        found = [] if GOES_ON.search(last) else ["the last words do not say that the host goes on"]
        found += [f"the last words say {word}" for word in set(UNTRUE.findall(last))]
        return found


class Terminated(Interrupted):
    """An operator whose pyinfra gets SIGTERM."""

    def strike(self) -> None:
        self.screen.signal(15)


class HungUp(Interrupted):
    """Its terminal is closed: nobody reads what is said, but whoever started it may see the exit code."""

    def strike(self) -> None:
        self.screen.close()

    def _words_are_true(self, last: str, outcome: str | None) -> list[str]:
        return []


class Impatient(Operator):
    """Starts the same rollout again in a second window while the first is under way and nothing is judged."""

    FOLLOWS = "under way already"

    def strike(self) -> None:
        """The switch stands still until the second run has found it, or has ended without."""
        self.second = self._deploys()
        self.ground.until(lambda: self._has_looked, "be looked at by the second run", EXIT_S)

    @property
    def _has_looked(self) -> bool:
        return self.second.ended or self.FOLLOWS in self.second.words

    def wait(self, ground: Ground) -> None:
        super().wait(ground)
        self.second_code = self.second.wait()

    def end(self) -> None:
        super().end()
        if hasattr(self, "second"):
            self.second.kill()

    def told(self, outcome: str | None, running: str | None) -> list[str]:
        found = super().told(outcome, running)
        last = "\n".join(self.second.words.splitlines()[-LAST_LINES:])
        if self.second_code == 0 and running != self.ground.releases[self.name]:
            found.append(f"the second run exited 0, and {running} serves: {last}")
        if self.second_code is None:
            found.append(f"the second run did not end within {EXIT_S:.0f} s: {last}")
        return found


class GoesBack(Operator):
    """Rolls back by the runbook's one command while the new release is being watched."""

    def strike(self) -> None:
        threading.Timer(0.5, self._roll_back).start()

    def _roll_back(self) -> None:
        self.back = self._types("rollback.py", "-y", "--data", "service=tiny", "--data", "reason=worse")

    def wait(self, ground: Ground) -> None:
        time.sleep(1)
        self.back_code = self.back.wait()
        super().wait(ground)

    def told(self, outcome: str | None, running: str | None) -> list[str]:
        if self.back_code == 0 and running != self.ground.releases[self.name]:
            return []
        return [f"rollback.py exited {self.back_code}, and {running} serves: {self.back.words[-1500:]}"]


TITLES = {
    "cable": "the operator's network cable is cut until the switch has ended",
    "control": "SIGKILL of the operator's `pyinfra`",
    "ctrl-c": "the operator presses Ctrl-C",
    "term": "SIGTERM to the operator's `pyinfra`",
    "hang-up": "the operator's terminal is closed",
    "second-run": "the same rollout is started a second time",
    "rollback-now": "`rollback.py` during a soak",
}
OPERATORS: dict[str, type[Operator]] = {
    "cable": CutOff,
    "control": Killed,
    "ctrl-c": Interrupted,
    "term": Terminated,
    "hang-up": HungUp,
    "second-run": Impatient,
    "rollback-now": GoesBack,
}
