"""The two units of a service's front: one address, and a proxy to the server that is awake (docs/standby.md).

Pure: it renders text.
"""

from __future__ import annotations

from pathlib import Path

from pyinfra_vllm import shipped
from pyinfra_vllm.on_host.state.paths import FRONT_FILES, awake
from pyinfra_vllm.rendering import rendered


def units(service: str, bind: str, port: int, user: str, root: str) -> dict[str, str]:
    """The text of each unit by its file.

    + bind, port: the declared address, at which clients ask
    + user: the service's own, who alone can open its servers' sockets
    + root: the folder of the host's program
    """
    words = {
        "service": service,
        "address": f"[{bind}]:{port}" if ":" in bind else f"{bind}:{port}",
        "user": user,
        "program": f"{root}/bin/on-host.pyz",
        "awake": str(awake(service)),
    }
    return {name: rendered(shipped.text(f"templates/{name}.j2", Path.cwd()), **words) for name in FRONT_FILES}
