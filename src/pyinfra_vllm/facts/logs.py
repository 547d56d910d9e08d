"""The journals of a host's services, with the root cause of the newest start that failed."""

from __future__ import annotations

from pyinfra.api import StringCommand
from typing_extensions import override

from pyinfra_vllm.facts import script
from pyinfra_vllm.facts.told import Told
from pyinfra_vllm.on_host.server.logs import ServiceLog


class Logs(Told[list[ServiceLog] | None]):
    """The log lines of the units of a host's services (see on_host/server/logs.py).

    + root: where pyinfra-vllm keeps its files on the host
    + newest: so many lines of each unit
    + service: only this one; left out: all of them
    """

    kind = list[ServiceLog]

    @override
    def command(self, root: str, newest: int, service: str | None = None) -> StringCommand:
        names = [service] if service else []
        return script.python("server.logs", root, str(newest), *names)
