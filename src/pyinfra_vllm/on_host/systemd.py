"""The few things that we ask of systemd, each one command with a time limit."""

from __future__ import annotations

import subprocess
from pathlib import Path

from . import unit_log

RELEASE_VARIABLE = "PYINFRA_VLLM_RELEASE"
COMMAND_TIMEOUT_S = 120


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


def daemon_reload() -> None:
    _run("systemctl", "daemon-reload")


def start(unit: str) -> None:
    _run("systemctl", "start", unit)


def start_in_background(unit: str) -> None:
    _run("systemctl", "start", "--no-block", unit)


def run_in_background(unit: str, *command: str) -> None:
    """Run a command as a transient unit of that name, once the network is there; it may outlive the caller."""
    _run(
        "systemd-run", f"--unit={unit}", "--collect", "--no-block", "-pAfter=network-online.target", *command
    )


def stop(unit: str, stop_limit_s: float) -> None:
    """Stop the unit (up to its own stop limit) and forget its failures, so that a start limit reached by a
    crash loop can't refuse the next start."""
    if show(unit, "LoadState")["LoadState"] == "not-found":
        return
    _run("systemctl", "stop", unit, timeout_s=stop_limit_s + COMMAND_TIMEOUT_S)
    if show(unit, "ActiveState")["ActiveState"] == "failed":
        _run("systemctl", "reset-failed", unit)


def show(unit: str, *properties: str) -> dict[str, str]:
    text = _run("systemctl", "show", unit, "--property", ",".join(properties))
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def running_release(unit: str) -> str | None:
    """The release that the unit's main process was started from, asked of the process itself."""
    pid = show(unit, "MainPID").get("MainPID", "0")
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    prefix = f"{RELEASE_VARIABLE}=".encode()
    found = [item[len(prefix) :] for item in environment.split(b"\0") if item.startswith(prefix)]
    return found[0].decode() if found else None


def log_cursor() -> str | None:
    """A mark in the journal: what comes after it belongs to what we do next, whatever the clock does."""
    for line in _journal("--lines", "0", "--show-cursor").splitlines():
        if line.startswith("-- cursor: "):
            return line[len("-- cursor: ") :]
    return None


def log_since(unit: str, cursor: str | None, limit: int = 5000) -> list[str]:
    """The unit's log lines after the mark, oldest first, the newest `limit` of them; of a long log its two ends."""
    try:
        return unit_log.bounded(line.text for line in unit_log.lines(unit, cursor, limit))
    except unit_log.LogError as error:
        raise SystemdError(str(error)) from error


def log_of_start(unit: str, cursor: str | None) -> list[str]:
    """What the unit's newest start logged before its server took requests: no client can have put a word into that."""
    invocation = show(unit, "InvocationID").get("InvocationID", "")
    try:
        return unit_log.before_requests(unit_log.lines(unit, cursor), invocation)
    except unit_log.LogError as error:
        raise SystemdError(str(error)) from error


def _journal(*arguments: str) -> str:
    """journalctl's output; it exits with 1 and no word where nothing matches, which is an answer too."""
    command = ["journalctl", "--quiet", "--no-pager", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", timeout=COMMAND_TIMEOUT_S, check=False
    )
    if done.returncode and done.stderr.strip():
        raise SystemdError(f"`{' '.join(command)}` exited with {done.returncode}: {done.stderr.strip()}")
    return done.stdout
