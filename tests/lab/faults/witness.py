"""A host's witness as the tests use it: its process, and what it has written down so far."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

PROGRAM = Path(__file__).parent / "inside/witness.py"
LOOK_S = 0.1


class Heard(NamedTuple):
    """One question: when it was answered (or given up), by whom.

    at: monotonic seconds
    time: Unix time
    text: the tokens; None where there were none
    release: which release answered, as the stub says itself; None where the server doesn't say that
    """

    at: float
    time: float
    text: str | None
    release: str | None


class Witness:
    """Of one host. `see` tells it the host's supervisor after each time the power was switched on."""

    def __init__(self, record: Callable[[], Path], port: int = 8000, model: str = "tiny") -> None:
        self._record = record
        self._words = (str(port), model)
        self._process: subprocess.Popen[str] | None = None
        self._read = 0
        self._heard: list[Heard] = []

    def begin(self, supervisor: int) -> None:
        words = [sys.executable, "-I", "-S", str(PROGRAM), str(self._record()), *self._words]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, text=True, start_new_session=True)
        self.see(supervisor)

    def see(self, supervisor: int) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.write(f"{supervisor}\n")
            self._process.stdin.flush()

    def end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()

    @property
    def heard(self) -> list[Heard]:
        """Everything so far, oldest first. Nobody but one thread may ask."""
        if self._record().exists():
            with self._record().open() as file:
                file.seek(self._read)
                new = file.read()
            whole = new[: new.rfind("\n") + 1]
            self._read += len(whole)
            self._heard += [Heard(*json.loads(line)) for line in whole.splitlines()]
        return self._heard

    def since(self, moment: float) -> list[Heard]:
        heard = self.heard
        first = len(heard)
        while first and heard[first - 1].at >= moment:
            first -= 1
        return heard[first:]

    def hear(self, timeout: float) -> str | None:
        """The first answer from now on; None where none comes in time."""
        began = time.monotonic()
        while time.monotonic() - began < timeout:
            answers = [heard.text for heard in self.since(began) if heard.text is not None]
            if answers:
                return answers[-1]
            time.sleep(LOOK_S)
        return None

    def gaps(self, since: float, until: float) -> list[tuple[float, float]]:
        """Stretches without an answer between two moments: each from the last answer to the next."""
        found, last, quiet = [], since, False
        for heard in self.since(since):
            if heard.at > until:
                break
            if heard.text is None:
                quiet = True
                continue
            if quiet:
                found.append((last, heard.at))
            last, quiet = heard.at, False
        return [*found, (last, until)] if quiet else found
