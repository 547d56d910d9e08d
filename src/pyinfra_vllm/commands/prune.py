"""`pyinfra-vllm prune`: lists everything that hosts no longer need, and deletes it with --yes.

The hosts keep everything that their releases need; everything declared or pinned here is kept, too. No
service is touched.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import click

from .. import fleet
from ..answers import Removable
from ..asking import Answer, Hosts
from ..checkpoint import Lock
from ..config import Declared
from ..printable import printable
from ..text import in_units
from . import options

# Deleting terabytes of small files takes a while; a host that answers nothing for so long is given up, not
# stopped.
LIMIT_S = 3600.0


def keep(declared: Declared, lock: Lock) -> dict[str, list[str]]:
    """The items to keep on a host, by kind: those declared for it and what it pins. Raises LockError for a
    model that is not in the lock: without its commit nobody knows which files it means.
    """
    pinned = [pin.partition("@") for pin in declared.keep]
    models = [(service.model, service.revision) for service in declared.services]
    models += [(repo, revision) for repo, at, revision in pinned if at]
    return {
        "checkpoints": sorted({_stored(*model, lock) for model in models}),
        "releases": sorted(name for name, at, _ in pinned if not at),
        "runtimes": sorted(
            {service.runtime.version for service in declared.services if service.runtime.version}
        ),
    }


def _stored(repo: str, revision: str, lock: Lock) -> str:
    """The name of a checkpoint below `checkpoints`; a whole commit needs no lock."""
    directory = repo.replace("/", "--")
    whole = len(revision) == 40 and not set(revision) - set("0123456789abcdef")
    return f"{directory}/{revision if whole else lock.get(repo, revision).commit}"


def run(
    inventory: str, limit: Sequence[str] = (), group_data: Sequence[str] = (), *, delete: bool = False
) -> list[Answer[list[Removable]]]:
    """The space that each host could free, or freed.

    Raises DeclarationError or LockError before a host is contacted.
    """
    from ..operations.prune import prune as on_host

    wanted = fleet.load(inventory, group_data=group_data, limit=limit, need_lock=False)
    lock = Lock.load() if wanted.models() or any(host.keep for host in wanted.hosts.values()) else Lock()
    kept = {name: keep(wanted.hosts[name], lock) for name in wanted.selected}
    operator = wanted.overrides.operator or "prune"
    with Hosts(inventory, limit, group_data) as hosts:
        return hosts.ask(
            lambda host: on_host(
                host, wanted.hosts[host.name].root, kept[host.name], operator, delete=delete
            ),
            limit_s=LIMIT_S,
        )


def sentences(answers: Sequence[Answer[list[Removable]]], *, delete: bool) -> list[str]:
    """The result for a person: every path, then the sum of each host."""
    lines = []
    for answer in answers:
        if answer.value is None:
            lines.append(printable(f"{answer.host}: {answer.problem}"))
            continue
        lines += [
            (
                f"{answer.host}: {printable(item['kind']):10} {in_units(item['bytes']):>9} "
                f" {printable(item['path'])}"
            )
            for item in answer.value
        ]
        freed = in_units(sum(item["bytes"] for item in answer.value))
        lines.append(f"{answer.host}: {freed} {'freed' if delete else 'can be freed'}")
    if not delete and any(answer.value for answer in answers):
        lines.append("Nothing was deleted: run it again with --yes.")
    return lines


@click.command()
@options.inventory
@options.limit
@click.option("--yes", "delete", is_flag=True, help="Delete what is shown.")
@options.group_data
@options.json_wanted
def prune(
    inventory: str, limit: tuple[str, ...], delete: bool, group_data: tuple[str, ...], json_wanted: bool
) -> int:
    """Show what nothing on the hosts needs any more; delete it with --yes.

    Kept are the current and the previous release, one that waits to be switched to, everything that they
    refer to, what is declared now, and what `keep` pins. Exit code 1 when a host could not be asked, or is
    busy with a switch or a download: nothing was touched there.
    """
    answers = run(inventory, limit, group_data, delete=delete)
    if json_wanted:
        hosts = [{"host": each.host, "problem": each.problem, "items": each.value or []} for each in answers]
        click.echo(json.dumps({"deleted": delete, "hosts": hosts}, indent=2))
    else:
        click.echo("\n".join(sentences(answers, delete=delete)))
    return int(any(answer.value is None for answer in answers))
