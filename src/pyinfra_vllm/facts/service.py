"""What a host runs: asked of its processes and its journal, not inferred from what a run changed."""

from __future__ import annotations

import json
from typing import Any

from pyinfra.api import FactBase, QuoteString, StringCommand
from typing_extensions import override

from pyinfra_vllm.facts import _script


class Service(FactBase[dict[str, Any]]):
    """Release, process, lock, journal and rejected releases of one service (see on_host/observe.py).

    + root: where pyinfra-vllm keeps its files on the host
    + service: the service's name
    """

    @override
    def requires_command(self, *args: Any, **kwargs: Any) -> str:
        return "python3"

    @override
    def command(self, root: str, service: str) -> StringCommand:
        return _script.python("observe", root, service, needs=("durable", "journal"))

    @override
    def process(self, output: list[str]) -> dict[str, Any]:
        (observed,) = json.loads("".join(output))
        return dict(observed)


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
        return sorted(path.split("/")[-2] for path in output)


class Host(FactBase[dict[str, Any]]):
    """What a host has of us: python3's version, the program, the recovery unit, users and platform.

    + root: where pyinfra-vllm keeps its files on the host
    + users: names to look up
    """

    @override
    def requires_command(self, *args: Any, **kwargs: Any) -> str:
        return "python3"

    @override
    def command(self, root: str, users: tuple[str, ...] = ()) -> StringCommand:
        return _script.python("inspect_host", root, *users)

    @override
    def process(self, output: list[str]) -> dict[str, Any]:
        return dict(json.loads("".join(output)))
