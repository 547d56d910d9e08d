"""Facts about the services of a host, read from its processes and its journal."""

from __future__ import annotations

import re
from typing import Any

from pyinfra.api import FactBase, QuoteString, StringCommand
from typing_extensions import override

from pyinfra_vllm import answers
from pyinfra_vllm.errors import HostError
from pyinfra_vllm.facts import script
from pyinfra_vllm.facts.told import Told
from pyinfra_vllm.on_host.inspect.host import Installation
from pyinfra_vllm.on_host.state.observed import Observed
from pyinfra_vllm.on_host.state.values import shown

SERVICE = re.compile(r"/.*/[a-z0-9][a-z0-9._-]*/releases")


class Service(Told[Observed | None]):
    """Release, process, lock, journal and rejected releases of one service (see on_host/state/observe.py).

    + root: where pyinfra-vllm keeps its files on the host
    + service: the service's name
    """

    kind = Any

    @override
    def taken(self, value: Any) -> Observed:
        return answers.only(answers.observed(value))

    @override
    def command(self, root: str, service: str) -> StringCommand:
        return script.python("state.observe", root, service)


class Services(FactBase[list[str]]):
    """The names of the services that have releases on a host, sorted.

    + root: where pyinfra-vllm keeps its files on the host
    """

    default = list

    @override
    def command(self, root: str) -> StringCommand:
        # A host that nothing was ever rolled out to has no root, and no services.
        return StringCommand(
            *("test ! -d", QuoteString(root), "||"),
            *("find", QuoteString(root), "-mindepth 2 -maxdepth 2 -name releases -type d"),
        )

    @override
    def process(self, output: list[str]) -> list[str]:
        found = [SERVICE.fullmatch(path) for path in output]
        if not all(found):
            raise HostError(
                f"sent an invalid answer: no folders of services, but {shown(output)}. {answers.ADVICE}"
            )
        return sorted(path.split("/")[-2] for path in output)


class Host(Told[Installation | None]):
    """The installation on a host: python3's version, the program, the recovery unit, users and platform.

    + root: where pyinfra-vllm keeps its files on the host
    + users: names to look up
    """

    kind = Installation

    @override
    def command(self, root: str, users: tuple[str, ...] = ()) -> StringCommand:
        return script.python("inspect.host", root, *users)
