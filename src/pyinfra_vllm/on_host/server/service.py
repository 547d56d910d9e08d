"""One vLLM service on this host: its current release, its start and stop, and the generation check."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable

from ..openai.client import Client, ClientError, Refused
from ..state import durable, secrets_file
from ..state.paths import API_SOCKET, CONTROL_SOCKET, ServicePaths
from . import compile_cache, kv_cache, root_cause, sockets, systemd
from .control import ASLEEP, SERVING, Control, Mute
from .front import Front
from .release import Release

POLL_S = 1.0
GENERATION_TIMEOUT_S = 60.0
# A second crash in a row is a loop; one can be GPU memory that the old process still held.
CRASHES_ALLOWED = 1

Say = Callable[[str], None]


DOWN = ("inactive", "failed")
RUN = Path("/run")
RUN_BYTES_NEEDED = 20 << 20  # newer systemd refuses to reload below 16 MiB (RELOAD_DISK_SPACE_MIN)
INODES_NEEDED = 64  # links, evidence and a few files of the release's cache
SYSTEMD = "init.scope"  # the unit of systemd itself, which listens for the front
STOP_LIMIT_S = 3600.0  # of a release whose own limit can't be read; systemd knows the unit's


class NotServing(Exception):
    """The release was started and did not pass the generation check."""


class PortTaken(NotServing):
    """Another program has the release's port, which says nothing about the release."""


class Stopped(NotServing):
    """The unit was stopped by an operator, so the release is not to blame."""


class TooSlow(NotServing):
    """The release was still starting when its time was up: another try would take as long."""


class Foreign(Exception):
    """The unit's name belongs to somebody else's unit. Nothing was touched."""


class Service:
    """Acts on the unit and asks its server; keeps no state of its own.

    + unit: the one that is asked, as that of a release with standby that is not current; None: the current's
    """

    def __init__(self, paths: ServicePaths, say: Say, unit: str | None = None) -> None:
        self.paths = paths
        self.say = say
        self.unit = unit or paths.unit
        self.front = Front(paths)
        self._known: frozenset[sockets.Listener] = frozenset()  # listeners that were shown to be the unit's

    def point_at(self, release_id: str | None) -> None:
        """The one atomic step: `current` is another release, and systemd knows its unit.

        Raises SystemdError where systemd refuses to load that, and has another one.
        """
        if release_id is None:
            self.front.take_away()
            for link, target in self._links.items():
                if not self._foreign(link, target):
                    durable.remove(link)
            durable.remove(self.paths.current)
        else:
            durable.point(self.paths.current, self.paths.release(release_id), keep=True)
            self._mend_links()
            self._forget_sleep(release_id)
        try:
            systemd.daemon_reload()
        except systemd.SystemdError as error:  # as with less than 16 MiB free in /run
            if release_id is None or systemd.loaded_release(self.paths.unit) != release_id:
                raise
            self.say(f"systemd has the unit of {release_id} loaded, though it reloads nothing: {error}")

    def mend_links(self) -> list[str]:
        """Enable the unit again where somebody disabled or edited it; returns what was mended."""
        wrong = self.wrong_links()
        if wrong:
            self._mend_links()
            systemd.daemon_reload()
        return [str(link) for link in wrong]

    def wrong_links(self) -> dict[Path, Path]:
        """The links to the unit that are missing or lead elsewhere, and where each must lead."""
        return {link: target for link, target in self._links.items() if not durable.leads(link, target)}

    def _mend_links(self) -> None:
        for link, target in self._links.items():
            link.parent.mkdir(exist_ok=True)
            if self._foreign(link, target):
                self._set_aside(link)
            durable.link_absolutely(link, target)

    def _set_aside(self, link: Path) -> None:
        """Somebody's file in our link's place (`systemctl edit --full`): kept under a name systemd ignores.

        Never a unit that was there before: `no_foreign_unit` lets no switch begin then.
        """
        aside = link.with_name(f"{link.name}.replaced-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}")
        self.say(f"{link} was replaced by somebody during the switch: it is now {aside}")
        link.rename(aside)

    @property
    def _links(self) -> dict[Path, Path]:
        """How systemd finds the unit, and that it is to start at boot: each link and where it leads."""
        unit, wants = self.paths.unit_link, self.paths.wants_link
        current = self.front.release
        if current is None:
            return {unit: self.paths.current / "vllm.service", wants: unit}
        server = self.server_link(current)
        return {**server, unit: next(iter(server)), wants: unit, **self.paths.front_links}

    def server_link(self, release_id: str) -> dict[Path, Path]:
        """How systemd finds the server of a release with standby, current or not."""
        link = self.paths.units / self.paths.server_unit(release_id)
        return {link: self.paths.release(release_id) / "vllm.service"}

    def lay_server(self, release_id: str) -> None:
        """Have systemd know the server of a release with standby that is not current."""
        for link, target in self.server_link(release_id).items():
            durable.link_absolutely(link, target)
        systemd.daemon_reload()

    def _foreign(self, link: Path, target: Path) -> bool:
        there = link.is_symlink() or link.exists()
        return there and not durable.leads(link, target) and not self._was_ours(link)

    def _was_ours(self, link: Path) -> bool:
        """Whether the unit's link leads where another release needs it: with standby to its server's unit."""
        if link != self.paths.unit_link or not link.is_symlink():
            return False
        target = link.readlink()
        return target == self.paths.current / "vllm.service" or self.paths.is_server(target)

    def no_foreign_unit(self, wanted: str | None = None) -> None:
        """Raises Foreign where the name of a unit of ours is taken by one that we did not make for it.

        + wanted: the release that is to be current, which may be the first with a front
        """
        front = self.paths.front_links if wanted and self.paths.has_front(wanted) else {}
        for link, target in {**front, **self._links}.items():
            if self._foreign(link, target):
                raise Foreign(
                    f"{link} is there and was not made by pyinfra-vllm for {self.paths.name}: stop and move"
                    " away what it belongs to, or give the service another name. Nothing was touched."
                )

    def refused(self) -> str:
        """The reason why this host can't switch and go back now; empty where there is none."""
        return next(filter(None, (self.short_of_space(), self.systemd_deaf())), "")

    def short_of_space(self) -> str:
        found = os.statvfs(self.paths.directory)
        if found.f_files and found.f_favail < INODES_NEEDED:
            return f"{self.paths.directory} has {found.f_favail} free inodes, {INODES_NEEDED} are needed"
        run = os.statvfs(RUN)
        if run.f_bavail * run.f_frsize < RUN_BYTES_NEEDED:
            return (
                f"{RUN} has {run.f_bavail * run.f_frsize >> 20} MiB free, and below {RUN_BYTES_NEEDED >> 20}"
                " MiB systemd may refuse to reload its units"
            )
        return ""

    def systemd_deaf(self) -> str:
        try:
            systemd.show(self.paths.unit, "ActiveState")
        except systemd.SystemdError as error:
            return str(error)
        return ""

    def stop(self, release: Release | None) -> None:
        """Stop all servers of the service; the release says how long that may take.

        Takes its key out of its cache where vLLM put it there.
        """
        limit_s = release.stop_limit_s if release else STOP_LIMIT_S
        for release_id in self.paths.server_units():
            self.stop_server(release_id, limit_s)
        systemd.stop(self.paths.unit, limit_s)
        for cache in self.paths.caches:
            for problem in compile_cache.forget_keys(cache):
                self.say(f"the cache may still hold a key: {problem}")

    def stop_server(self, release_id: str, limit_s: float = STOP_LIMIT_S) -> None:
        """Stop the server of a release with standby, and forget its unit unless the release is current."""
        self.control(release_id).end()  # vLLM's end waits for its connections
        systemd.stop(self.paths.server_unit(release_id), limit_s)
        self._forget_sleep(release_id)
        if release_id != self.paths.linked(self.paths.current):
            systemd.forget_failure(self.paths.server_unit(release_id))
            for link in self.server_link(release_id):
                durable.remove(link)

    def stop_others(self, keep: str | None = None) -> None:
        """Stop each server of the service that is not the current release's.

        + keep: this one sleeps on, if it does sleep
        """
        for release_id in self.others(keep):
            self.stop_server(release_id)

    def others(self, keep: str | None = None) -> list[str]:
        """Those that `stop_others` stops."""
        beside = set(self.paths.server_units()) - {self.paths.linked(self.paths.current)}
        return sorted(each for each in beside if each != keep or not self.asleep(each))

    def let_sleep(self, release_id: str) -> None:
        """Have systemd not start this server again, which sleeps on: should it end together with the one that
        serves, it could take the card's memory first.
        """
        settings = self.paths.asleep_settings(release_id)
        settings.parent.mkdir(parents=True, exist_ok=True)
        settings.write_text("[Service]\nRestart=no\n", encoding="utf-8")
        systemd.daemon_reload()

    def _forget_sleep(self, release_id: str) -> None:
        settings = self.paths.asleep_settings(release_id)
        if settings.exists():
            settings.unlink()
            with suppress(OSError):  # settings of somebody else's are in it, too
                settings.parent.rmdir()

    def asleep(self, release_id: str) -> bool:
        """Whether this server says that it sleeps."""
        try:
            return self.control(release_id).state().state == ASLEEP
        except Mute:
            return False

    def control(self, release_id: str) -> Control:
        folder = self.paths.sockets_folder(release_id)
        return Control(folder / CONTROL_SOCKET, self.paths.server_unit(release_id))

    @property
    def front_lost(self) -> bool:
        """Whether the current release runs, and the front does not lead to it. So it may be in a switch."""
        current = self.front.release
        return self.paths.front_lost(current) and self.running_release() == current

    def mend_front(self) -> bool:
        """Lead the front to the current release again; whether that was needed."""
        if not self.front_lost or (current := self.front.release) is None:
            return False
        self.front.lead_to(current)
        self.say(f"the front led to no server, and leads to {current} again")
        return True

    @property
    def down(self) -> bool:
        """Whether the unit runs nothing and is not about to: it was stopped, or systemd gave it up.

        Asked twice: on its way from a crash to the next start a unit is inactive for a moment.
        """
        for _ in range(2):
            if systemd.show(self.unit, "ActiveState")["ActiveState"] not in DOWN:
                return False
            time.sleep(POLL_S)
        return True

    def start(self) -> str | None:
        """Start what `current` points to; returns a mark in the log from which its lines begin."""
        cursor = systemd.log_cursor()
        self.front.lay()
        systemd.start(self.paths.unit)
        return cursor

    def running_release(self) -> str | None:
        return systemd.running_release(self.unit)

    def client(
        self,
        release: Release,
        timeout_s: float = GENERATION_TIMEOUT_S,
        headers: Mapping[str, str] | None = None,
    ) -> Client:
        """Sends nothing, and so no key, to anybody but the unit's own server.

        + headers: sent with each request, where the server has a socket of its own
        """
        if release.sockets:
            return Client(
                release.url,
                release.model,
                api_key=self._api_key(release),
                timeout_s=timeout_s,
                unix=release.sockets / API_SOCKET,
                prove=lambda connected: self._prove(connected, release),
                headers=headers,
            )
        return Client(
            release.url,
            release.model,
            api_key=self._api_key(release),
            timeout_s=timeout_s,
            listener=lambda: self._listener(release.port),
        )

    def _prove(self, connected: socket.socket, release: Release) -> None:
        found, unit = sockets.unit_behind(connected), self.paths.server_unit(release.id)
        if found != unit:
            raise Refused(f"{release.sockets} belongs to {found or 'no unit'}, not to {unit}")

    def _listener(self, port: int) -> frozenset[sockets.Listener]:
        """The listeners on the port.

        Raises Refused unless all of them are the unit's. Cheap, for it is asked at each request.
        """
        found = sockets.listeners(port)
        if not found:
            raise Refused(f"nothing listens on port {port}")
        if not found <= self._known:
            foreign_listeners = sockets.foreign_listeners(port, self.unit, found - self._known)
            if foreign_listeners:
                raise Refused(f"port {port} is held by {', '.join(foreign_listeners)}, not by {self.unit}")
            self._known |= found
        return found

    def _api_key(self, release: Release) -> str | None:
        """Each release has its own: another one's is refused while a key is changed."""
        return secrets_file.read(self.paths.secrets(release.id)).get("VLLM_API_KEY") or None

    def serves(self, release: Release) -> bool:
        """Whether this very release runs now and generates tokens."""
        return self.running_release() == release.id and not self._generation_problem(release)

    def wait_until_serving(
        self, release: Release, timeout_s: float, crashes_before: int = 0, unproven_since: str | None = None
    ) -> float:
        """Seconds until this release generated tokens. Raises NotServing when it does not.

        crashes_before: how often systemd had restarted the unit before; 0 after a start of ours
        unproven_since: the log's mark at its start, of a release that never served yet: that is given up at
            the first crash whose cause the next start would meet again
        """
        began = time.monotonic()
        problem = "it has not started"
        while time.monotonic() - began < timeout_s:
            self.no_foreign_listener(release)
            self._no_crash_loop(crashes_before, unproven_since)
            if self.running_release() == release.id:
                left = timeout_s - (time.monotonic() - began)
                problem = self._generation_problem(release, min(GENERATION_TIMEOUT_S, max(1.0, left)))
                if not problem:
                    return time.monotonic() - began
            time.sleep(POLL_S)
        raise TooSlow(f"no tokens from release {release.id} within {timeout_s:.0f} s: {problem}")

    @property
    def crashes(self) -> int:
        return int(systemd.show(self.unit, "NRestarts").get("NRestarts") or 0)

    def no_foreign_listener(self, release: Release) -> None:
        """Raises PortTaken where another program has the release's port: it would answer in its place."""
        found = sockets.foreign_listeners(release.port, self.unit)
        if found and self.front.listens:
            found = [name for name in sockets.foreign_listeners(release.port, SYSTEMD) if name in found]
        if found:
            raise PortTaken(f"port {release.port} is held by {', '.join(found)}, not by {self.unit}")

    def _generation_problem(self, release: Release, timeout_s: float = GENERATION_TIMEOUT_S) -> str:
        try:
            if release.sockets and (state := self.control(release.id).state().state) != SERVING:
                return f"it is {state}"
            self.client(release).check_generation(timeout_s)
        except Mute as error:
            return str(error)
        except ClientError as error:
            return str(error)
        return ""

    def _no_crash_loop(self, before: int, unproven_since: str | None) -> None:
        wanted = ("ActiveState", "SubState", "NRestarts", "Result", "ExecMainStatus")
        state = systemd.show(self.unit, *wanted)
        if state["ActiveState"] == "inactive" and self.down:
            raise Stopped(f"{self.unit} was stopped by somebody while its tokens were waited for")
        crashes = int(state.get("NRestarts") or 0) - before
        loops = state["ActiveState"] == "failed" or crashes > CRASHES_ALLOWED
        if not loops and (unproven_since is None or state.get("SubState") != "auto-restart"):
            return
        cause = root_cause.find(self.log(unproven_since)) if unproven_since else None
        if cause and cause.lasting:
            raise NotServing(f"vLLM can't start: {cause}")
        if loops:
            ended = f"vLLM ended by itself {crashes + 1} times after its start"
            status = f"result {state.get('Result')}, status {state.get('ExecMainStatus')}"
            raise NotServing(f"{ended}: {cause} ({status})" if cause else f"{ended} ({status})")

    def log(self, cursor: str | None) -> list[str]:
        return systemd.log_since(self.unit, cursor)

    def log_of_start(self, cursor: str | None) -> list[str]:
        return systemd.log_of_start(self.unit, cursor)

    def kv_cache(self, release: Release, log: list[str]) -> dict[str, Any]:
        """The server's own figures of its KV cache; from the log alone where it has no /metrics."""
        try:
            names = list(self.client(release).metrics())
        except ClientError as error:
            self.say(f"no /metrics: {error}")
            names = []
        return kv_cache.measured(names, log)
