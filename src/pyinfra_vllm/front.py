"""The two units of a service's front: one address, and a proxy to the server that is awake (docs/standby.md).

Pure: it renders text.
"""

from __future__ import annotations

from pathlib import Path

import jinja2

from pyinfra_vllm import shipped
from pyinfra_vllm.release import quoted, specifier

UNITS = ("socket", "service")


def units(service: str, bind: str, port: int, user: str, root: str) -> dict[str, str]:
    """The text of each unit by its name.

    + bind, port: the declared address, at which clients ask
    + user: the service's own, who alone can open its servers' sockets
    + root: the folder of the host's program
    """
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, trim_blocks=True, autoescape=False
    )
    environment.filters.update(quoted=quoted, specifier=specifier)
    words = {
        "service": service,
        "address": f"[{bind}]:{port}" if ":" in bind else f"{bind}:{port}",
        "user": user,
        "program": f"{root}/bin/on-host.pyz",
        "awake": f"/run/vllm-{service}/awake",
    }
    return {
        f"vllm-{service}-front.{kind}": environment.from_string(
            shipped.text(f"templates/front.{kind}.j2", Path.cwd())
        ).render(**words)
        for kind in UNITS
    }
