"""Asks a host for all that it no longer needs, deleted on request (on_host/staging/prune.py)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from pyinfra.api import Host

from pyinfra_vllm.answers import Removable
from pyinfra_vllm.operations.util.remote import Remote

# A host that was never rolled out to has no program, and nothing of us to remove.
_RUN = 'test -e "$1" || { echo "[]"; exit 0; }; exec python3 "$@"'


def prune(
    host: Host, root: str, keep: Mapping[str, Sequence[str]], operator: str, *, delete: bool
) -> list[Removable]:
    """The removable items, or with `delete` the removed ones. Raises HostError.

    + root: where pyinfra-vllm keeps its files on the host
    + keep: items that must stay, by kind (on_host.staging.prune.Keep)
    + operator: who wants it, for whoever finds the host's locks held
    """
    words = [f"{root}/bin/on-host.pyz", "--root", root, "prune", "--operator", operator]
    more = ["--delete"] if delete else []
    return Remote(host).json(list[Removable], "sh", "-c", _RUN, "sh", *words, *more, stdin=json.dumps(keep))
