"""Runs nvidia-smi with a time limit, since it hangs with a driver that hangs."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress

from . import programs

PROGRAM = "nvidia-smi"
TIMEOUT_S = 60.0
KILLED_S = 5.0  # for a killed program to end; one that hangs in the driver does not
LAST_WORDS = 300  # characters of what it printed


class NoAnswer(Exception):
    """nvidia-smi did not answer; the message has its own words."""


def there() -> bool:
    return programs.there(PROGRAM)


def ask(*arguments: str, timeout_s: float = TIMEOUT_S) -> str:
    """The output of nvidia-smi. Raises NoAnswer where it fails, or takes longer than `timeout_s`."""
    words = " ".join((PROGRAM, *arguments))
    try:
        child = subprocess.Popen(
            [PROGRAM, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, "LC_ALL": "C"},
        )
    except OSError as error:
        raise NoAnswer(f"`{words}` can't be run: {error}") from error
    try:
        out, err = child.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        _end(child)
        raise NoAnswer(f"`{words}` did not answer within {timeout_s:.0f} s") from None
    if child.returncode:
        said = " ".join((out + b" " + err).decode(errors="replace").split())  # most of it on stdout
        raise NoAnswer(f"`{words}` exited with {child.returncode}: {said[-LAST_WORDS:] or 'without a word'}")
    return out.decode(errors="replace")


def _end(child: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        child.communicate(timeout=KILLED_S)
