"""The journals of a host's services, with the root cause of the newest start that failed."""

from __future__ import annotations

from typing_extensions import override

from pyinfra_vllm import answers
from pyinfra_vllm.facts.script import Words
from pyinfra_vllm.facts.told import Told


class Logs(Told[list[answers.ServiceLog] | None]):
    """The log lines of the units of a host's services (see on_host/server/logs.py).

    + root: where pyinfra-vllm keeps its files on the host
    + newest: so many lines of each unit
    + service: only this one; left out: all of them
    """

    kind = list[answers.ServiceLog]

    @override
    def question(self, root: str, newest: int, service: str | None = None) -> Words:
        names = [service] if service else []
        return ("server.logs", root, str(newest), *names)
