"""The lab's watchman: a small process that outlives the lab by a moment and clears up if the lab was killed.

It reads from a pipe whose other end only the lab holds. The kernel closes that end when the lab dies, however
it dies. It inherits the lab's lock too, so no other lab begins before the remains of this one are gone.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from . import leftovers
from .layout import RUN

_DONE = b"done"


@dataclass
class Watchman:
    """A process that removes the lab's leftovers when its owner is gone."""

    process: subprocess.Popen[bytes]

    @classmethod
    def hire(cls, lock: IO[str]) -> Watchman:
        log = RUN / "watch.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "lab.watch"],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                pass_fds=[lock.fileno()],
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
            )
        return cls(process)

    def dismiss(self) -> None:
        """The lab has cleared up by itself."""
        self.process.communicate(_DONE, timeout=30)


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # ends with the lab, never before it
    if sys.stdin.buffer.read() != _DONE:
        leftovers.remove()


if __name__ == "__main__":
    main()
