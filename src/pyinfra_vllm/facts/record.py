"""Everything that a host can tell of its services, in one answer each: what runs, and what was switched."""

from __future__ import annotations

import json
from typing import Any

from pyinfra.api import FactBase, StringCommand
from typing_extensions import override

from pyinfra_vllm.facts import _script


class _Told(FactBase[list[dict[str, Any]] | None]):
    """JSON from a script; None where the host could not run it."""

    @staticmethod
    @override
    def default() -> None:
        return None

    @override
    def requires_command(self, *args: Any, **kwargs: Any) -> str:
        return "python3"

    @override
    def process(self, output: list[str]) -> list[dict[str, Any]]:
        return list(json.loads("".join(output)))


class Running(_Told):
    """What each service of a host runs (see on_host/observe.py).

    + root: where pyinfra-vllm keeps its files on the host
    """

    @override
    def command(self, root: str) -> StringCommand:
        return _script.python("observe", root, needs=("durable", "journal"))


class Record(_Told):
    """The newest switches of each service of a host (see on_host/recall.py).

    + root: where pyinfra-vllm keeps its files on the host
    + newest: how many switches of each service; 0: all
    + max_bytes: of evidence for each service; 0: none
    """

    @override
    def command(self, root: str, newest: int, max_bytes: int = 0) -> StringCommand:
        return _script.python("recall", root, str(newest), str(max_bytes), needs=("durable", "journal"))
