"""The running releases and the record of switches of all services of a host."""

from __future__ import annotations

from typing import Any

from pyinfra.api import StringCommand
from typing_extensions import override

from pyinfra_vllm import answers
from pyinfra_vllm.facts import script
from pyinfra_vllm.facts.told import Told
from pyinfra_vllm.on_host.state.observed import Observed


class Running(Told[list[Observed] | None]):
    """The release that each service of a host runs (see on_host/state/observe.py).

    + root: where pyinfra-vllm keeps its files on the host
    """

    kind = Any

    @override
    def taken(self, value: Any) -> list[Observed]:
        return answers.observed(value)

    @override
    def command(self, root: str) -> StringCommand:
        return script.python("state.observe", root)


class Record(Told[list[answers.ToldService] | None]):
    """The newest switches of each service of a host (see on_host/state/recall.py).

    + root: where pyinfra-vllm keeps its files on the host
    + newest: how many switches of each service; 0: all
    + max_bytes: of evidence for each service; 0: none
    """

    kind = list[answers.ToldService]

    @override
    def taken(self, value: list[answers.ToldService]) -> list[answers.ToldService]:
        return answers.evidence(value)

    @override
    def command(self, root: str, newest: int, max_bytes: int = 0) -> StringCommand:
        return script.python("state.recall", root, str(newest), str(max_bytes))
