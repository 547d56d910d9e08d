"""The systemd units of the control machine: a timer that ticks, a service that decides.

Text in, files out.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import DeclarationError, RolloutError
from ..rendering import quoted, specifier

SYSTEM = Path("/etc/systemd/system")
_DIRECTORY = "WorkingDirectory="
EVERY = (1, 2, 3, 4, 5, 6, 10, 12, 15, 20, 30, 60)  # what divides an hour, so that ticks are evenly spaced


@dataclass(frozen=True)
class Units:
    """Names and texts of the two units.

    system: of the system's systemd, else of the user's own
    """

    name: str
    system: bool
    files: dict[str, str] = field(default_factory=dict)

    @property
    def directory(self) -> Path:
        if self.system:
            return SYSTEM
        return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "systemd/user"

    def systemctl(self, *words: str) -> list[str]:
        return ["systemctl", *([] if self.system else ["--user"]), *words]


def units(
    inventory: str,
    command: Sequence[str],
    directory: Path,
    every_minutes: int = 5,
    account: str | None = None,
    environment_file: Path | None = None,
) -> Units:
    """The units that run `command` in `directory`.

    + every_minutes: a divisor of 60
    + account: who runs it; None makes units of the user's own systemd
    + environment_file: HF_TOKEN and the variables that `secrets` name; systemd reads it, nobody prints it

    Raises DeclarationError where a value can't be written into a unit.
    """
    if every_minutes not in EVERY:
        raise DeclarationError(
            f"--every {every_minutes}: minutes that divide an hour: {', '.join(map(str, EVERY))}"
        )
    name = f"pyinfra-vllm-schedule-{_stem(inventory)}"
    service = _service(inventory, command, directory, account, environment_file)
    files = {f"{name}.service": service, f"{name}.timer": _timer(inventory, every_minutes)}
    _no_line_breaks([inventory, str(directory), *command, str(environment_file or "")])
    return Units(name, account is not None, {key: "\n".join(lines) + "\n" for key, lines in files.items()})


def _service(
    inventory: str,
    command: Sequence[str],
    directory: Path,
    account: str | None,
    environment_file: Path | None,
) -> list[str]:
    return [
        "[Unit]",
        f"Description=Unattended rollouts of {specifier(inventory)}",
        "Documentation=man:systemd.timer(5)",
        "Wants=network-online.target",
        "After=network-online.target",
        "",
        "[Service]",
        # a oneshot that runs is not started again: never two at once; and it may take as long as a rollout
        # takes
        "Type=oneshot",
        "TimeoutStartSec=infinity",
        f"{_DIRECTORY}{specifier(str(directory))}",
        f"ExecStart={' '.join(quoted(word) for word in command)}",
        *([f"User={account}"] if account else []),
        *([f"EnvironmentFile={specifier(str(environment_file))}"] if environment_file else []),
        "Environment=PYINFRA_PROGRESS=off PYTHONUNBUFFERED=1",
    ]


def _timer(inventory: str, every_minutes: int) -> list[str]:
    return [
        "[Unit]",
        f"Description=Asks every {every_minutes} minutes whether a rollout of {specifier(inventory)} is due",
        "",
        "[Timer]",
        f"OnCalendar={'hourly' if every_minutes == 60 else f'*:0/{every_minutes}'}",
        "AccuracySec=5s",
        "",
        "[Install]",
        "WantedBy=timers.target",
    ]


def _no_line_breaks(texts: Sequence[str]) -> None:
    for text in texts:
        if "\n" in text:
            raise DeclarationError(f"{text!r} has a line break and can't be written into a unit.")


def daily(
    inventory: str, command: Sequence[str], directory: Path, at: str, account: str | None = None
) -> Units:
    """The units that run `command` (`doctor`) once a day; where a check fails, the service fails.

    + at: the time on this machine's clock, like 09:00

    Raises DeclarationError where a value can't be written into a unit.
    """
    if not re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d", at):
        raise DeclarationError(f"--doctor {at!r}: must be a time of day like 09:00")
    _no_line_breaks([inventory, str(directory), *command])
    name = f"pyinfra-vllm-doctor-{_stem(inventory)}"
    service = [
        "[Unit]",
        f"Description=Could each host of {specifier(inventory)} restart, and go back",
        "Wants=network-online.target",
        "After=network-online.target",
        "",
        "[Service]",
        "Type=oneshot",
        "TimeoutStartSec=1h",
        f"{_DIRECTORY}{specifier(str(directory))}",
        f"ExecStart={' '.join(quoted(word) for word in command)}",
        *([f"User={account}"] if account else []),
        "Environment=PYINFRA_PROGRESS=off PYTHONUNBUFFERED=1",
    ]
    timer = [
        "[Unit]",
        f"Description=Asks each day whether each host of {specifier(inventory)} could restart, and go back",
        "",
        "[Timer]",
        f"OnCalendar=*-*-* {at}:00",
        "Persistent=yes",
        "",
        "[Install]",
        "WantedBy=timers.target",
    ]
    files = {f"{name}.service": service, f"{name}.timer": timer}
    return Units(name, account is not None, {key: "\n".join(lines) + "\n" for key, lines in files.items()})


def install(made: Units) -> list[list[str]]:
    """Write the units and start the timer; returns the commands that were run.

    Raises DeclarationError where nothing was written, RolloutError where systemd refuses what was.
    """
    _write(made)
    commands = [made.systemctl("daemon-reload"), made.systemctl("enable", "--now", f"{made.name}.timer")]
    for words in commands:
        problem = _run(words)
        if problem:
            raise RolloutError(
                f"{' '.join(words)} failed: {problem}. The units are in {made.directory}; no host was"
                " touched."
            )
    return commands


def _refuse_another_project(made: Units) -> None:
    """Units have the name of the inventory: one of the same name elsewhere would no longer be rolled out."""
    for name, text in made.files.items():
        file = made.directory / name
        known = _directory(file.read_text(encoding="utf-8", errors="replace")) if file.is_file() else ""
        if known not in ("", _directory(text)) and Path(known).is_dir():
            stop = " ".join(made.systemctl("disable", "--now", f"{made.name}.timer"))
            raise DeclarationError(
                f"{file} is of the project in {known}: give this inventory another name, or end that one's"
                f" timer (`{stop}`) and remove its files. Nothing was written."
            )


def _directory(unit: str) -> str:
    """The project of a unit's text; empty where it names none, as a timer does."""
    found = [line for line in unit.splitlines() if line.startswith(_DIRECTORY)]
    return found[0].removeprefix(_DIRECTORY).replace("%%", "%") if found else ""


def _write(made: Units) -> None:
    try:
        _refuse_another_project(made)
        made.directory.mkdir(parents=True, exist_ok=True)
        for name, text in made.files.items():
            (made.directory / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise DeclarationError(
            f"{error.filename or made.directory} can't be written: {error.strerror}. The timer was not"
            f" started; make {made.directory} writable and run it again."
        ) from error


def _run(words: Sequence[str]) -> str:
    """The problem; empty where there is none."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except OSError as error:
        return str(error.strerror)
    return done.stderr.strip() or f"exit code {done.returncode}" if done.returncode else ""


def cron_line(command: Sequence[str], directory: Path, every_minutes: int) -> str:
    """The same for a crontab: cron mails what is printed, and `flock` in our own code keeps ticks apart."""
    minutes = "0" if every_minutes == 60 else f"*/{every_minutes}"
    words = shlex.join(command)
    return f"{minutes} * * * * cd {shlex.quote(str(directory))} && {words}".replace("%", r"\%")


def _stem(inventory: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(inventory).stem).strip("-") or "inventory"
