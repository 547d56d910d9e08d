"""Work that takes minutes runs on the host as a transient systemd unit; here it is started and followed.

The unit goes on when SSH drops or the control machine dies. The same request while it runs follows it;
another request for that name waits until it is over, as what it did may be less than what is asked for now.
The program in the unit tells how far it is in a small JSON status file (see on_host/state/status.py).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pyinfra import logger
from pyinfra.api import Host
from pyinfra.api.exceptions import ConnectError

from pyinfra_vllm import answers
from pyinfra_vllm.answers import T, UnitStatus
from pyinfra_vllm.errors import HostError
from pyinfra_vllm.operations.util.remote import LOST, Remote
from pyinfra_vllm.operations.util.screen import SCREEN, Working
from pyinfra_vllm.printable import printable
from pyinfra_vllm.text import in_time, in_units

RUN_DIRECTORY = "/run/pyinfra-vllm"  # for root alone: requests, credentials, locks, status files
POLL_S = 1.0
ANSWER_S = 30  # a poll that is not answered by then counts as a lost connection
LOST_CONTACT_S = 900.0  # after this long without an answer we stop watching; the host goes on by itself

_LOOK = 'cat -- "$1" 2>/dev/null; echo; systemctl show --property=ActiveState --value -- "$2"'
_REQUEST = 'cat -- "$1" 2>/dev/null || true'  # gone where the unit has just ended
_OVER = ("inactive", "failed")

# Work beside a server that is under load must not slow it down, and has no business outside its directory.
PROPERTIES = (
    "Type=exec",
    "Nice=10",
    "IOSchedulingClass=idle",
    "NoNewPrivileges=yes",
    "PrivateTmp=yes",
    "PrivateDevices=yes",
    "ProtectSystem=strict",
    "ProtectHome=read-only",
    "ProtectKernelTunables=yes",
    "ProtectControlGroups=yes",
    "RestrictSUIDSGID=yes",
    "TimeoutStopSec=30",
)


class Unit:
    """One transient unit on one host: `pyinfra-vllm-<name>.service`."""

    def __init__(self, host: Host, name: str, what: str, properties: Sequence[str] = ()) -> None:
        """A unit by name. `what`: its work, for the screen; `properties` of systemd beside `PROPERTIES`."""
        self.host = host
        self.what = what
        self.properties = (*PROPERTIES, *properties)
        self.told: UnitStatus = {}  # the program's last status, when it is done
        self.remote = Remote(host)
        self.name = f"pyinfra-vllm-{name}.service"
        self.status = f"{RUN_DIRECTORY}/{name}.json"
        self._request = f"{RUN_DIRECTORY}/{name}.request"
        self._secret = f"{RUN_DIRECTORY}/{name}.secret"

    def run(self, root: str, verb: str, request: Mapping[str, Any], *writable: str, **secret: str) -> str:
        """Have the host do `verb`, watch until it is done, and return its last message.

        Raises HostError with the reason when it fails.

        + root: where pyinfra-vllm keeps its files on the host, its program among them
        + request: the work, without secrets
        + writable: the directories that the work may change, beside the root
        + secret: at most one systemd credential, by name (with - for _)
        """
        while True:
            try:
                self.begin(root, verb, request, *writable, **secret)
            except OtherWork as error:
                self._say(f"{error}: waiting for its end")
                self._end()
            else:
                return self.follow()

    def begin(self, root: str, verb: str, request: Mapping[str, Any], *writable: str, **secret: str) -> None:
        """Start the work, unless it is under way, and leave the host to it. As `run`.

        Raises OtherWork, too.
        """
        if self._look()[1] in _OVER:
            self._start([f"{root}/bin/on-host.pyz", verb, self._request], request, (root, *writable), secret)
        elif self.remote.run("sh", "-c", _REQUEST, "sh", self._request).strip() == json.dumps(request):
            self._say("is under way already: following it")
        else:
            raise OtherWork(f"{self.name} does other work now")

    def _start(
        self,
        command: Sequence[str],
        request: Mapping[str, Any],
        writable: Sequence[str],
        secret: Mapping[str, str],
    ) -> None:
        self.remote.run("install", "-d", "-m", "700", RUN_DIRECTORY)
        self.remote.run("rm", "-f", "--", self.status)
        self.remote.write(self._request, json.dumps(request))
        properties = [
            *self.properties,
            f"ReadWritePaths={' '.join(writable)} {RUN_DIRECTORY}",
            f"ExecStopPost=-/usr/bin/env rm -f {self._request} {self._secret}",
        ]
        for name, value in secret.items():
            self.remote.write(self._secret, value)
            properties.append(f"LoadCredential={name.replace('_', '-')}:{self._secret}")
        try:
            self.remote.run(
                "systemd-run",
                f"--unit={self.name}",
                "--collect",
                "--quiet",
                *(f"--property={line}" for line in properties),
                *("/usr/bin/env", "python3", "-I", *command),
            )
        finally:
            self.remote.run("rm", "-f", "--", self._secret)

    def _look(self) -> tuple[UnitStatus, str]:
        """The status that the program wrote last ({} before the first) and systemd's state of the unit."""
        text = self.remote.run("sh", "-c", _LOOK, "sh", self.status, self.name, timeout_s=ANSWER_S)
        status, _, state = text.strip().rpartition("\n")
        return answers.read(status, UnitStatus) if status.strip() else {}, state.strip()

    def follow(self) -> str:
        """Watch work that was begun until it is done. Returns and raises as `run`."""
        return self._judge(self._end())

    def _end(self) -> UnitStatus:
        """Watch the unit until it is over; returns its last status."""
        began = time.monotonic()
        with SCREEN.following(self.host) as show:
            while True:
                try:
                    status, state = through_outages(self.host, self._look, self._say)
                except NoContact as error:
                    again = "run the same command again to follow it"
                    raise HostError(f"{error}. {self.name} goes on by itself; {again}") from error
                if state in _OVER:
                    return status
                show(Working(self.what, time.monotonic() - began, detail=describe(status)))
                time.sleep(POLL_S)

    def _judge(self, status: UnitStatus) -> str:
        self.told = status
        if status.get("state") == "done":
            return status.get("message", "")
        if status.get("state") == "failed":
            raise HostError(str(status.get("error")))
        raise HostError(f"{self.name} ended without a word: see `journalctl --unit {self.name}` on the host")

    def _say(self, line: str) -> None:
        logger.info(f"{self.host.print_prefix}{printable(line)}")


class OtherWork(HostError):
    """A unit that runs, and was asked for something else."""


class NoContact(HostError):
    """A host that did not answer for LOST_CONTACT_S; its work goes on."""


def through_outages(host: Host, ask: Callable[[], T], say: Callable[[str], None]) -> T:
    """One answer of a host. An outage is reported once, and the host reconnected until it answers.

    Raises NoContact after LOST_CONTACT_S.
    """
    since, lost = time.monotonic(), False
    while True:
        try:
            return ask()
        except LOST as error:
            if time.monotonic() - since > LOST_CONTACT_S:
                raise NoContact(f"no contact for {LOST_CONTACT_S:.0f} s") from error
            if not lost:
                say(f"no answer ({error}); the host goes on by itself, reconnecting")
            lost = True
            _reconnect(host)


def _reconnect(host: Host) -> None:
    """Try once to reach a host again whose connection was lost, as `host.connected` can't tell."""
    time.sleep(POLL_S)
    host.disconnect()
    try:
        host.connect(show_errors=False, raise_exceptions=True)
    except (ConnectError, OSError, EOFError) as error:
        logger.debug("reconnecting to %s: %s", host.name, error)


def describe(status: UnitStatus) -> str:
    """One line for the operator: state, bytes, rate and time left as far as the status has them."""
    if not status:
        return "starting"
    if status.get("message"):
        return status["message"]
    words = [status.get("state", "working")]
    total, here = status.get("total_bytes"), status.get("bytes", 0)
    if total:
        words.append(f"{in_units(here)} of {in_units(total)} ({100 * here / total:.0f} %)")
    if status.get("rate"):
        words.append(f"{in_units(status['rate'])}/s")
    if (eta_s := status.get("eta_s")) is not None:
        words.append(f"{in_time(eta_s)} left")
    return ", ".join(words)
