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

PAUSE_S, ASK_S = 0.1, 5.0


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
