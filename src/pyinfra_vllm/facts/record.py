"""Everything that a host can tell of its services, in one answer each: what runs, and what was switched."""

from __future__ import annotations

from typing import Any

from pyinfra.api import StringCommand
from typing_extensions import override

from pyinfra_vllm import answers
from pyinfra_vllm.facts import _script
from pyinfra_vllm.facts._told import Told
from pyinfra_vllm.on_host.values import list_of


class Running(Told[list[dict[str, Any]] | None]):
    """The release that each service of a host runs (see on_host/observe.py).

    + root: where pyinfra-vllm keeps its files on the host
    """

    check = list_of(answers.OBSERVED)

    @override
    def command(self, root: str) -> StringCommand:
        return _script.python("observe", root, needs=("durable", "journal", "running"))


class Record(Told[list[dict[str, Any]] | None]):
    """The newest switches of each service of a host (see on_host/recall.py).

    + root: where pyinfra-vllm keeps its files on the host
    + newest: how many switches of each service; 0: all
    + max_bytes: of evidence for each service; 0: none
    """

    check = list_of(answers.TOLD)

    @override
    def taken(self, value: Any) -> list[dict[str, Any]]:
        return answers.evidence(value)

    @override
    def command(self, root: str, newest: int, max_bytes: int = 0) -> StringCommand:
        return _script.python("recall", root, str(newest), str(max_bytes), needs=("durable", "journal"))
