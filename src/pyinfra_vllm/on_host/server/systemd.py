"""The few things that we ask of systemd, each one command with a time limit."""

from __future__ import annotations

import subprocess
import time
from contextlib import suppress
from pathlib import Path

from ..state import cgroup, running
from . import unit_log

COMMAND_TIMEOUT_S = 120
ASK_TIMEOUT_S = 10  # of a question that PID 1 answers at once when it answers at all
ASK_TRIES = 3  # PID 1 answers nobody while it executes itself anew
PAUSE_S = 0.5
NEWEST = 5000  # lines of a log


class SystemdError(Exception):
    """systemd refused or failed a command; the message has its own words."""


def _run(*command: str, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise SystemdError(f"`{' '.join(command)}` did not answer within {timeout_s:.0f} s") from error
    if done.returncode:
        raise SystemdError(f"`{' '.join(command)}` exited with {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def version() -> int:
    """Of systemd; 0 where its own word for it can't be read."""
    words = _run("systemctl", "--version").split()
    digits = words[1].partition(".")[0].partition("~")[0] if len(words) > 1 else ""
    return int(digits) if digits.isdigit() else 0


def daemon_reload() -> None:
    _run("systemctl", "daemon-reload")


def start(unit: str) -> None:
    """Start the unit. Its start limit is for crash loops: no start of ours counts towards it."""
    forget_failure(unit)
    _run("systemctl", "start", unit)


def forget_failure(unit: str) -> None:
    """Have `systemctl --failed` list it no more, and its starts not counted."""
    with suppress(SystemdError):  # where systemd has not loaded it, there is nothing to forget
        _run("systemctl", "reset-failed", unit)


def start_in_background(unit: str) -> None:
    _run("systemctl", "start", "--no-block", unit)


def stop(unit: str, stop_limit_s: float) -> None:
    """Stop the unit (up to its own stop limit)."""
    if show(unit, "LoadState")["LoadState"] == "not-found":
        return
    _run("systemctl", "stop", unit, timeout_s=stop_limit_s + COMMAND_TIMEOUT_S)


def stopping() -> bool:
    """Whether the host is shutting down or rebooting: then systemd refuses every start."""
    command = ("systemctl", "is-system-running")
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=ASK_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return done.stdout.strip() == "stopping"


def show(unit: str, *properties: str) -> dict[str, str]:
    """Raises SystemdError where PID 1 does not answer, after a few tries."""
    text = _patiently("systemctl", "show", unit, "--property", ",".join(properties))
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def _patiently(*command: str) -> str:
    for _ in range(ASK_TRIES - 1):
        try:
            return _run(*command, timeout_s=ASK_TIMEOUT_S)
        except SystemdError:
            time.sleep(PAUSE_S)
    return _run(*command, timeout_s=ASK_TIMEOUT_S)


def running_release(unit: str) -> str | None:
    """The release that the unit runs now."""
    return running.release(unit, _of_this_start(unit))


def started_release(unit: str) -> str | None:
    """The release that the unit's present start is known to be of; None also where nobody wrote that down."""
    return running.written_down(unit, _of_this_start(unit))


def loaded_release(unit: str) -> str | None:
    """The release whose unit systemd has loaded, and would start; None where it has none of ours."""
    words = show(unit, "Environment").get("Environment", "").split()
    name = "PYINFRA_VLLM_RELEASE="
    return next((word[len(name) :] for word in words if word.startswith(name)), None)


def _of_this_start(unit: str) -> dict[str, str]:
    """Systemd's properties of the unit; where PID 1 is mute, what the kernel and /run tell."""
    try:
        return show(unit, *running.PROPERTIES)
    except SystemdError:
        return {"MainPID": _oldest_process(unit), "InvocationID": running.invocation(unit)}


def _oldest_process(unit: str) -> str:
    """The number of the process that began first in the unit's control group; "0" where there is none."""
    began: dict[str, int] = {}
    unit = running.own_name(unit)
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if cgroup.unit_of(process) == unit:
                began[process.name] = int((process / "stat").read_text().rpartition(")")[2].split()[19])
        except OSError:  # it ended while we looked
            continue
    return min(began, key=began.__getitem__, default="0")


def log_cursor() -> str | None:
    """A mark in the journal: what comes after it belongs to what we do next, whatever the clock does.

    None where the journal tells none, or can't be read: that keeps nothing from being started.
    """
    with suppress(SystemdError):
        told = _run("journalctl", "--quiet", "--no-pager", "--lines", "0", "--show-cursor")
        for line in told.splitlines():
            if line.startswith("-- cursor: "):
                return line[len("-- cursor: ") :]
    return None


def log_since(unit: str, cursor: str | None) -> list[str]:
    """The unit's log lines after the mark, oldest first, the newest NEWEST; of a long log both ends."""
    try:
        return unit_log.bounded(line.text for line in unit_log.lines(unit, cursor, NEWEST))
    except unit_log.LogError as error:
        raise SystemdError(str(error)) from error


def log_of_start(unit: str, cursor: str | None) -> list[str]:
    """The log of the unit's newest start up to its first request: clients have no words in it."""
    invocation = show(unit, "InvocationID").get("InvocationID", "")
    try:
        return unit_log.before_requests(unit_log.lines(unit, cursor), invocation)
    except unit_log.LogError as error:
        raise SystemdError(str(error)) from error
