"""Running this machine's commands, with errors that carry what the command said."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

_started = time.monotonic()
_talking = threading.Lock()


class LabError(RuntimeError):
    """The lab cannot be built, started or used; the message says what is missing or what a
    command answered.
    """


def say(message: str) -> None:
    """One line of progress on stderr, with the seconds since the lab's process began."""
    with _talking:
        print(f"[lab {time.monotonic() - _started:6.1f}s] {message}", file=sys.stderr, flush=True)


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Say when a long step begins and how long it took."""
    say(f"{what} ...")
    begun = time.monotonic()
    yield
    say(f"{what}: {time.monotonic() - begun:.1f} s")


def run(
    *argv: str | Path,
    check: bool = True,
    timeout: float = 900,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run one command to its end; a non-zero exit raises LabError with its last lines unless
    check is False.
    """
    words = [str(word) for word in argv]
    try:
        done = subprocess.run(
            words,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            env=env,
            input=stdin or "",
        )
    except FileNotFoundError as error:
        raise LabError(f"{words[0]} is not installed on this machine") from error
    except subprocess.TimeoutExpired as error:
        raise LabError(f"{shown(words)} did not end within {timeout:.0f} s") from error
    if check and done.returncode != 0:
        raise LabError(f"{shown(words)} exited {done.returncode}:\n{last_lines(done.stdout + done.stderr)}")
    return done


def shown(words: Sequence[str]) -> str:
    text = " ".join(words)
    return text if len(text) < 200 else text[:197] + "..."


def last_lines(text: str, count: int = 15) -> str:
    return "\n".join(text.strip().splitlines()[-count:])
