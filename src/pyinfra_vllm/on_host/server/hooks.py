"""Hooks: what a load balancer and people are told about a switch, by the host itself (docs/hooks.md).

`drain` comes before anything is touched, `undrain` once tokens are generated again, `notify` at each event. A
failing notify is noted and changes nothing; a failing drain ends the switch before it begins. Which hooks
there are is kept in `hooks.json` beside the journal, for recoveries. It never decides anything.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..state import durable, journal, secrets_file
from ..state.journal import Entry, Journal
from ..state.paths import ServicePaths

SCHEMA = "pyinfra-vllm/event/1"
DRAIN, UNDRAIN, NOTIFY = "drain", "undrain", "notify"
CHECK = "check"  # declared: programs take `--check`, which asks whether they could work and changes nothing
BEGIN, VERDICT, END, FAILED = "begin", "verdict", "end", "failed"
GOOD_ENDS = ("committed", "deferred", "calibrated", "tried")
TIMEOUT_S = 30.0
UNDRAIN_ATTEMPTS = 3
PAUSE_S = 2.0
REMIND_S = 3600.0  # an alert whose cause lasts is told again
RELEASE = "release"  # whose order declared the hooks: its secrets are the ones that they name
LAST_WORDS = 300  # characters of a failed hook's output that the journal keeps

# A URL is posted to by a program of its own, so that one time limit holds for every kind of hook, whatever a
# server does.
_POST = """
import http.client, os, sys, urllib.request
class Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments):
        return None
headers = {"Content-Type": "application/json"}
try:
    request = urllib.request.Request(os.environ["PYINFRA_VLLM_HOOK_URL"], sys.stdin.buffer.read(), headers)
    urllib.request.build_opener(Stay).open(request)
except (ValueError, http.client.InvalidURL):  # their words are the URL's, which may be a secret
    sys.exit("what is declared is no URL")
except (OSError, http.client.HTTPException) as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


class HookFailed(Exception):
    """A hook could not be called, ended with an error, or took too long.

    Its secrets are not in the message.
    """


class Hooks:
    """The hooks of one service in one transaction."""

    def __init__(self, paths: ServicePaths, log: Journal) -> None:
        self.paths = paths
        self.log = log
        self.declared: Mapping[str, Any] = durable.read_json(paths.hooks, {})

    def adopt(self, declared: Mapping[str, object] | None, release_id: str) -> None:
        """Take what an order declares, and keep it for the next; None (a rollback by hand) keeps the last."""
        wanted = {**declared, RELEASE: release_id} if declared else declared
        if wanted is not None and wanted != self.declared:
            durable.write_json(self.paths.hooks, wanted)
            self.declared = wanted

    def drain(self) -> None:
        """Raises HookFailed: then nothing may be touched."""
        if DRAIN in self.declared:
            with self.log.step(DRAIN):
                self._call(DRAIN, DRAIN, "is about to be restarted: send it no traffic")

    def undrain(self) -> str:
        """Undrain the service, where it was drained; returns what went wrong, empty if nothing."""
        if not self.drained:
            return ""
        if UNDRAIN not in self.declared:
            return "it is still drained: no undrain hook is declared any more"
        try:
            with self.log.step(UNDRAIN, must=False):
                self._insist(UNDRAIN, "may get requests again")
        except HookFailed as error:
            return f"it is still drained: {error}"
        return ""

    def give_up_undeclared(self) -> None:
        """Nothing is owed any more where the hook that could undrain it was taken out of the declaration."""
        if self.drained and UNDRAIN not in self.declared:
            self.log.try_write(UNDRAIN, "done", undeclared=True)

    @property
    def drained(self) -> bool:
        """Whether a drain was begun, even one that failed, and no undrain has succeeded since.

        An earlier transaction of the service may have left it so.
        """
        return self._drained_by is not None

    @property
    def drained_before(self) -> bool:
        """Whether an earlier transaction left it drained, and this one has not drained it itself."""
        return self._drained_by not in (None, self.log.tx)

    @property
    def _drained_by(self) -> str | None:
        for entry in reversed(journal.read(self.log.path)):
            if entry["step"] == UNDRAIN and entry["state"] == "done":
                return None
            if entry["step"] == DRAIN:
                return str(entry["tx"])
        return None

    def notify(
        self, event: str, text: str, noted: Mapping[str, object] | None = None, **fields: object
    ) -> None:
        """Tell people.

        Whatever becomes of it is in the journal, with what is to be noted, and changes nothing.
        """
        if NOTIFY not in self.declared:
            return
        try:
            self._call(NOTIFY, event, text, **fields)
        except HookFailed as error:
            self.log.try_write(NOTIFY, "failed", event=event, error=str(error), **(noted or {}))
        else:
            self.log.try_write(NOTIFY, "done", event=event, **(noted or {}))

    def alert(self, outcome: str, reason: str) -> None:
        """A person is needed, or may be: told once for each outcome and reason, and again after REMIND_S."""
        told = [entry for entry in self.log.entries() if entry["step"] == NOTIFY and entry.get("alert")]
        if told and told[-1]["alert"] == f"{outcome}: {reason}" and _age_s(told[-1]) < REMIND_S:
            return
        text = f"{outcome}: {reason}"
        self.notify(FAILED, text, {"alert": text}, outcome=outcome, reason=reason, verdict=None)

    def tell_end(self, outcome: str, reason: str, verdict: str | None = None) -> None:
        """The last event of a transaction; told once, whoever ends it."""
        if any(
            entry["step"] == NOTIFY and entry.get("event") in (END, FAILED) and not entry.get("alert")
            for entry in self.log.entries()
        ):
            return
        event = END if outcome in GOOD_ENDS else FAILED
        self.notify(event, f"{outcome}: {reason}", outcome=outcome, reason=reason, verdict=verdict)

    def _event(self, event: str, text: str, **fields: object) -> Mapping[str, object]:
        begin: Entry = next((entry for entry in self.log.entries() if entry["step"] == "begin"), {})
        host = socket.gethostname()
        told = {key: begin.get(key) for key in ("purpose", "operator", "from", "to")}
        return {
            "schema": SCHEMA,
            "event": event,
            "at": journal.now(),
            "host": host,
            "service": self.paths.name,
            "tx": self.log.tx,
            **told,
            "why": begin.get("reason", ""),
            "text": f"{host}: {self.paths.name}: {text}",
            **fields,
        }

    def _insist(self, kind: str, text: str) -> None:
        for left in reversed(range(UNDRAIN_ATTEMPTS)):
            try:
                self._call(kind, kind, text)
                return
            except HookFailed:
                if not left:
                    raise
                time.sleep(PAUSE_S)

    def _call(self, kind: str, event: str, text: str, **fields: object) -> None:
        """Raises HookFailed, whatever the reason: what hooks do must never decide how a switch ends."""
        timeout_s = self.declared.get("timeout_s", TIMEOUT_S)
        secrets = self.paths.secrets(self.declared.get(RELEASE, ""))
        try:
            call(self.declared[kind], self._event(event, text, **fields), timeout_s, secrets, kind)
        except (OSError, ValueError) as error:
            raise HookFailed(f"the {kind} hook could not be called: {error}") from error


def _age_s(entry: Entry) -> float:
    return (datetime.now(timezone.utc) - datetime.fromisoformat(entry["at"])).total_seconds()


def call(
    hook: Mapping[str, Any], event: Mapping[str, object], timeout_s: float, secrets: Path, kind: str
) -> None:
    """Call one hook with the event. Raises HookFailed.

    + hook: {"argv": [word, ...]}, {"url": URL} or {"url_env": the name of the secret that holds it}
    + secrets: a release's secrets.env; a command finds them in its environment
    + kind: how messages call the hook
    """
    hidden = secrets_file.read(secrets)
    environment = {**os.environ, **hidden}
    argv = hook.get("argv")
    if argv is None:
        url = hook.get("url") or hidden.get(hook["url_env"])
        if not url:
            raise HookFailed(f"the {kind} hook's URL is not among the service's secrets: {hook['url_env']}")
        environment["PYINFRA_VLLM_HOOK_URL"] = url
        argv = [sys.executable, "-I", "-c", _POST]
    problem = _run(argv, environment, f"{json.dumps(event, ensure_ascii=False)}\n".encode(), timeout_s)
    if problem:
        raise HookFailed(f"the {kind} hook failed: {_without(hidden, problem)[-LAST_WORDS:]}")


def problems(paths: ServicePaths) -> list[str]:
    """Why declared hooks could not be called now; empty where nothing speaks against it. Calls no URL."""
    declared: Mapping[str, Any] = durable.read_json(paths.hooks, {})
    secrets = paths.secrets(declared.get(RELEASE, ""))
    found = (_problem(kind, declared, secrets) for kind in (DRAIN, UNDRAIN, NOTIFY) if declared.get(kind))
    return list(filter(None, found))


def _problem(kind: str, declared: Mapping[str, Any], secrets: Path) -> str:
    hook = declared[kind]
    if "argv" not in hook:
        unknown = "url" not in hook and not secrets_file.read(secrets).get(hook["url_env"])
        return (
            f"the {kind} hook's URL is not among the service's secrets: {hook['url_env']}" if unknown else ""
        )
    program = Path(hook["argv"][0])
    if not program.is_file() or not os.access(program, os.X_OK):
        return f"the {kind} hook's program {program} is not there, or can't be executed"
    if not declared.get(CHECK):
        return ""
    asked = {"argv": [*hook["argv"], "--check"]}
    try:
        call(asked, {"schema": SCHEMA, "event": CHECK}, declared.get("timeout_s", TIMEOUT_S), secrets, kind)
    except (HookFailed, OSError, ValueError) as error:
        return f"asked with --check: {error}"
    return ""


def _without(hidden: dict[str, str], text: str) -> str:
    """The longest secret goes first: of one that begins with another, the rest would stay."""
    for secret in sorted(filter(None, hidden.values()), key=len, reverse=True):
        text = text.replace(secret, "(not shown)")
    return text


def _run(argv: list[str], environment: dict[str, str], text: bytes, timeout_s: float) -> str:
    """The problem; empty where there is none.

    Needs no free byte on any disk; nothing of the command outlives it.
    """
    with (
        os.fdopen(os.memfd_create("event"), "w+b") as event,
        os.fdopen(os.memfd_create("said"), "w+b") as said,
    ):
        event.write(text)
        event.seek(0)
        try:
            process = subprocess.Popen(
                argv, stdin=event, stdout=said, stderr=said, cwd="/", env=environment, start_new_session=True
            )
        except OSError as error:
            return str(error)
        try:
            status = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return f"it did not end within {timeout_s:g} s"
        finally:
            _end_all(process)
        said.seek(0)
        words = said.read().decode(errors="replace").strip()
        return f"status {status}: {words or 'it said nothing'}" if status else ""


def _end_all(process: subprocess.Popen[bytes]) -> None:
    """End the command, and whatever it started and left behind."""
    with suppress(ProcessLookupError):  # all of them have ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
