"""The front of a service with standby: one address for clients, and a symlink to the server that is awake.

systemd listens at the address, and systemd-socket-proxyd, which it starts, connects to the symlink anew for
each connection. So renaming the symlink leads new connections elsewhere, and streams stay where they are.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ..state import durable
from ..state.paths import FRONT_FILES, ServicePaths, awake
from . import systemd

PAUSE_S, ASK_S = 0.1, 5.0
STOP_S = 90.0


class Front:
    """The front of one service, which a release without standby has none of."""

    def __init__(self, paths: ServicePaths) -> None:
        self.paths = paths
        self._unit = paths.front_unit(FRONT_FILES[0])

    @property
    def release(self) -> str | None:
        """The current release, where clients ask the front for it."""
        try:
            current = self.paths.linked(self.paths.current)
        except OSError:  # not even a link
            return None
        return current if current and self.paths.has_front(current) else None

    @property
    def listens(self) -> bool:
        """Whether systemd listens for this service."""
        return self.release is not None and self._shown("ActiveState").get("ActiveState") == "active"

    def lay(self) -> None:
        """Before a start: systemd listens at the address of a release with standby, and of no other."""
        current = self.release
        if current is None:
            self.take_away()
            return
        self.lead_to(current)
        shown = self._shown("ActiveState", "Listen")
        if shown.get("ActiveState") == "active" and shown.get("Listen") != self._declared_address(current):
            self._stop(*map(self.paths.front_unit, FRONT_FILES))
        systemd.start(self._unit)

    def lead_to(self, release_id: str) -> None:
        """Lead new connections to the server of this release."""
        link = awake(self.paths.name)
        link.parent.mkdir(mode=0o755, exist_ok=True)
        lead(link, self.paths.api_socket(release_id))

    def take_away(self) -> None:
        """A release without standby listens on the port by itself. Units of others with these names stay."""
        links = [link for link, target in self.paths.front_links.items() if durable.leads(link, target)]
        if links:
            self._stop(*dict.fromkeys(link.name for link in links))
            for link in links:
                durable.remove(link)
            systemd.daemon_reload()

    def _shown(self, *properties: str) -> dict[str, str]:
        return systemd.show(self._unit, *properties)

    def _declared_address(self, release_id: str) -> str:
        text = (self.paths.release(release_id) / FRONT_FILES[0]).read_text(encoding="utf-8")
        lines = (line.partition("=") for line in text.splitlines())
        return next(f"{value} (Stream)" for name, _, value in lines if name == "ListenStream")

    def _stop(self, *units: str) -> None:
        for unit in units:
            systemd.stop(unit, STOP_S)


def accepts(path: Path) -> bool:
    """Whether somebody accepts connections at that Unix socket.

    The file alone says nothing: vLLM makes it first and listens when its engine is ready.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.settimeout(ASK_S)
        try:
            asking.connect(str(path))
        except OSError:
            return False
    return True


def wait(path: Path) -> None:
    """Return when the socket accepts connections, however long that takes. Clients wait in the queue."""
    while not accepts(path):
        time.sleep(PAUSE_S)


def lead(link: Path, target: Path) -> None:
    """Have the link lead to the target, by one rename(): a connection goes to one server or to the other.

    Not synced to disk: after a power cut the server's socket is gone, too. The caller holds the service's
    lock, so a link in the way was left by a process that was killed.
    """
    ready = link.with_name(f".{link.name}.partial")
    ready.unlink(missing_ok=True)
    ready.symlink_to(os.path.relpath(target, link.parent))
    ready.replace(link)


def main(arguments: Sequence[str]) -> int:
    """`front-wait PATH`, which the proxy's unit calls before the proxy."""
    if len(arguments) != 1:
        print("the path of one Unix socket is needed", file=sys.stderr)
        return 2
    wait(Path(arguments[0]))
    return 0
