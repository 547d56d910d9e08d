"""`pyinfra-vllm lock`: resolves declared revisions at the Hub and writes `checkpoints.lock.yaml`.

Contacts the Hub only, never a host. The file is written once, at the end, when every model could be resolved.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pyinfra_vllm import fit, fleet, hub_endpoint
from pyinfra_vllm.catalog import config_json, shapes
from pyinfra_vllm.checkpoint import LOCK_FILE, Checkpoint, Lock
from pyinfra_vllm.commands import options
from pyinfra_vllm.errors import DeclarationError
from pyinfra_vllm.printable import printable_lines
from pyinfra_vllm.text import in_units

if TYPE_CHECKING:
    from pyinfra_vllm.hub import Hub

# Size of a checkpoint as a share of the size computed from its config.json. Models with two matrices in each
# MLP, shared experts or dense first layers differ by up to a third; a half or a double is reported.
LEAST_SHARE, MOST_SHARE = 0.6, 1.6
SMALL_BYTES = 64 * 1024**2  # headers and norms of a tiny model
TOO_SMALL = "files are missing, or the config.json is another model's"
TOO_LARGE = "they are not quantized as it says, saved in 32 bits, or another model's"

TOKENIZER = re.compile(r"tokenizer\.json|vocab\.(json|txt)|tekken\.json|[^/]*\.(model|tiktoken)")

Model = tuple[str, str]  # repository, revision
Say = Callable[[str], None]


@dataclass(frozen=True)
class Relock:
    """The lock file that the Hub's answers make, and how it differs from the one that was there."""

    lock: Lock
    added: tuple[str, ...]
    changed: tuple[str, ...]
    unchanged: tuple[str, ...]
    undeclared: tuple[str, ...]
    pruned: bool

    @property
    def stale(self) -> bool:
        """Whether the file that was there differs from the Hub's answers."""
        return bool(self.added or self.changed or (self.pruned and self.undeclared))

    def as_dict(self) -> dict[str, object]:
        """For --json: the changes, and commit and bytes of every declared model."""
        declared = {*self.added, *self.changed, *self.unchanged}
        return {
            "lock": str(self.lock.path),
            "stale": self.stale,
            "added": list(self.added),
            "changed": list(self.changed),
            "unchanged": list(self.unchanged),
            "undeclared": list(self.undeclared),
            "pruned": self.pruned,
            "checkpoints": {
                entry.name: {
                    "commit": entry.commit,
                    "files": len(entry.files),
                    "total_bytes": entry.total_bytes,
                    "weights_bytes": entry.weights_bytes,
                }
                for entry in self.lock.entries
                if entry.name in declared
            },
        }


def relock(
    models: Iterable[Model],
    lock: Lock,
    hub: Hub,
    *,
    prune: bool,
    say: Say,
    with_code: Collection[Model] = (),
    consolidated: Collection[Model] = (),
) -> Relock:
    """The lock entries that `models` need; those `with_code` may bring Python files, those `consolidated` are
    loaded in Mistral's own form.

    Raises HubError or CheckpointRefused; nothing is written.
    """
    found = []
    for repo, revision in sorted(set(models)):
        say(f"{repo}@{revision}: asking {hub.endpoint}")
        model = (repo, revision)
        entry = hub.checkpoint(
            repo, revision, allow_code=model in with_code, consolidated=model in consolidated
        )
        if not any(TOKENIZER.fullmatch(file.path) for file in entry.files):
            say(f"{entry.name} has no tokenizer files: flags: {{tokenizer: /a/path/on/the/host}} is needed")
        if doubt := doubtful_size(entry):
            say(f"{entry.name}: {doubt}")
        say(f"{entry.name}: {entry.commit[:12]}, {len(entry.files)} files, {in_units(entry.total_bytes)}")
        found.append(entry)
    known = {entry.name: entry for entry in lock.entries}
    names = {entry.name for entry in found}
    undeclared = tuple(name for name in known if name not in names)
    updated = lock.merged(found)
    return Relock(
        lock=updated.without(undeclared) if prune else updated,
        added=_names(entry for entry in found if entry.name not in known),
        changed=_names(entry for entry in found if entry.name in known and entry != known[entry.name]),
        unchanged=_names(entry for entry in found if entry == known.get(entry.name)),
        undeclared=undeclared,
        pruned=prune,
    )


def doubtful_size(entry: Checkpoint) -> str:
    """Why a checkpoint's size can't be that of its config.json, where all its parts are counted; or ""."""
    try:
        possible = fit.possible_bytes(shapes.from_config(entry.repo, entry.config))
    except DeclarationError:  # validate and resolve name the key
        return ""
    if not possible or config_json.is_part(entry.config):
        return ""
    expected = min(possible, key=lambda size: abs(size - entry.weights_bytes))
    off = abs(entry.weights_bytes - expected) > SMALL_BYTES
    if not off or LEAST_SHARE * expected <= entry.weights_bytes <= MOST_SHARE * expected:
        return ""
    less = entry.weights_bytes < expected
    return (
        f"its weights have {in_units(entry.weights_bytes)}, and those of the model in its config.json have"
        f" about {in_units(expected)}: {TOO_SMALL if less else TOO_LARGE}. Look at the repository before a"
        " rollout"
    )


def _names(entries: Iterable[Checkpoint]) -> tuple[str, ...]:
    return tuple(entry.name for entry in entries)


def run(
    inventory: str,
    group_data: Sequence[str] = (),
    *,
    path: Path = LOCK_FILE,
    check: bool = False,
    prune: bool = False,
    hub: Hub | None = None,
    say: Say = lambda line: None,
) -> tuple[int, Relock]:
    """The command: exit code (1 when `check` finds the file stale) and the result.

    Raises RolloutError.
    """
    hosts = fleet.load(inventory, group_data=group_data, need_lock=False).hosts.values()
    services = [service for host in hosts for service in host.services]
    models = {(service.model, service.revision) for service in services}
    with_code = {(service.model, service.revision) for service in services if service.allow_code}
    consolidated = {(each.model, each.revision) for each in services if fleet.loads_consolidated(each)}
    before = Lock.load(path) if path.exists() else Lock(path=path)
    result = relock(
        models, before, hub or _hub(), prune=prune, say=say, with_code=with_code, consolidated=consolidated
    )
    if check:
        return int(result.stale), result
    if result.stale or not path.exists():
        result.lock.dump()
    return 0, result


def _hub() -> Hub:
    """The Hub of HF_ENDPOINT, which an inventory may set.

    `huggingface_hub` dies of a damaged one while it is imported.
    """
    endpoint = hub_endpoint.endpoint()
    hub_endpoint.token(endpoint)
    from pyinfra_vllm.hub import Hub

    return Hub(endpoint)


def sentences(result: Relock, *, check: bool) -> list[str]:
    """The result for a person."""
    kinds = {"added": result.added, "changed": result.changed, "unchanged": result.unchanged}
    lines = [f"{kind:9} {name}" for kind, names in kinds.items() for name in names]
    kept = "removed" if result.pruned else "kept, though no service declares it (--prune removes it)"
    lines += [f"{name} is {kept}" for name in result.undeclared]
    path = result.lock.path
    if check and result.stale:
        return [*lines, f"{path} is stale: run `pyinfra-vllm lock`, read the diff and commit it."]
    if check or not result.stale:
        return [*lines, f"{path} is up to date."]
    return [*lines, f"{path} was written: read the diff and commit it."]


@click.command()
@options.inventory
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 when the file is stale.")
@click.option("--prune", is_flag=True, help="Remove the entries of models that no service declares.")
@options.group_data
@options.json_wanted
def lock(inventory: str, check: bool, prune: bool, group_data: tuple[str, ...], json_wanted: bool) -> int:
    """Write which files each declared model means to checkpoints.lock.yaml, or --check it.

    HF_ENDPOINT names another Hub, HF_TOKEN opens gated repositories.
    """

    def say(line: str) -> None:
        click.echo(printable_lines(line), err=True)

    code, result = run(inventory, group_data, check=check, prune=prune, say=say)
    if json_wanted:
        click.echo(json.dumps(result.as_dict(), indent=2))
    else:
        click.echo("\n".join(sentences(result, check=check)))
    return code
