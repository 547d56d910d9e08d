"""One vLLM service on this host: which release it points to, starting it, and whether its tokens flow."""

from __future__ import annotations

import time
from typing import Any, Callable

from . import durable, kv_cache, secrets_file, sockets, systemd
from .client import Client, ClientError
from .paths import ServicePaths
from .release import Release

POLL_S = 1.0
FLOW_TIMEOUT_S = 60.0
CRASHES_ALLOWED = (
    1  # a second crash in a row is a loop; one can be GPU memory that the old process still held
)

Say = Callable[[str], None]


class NotServing(Exception):
    """The release was started and no tokens flowed from it in time."""


class Service:
    """Acts on the unit and asks its server; keeps no state of its own."""

    def __init__(self, paths: ServicePaths, say: Say) -> None:
        self.paths = paths
        self.say = say

    def point_at(self, release: Release | None) -> None:
        """The one atomic step: `current` is another release, and systemd knows its unit."""
        if release is None:
            durable.remove(self.paths.wants_link)
            durable.remove(self.paths.unit_link)
            durable.remove(self.paths.current)
        else:
            durable.point(self.paths.current, self.paths.release(release.id))
            self._install_unit()
        systemd.daemon_reload()

    def _install_unit(self) -> None:
        target = self.paths.current / "vllm.service"
        if not self.paths.unit_link.is_symlink():
            self.paths.unit_link.symlink_to(target)
        self.paths.wants_link.parent.mkdir(exist_ok=True)
        if not self.paths.wants_link.is_symlink():
            self.paths.wants_link.symlink_to(self.paths.unit_link)

    def stop(self, release: Release) -> None:
        systemd.stop(self.paths.unit, release.stop_limit_s)

    def start(self) -> str | None:
        """Start what `current` points to; returns a mark in the log from which its lines begin."""
        cursor = systemd.log_cursor()
        systemd.start(self.paths.unit)
        return cursor

    def running_release(self) -> str | None:
        return systemd.running_release(self.paths.unit)

    def client(self, release: Release, timeout_s: float = FLOW_TIMEOUT_S) -> Client:
        return Client(release.url, release.model, api_key=self._api_key(release), timeout_s=timeout_s)

    def _api_key(self, release: Release) -> str | None:
        """Each release has its own: another one's is refused while a key is changed."""
        return secrets_file.read(self.paths.secrets(release.id)).get("VLLM_API_KEY") or None

    def serves(self, release: Release) -> bool:
        """Whether this very release runs now and its tokens flow."""
        return self.running_release() == release.id and not self._flow_problem(release)

    def wait_until_serving(self, release: Release, timeout_s: float) -> float:
        """Seconds until tokens flowed from this release. Raises NotServing when they don't."""
        began = time.monotonic()
        problem = "it has not started"
        while time.monotonic() - began < timeout_s:
            self.no_stranger(release)
            self._no_crash_loop()
            if self.running_release() == release.id:
                left = timeout_s - (time.monotonic() - began)
                problem = self._flow_problem(release, min(FLOW_TIMEOUT_S, max(1.0, left)))
                if not problem:
                    return time.monotonic() - began
            self.say(
                f"waiting for tokens from {release.id}: {time.monotonic() - began:.0f} s of {timeout_s:.0f} s"
            )
            time.sleep(POLL_S)
        raise NotServing(f"no tokens from release {release.id} within {timeout_s:.0f} s: {problem}")

    def no_stranger(self, release: Release) -> None:
        """Raises NotServing where another program has the release's port: it would answer in its place."""
        found = sockets.strangers(release.port, self.paths.unit)
        if found:
            raise NotServing(f"port {release.port} is held by {', '.join(found)}, not by {self.paths.unit}")

    def _flow_problem(self, release: Release, timeout_s: float = FLOW_TIMEOUT_S) -> str:
        try:
            self.client(release).tokens_flow(timeout_s)
        except ClientError as error:
            return str(error)
        return ""

    def _no_crash_loop(self) -> None:
        state = systemd.show(self.paths.unit, "ActiveState", "NRestarts", "Result", "ExecMainStatus")
        crashes = int(state.get("NRestarts") or 0)
        if state["ActiveState"] == "failed" or crashes > CRASHES_ALLOWED:
            raise NotServing(
                f"vLLM ended by itself {crashes + 1} times after its start"
                f" (result {state.get('Result')}, status {state.get('ExecMainStatus')})"
            )

    def log(self, cursor: str | None) -> list[str]:
        return systemd.log_since(self.paths.unit, cursor)

    def kv_cache(self, release: Release, log: list[str]) -> dict[str, Any]:
        """The server's own figures of its KV cache; from the log alone where it has no /metrics."""
        try:
            names = list(self.client(release).metrics())
        except ClientError as error:
            self.say(f"no /metrics: {error}")
            names = []
        return kv_cache.measured(names, log)
