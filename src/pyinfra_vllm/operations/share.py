"""Has the hosts of a run share a checkpoint, so that few of them ask the Hub (docs/architecture.md).

None of this fails a host: what does not come this way `checkpoint.present` gets from the Hub.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Generator, Mapping
from typing import Any

from pyinfra import host, logger, state
from pyinfra.api import FunctionCommand, Host, State, operation
from pyinfra.api.command import PyinfraCommand

from pyinfra_vllm import answers
from pyinfra_vllm.checkpoint import Checkpoint
from pyinfra_vllm.config import Fleet
from pyinfra_vllm.config.rollout import Swarm
from pyinfra_vllm.facts.checkpoint import Checkpoints
from pyinfra_vllm.facts.told import asked
from pyinfra_vllm.hub_endpoint import endpoint, token
from pyinfra_vllm.operations.checkpoint import COMPLETED, finished, request
from pyinfra_vllm.operations.util.refuse import alone
from pyinfra_vllm.operations.util.remote import LOST, Remote
from pyinfra_vllm.operations.util.together import runtime_path
from pyinfra_vllm.operations.util.unit import Unit
from pyinfra_vllm.printable import printable
from pyinfra_vllm.rollout.sharing import Member, Part, Sharing

MIB = 1 << 20
ASK_S = 60
# The unit watches itself (staging/swarm.py). Whatever may keep it from that, systemd ends it, since it holds
# the storage lock: after an hour, and as long as all takes at a quarter of the least `max_mib_per_s`.
SLOWEST = MIB // 4
# Below whatever serves on the host; `PROPERTIES` of util/unit.py has the rest.
_PROPERTIES = ("IOWeight=10", "CPUWeight=10")

_sharings: dict[tuple[str, str], Sharing] = {}  # of this run, by repository and commit
Commands = Generator[PyinfraCommand, None, None]


def _sharing(declared: Fleet, checkpoint: Checkpoint) -> Sharing:
    settings = next(item.sources.swarm for item in declared.hosts.values() if item.sources.swarm)
    made = Sharing(checkpoint.total_bytes, settings.from_hub)
    return _sharings.setdefault((checkpoint.repo, checkpoint.commit), made)


@operation()
@alone
def joined(declared: Fleet, checkpoint: Checkpoint) -> Commands:
    """
    Count the host among those that share a checkpoint, where it can.

    + declared: the fleet
    + checkpoint: one of its `shared`

    **Example:**

    .. code:: python

        share.joined(name="count who shares it", declared=declared, checkpoint=locked)
    """
    mine = declared.hosts[host.name]
    service, settings = declared.served_by(host.name, checkpoint), mine.sources.swarm
    if service is None or settings is None:
        host.noop(f"does not share {checkpoint.repo}")
        return
    directory = checkpoint.directory(mine.root)
    here = {item.directory: item for item in asked(host, Checkpoints, root=mine.root)}.get(directory)
    has = finished(checkpoint, here)
    address, problem = _address(host, settings)
    if here is not None and not has:
        problem = "it is not here as the lock states it, and mended from the Hub"
    limit = settings.max_mib_per_s and settings.max_mib_per_s * MIB
    sharing = _sharing(declared, checkpoint)
    problem = problem or sharing.join(Member(host.name, address, settings.port, has, limit))
    if problem:
        sharing.leave(host.name)
        if not state.is_executing:
            _tell(host, f"does not share {checkpoint.repo}: {problem}")
        host.noop(f"does not share {checkpoint.repo}")
        return
    if not state.is_executing and not has:
        _tell(
            host,
            f"would share {checkpoint.repo} with the other hosts of this run; at most"
            f" {settings.from_hub} of them fetch it, each a part, from {endpoint()}",
        )
    yield from ()  # nothing is done on the host


def _address(host: Host, settings: Swarm) -> tuple[str, str]:
    """Where other hosts reach this one, and why they can't."""
    if settings.address is not None:
        return settings.address, ""
    name = str(host.data.get("ssh_hostname") or host.name)
    try:
        found = str(ipaddress.ip_address(socket.getaddrinfo(name, None)[0][4][0]))
    except (OSError, ValueError):
        return "", f"the address of {name} is not known here; declare sources.swarm.address beside its name"
    if ipaddress.ip_address(found).is_loopback:
        return "", f"{name} is {found} here; declare sources.swarm.address beside its name"
    return found, ""


def _tell(host: Host, line: str) -> None:
    logger.info(f"{host.print_prefix}{printable(line)}")


# Each of these runs when its operation is executed, on every host that shares.


def _ask(state: State, host: Host, sharing: Sharing, root: str, asks: Mapping[str, Any]) -> bool:
    """Ask the host for a Python with libtorrent, where it takes part and anybody lacks the checkpoint."""
    if not sharing.has_joined(host.name) or not sharing.somebody_lacks_it:
        return True
    repo = asks["repo"]
    words = ("python3", "-I", f"{root}/bin/on-host.pyz", "libtorrent", asks["python"])
    try:
        found = Remote(host).json(answers.Libtorrent, *words, timeout_s=ASK_S)["python"]
    except LOST as error:
        _tell(host, f"does not share {repo}: {error}")
        return True
    if found:
        sharing.can(host.name, found)
    else:
        _tell(
            host,
            f"does not share {repo}: neither its python3 nor its runtime has libtorrent (Debian's package"
            " python3-libtorrent, or `libtorrent` among the runtime's packages)",
        )
    return True


def _fetch_part(state: State, host: Host, sharing: Sharing, root: str, asks: Mapping[str, Any]) -> bool:
    """On the few sources: fetch their parts. They alone get the Hub's token."""
    if part := sharing.sources.get(host.name):
        _fetch(host, sharing, part, root, asks)
    return True


def _fetch_part_again(state: State, host: Host, sharing: Sharing, root: str, asks: Mapping[str, Any]) -> bool:
    """On other hosts: fetch the parts that a source failed to bring."""
    if part := sharing.substitutes.get(host.name):
        _fetch(host, sharing, part, root, asks)
    return True


def _fetch(host: Host, sharing: Sharing, part: Part, root: str, asks: Mapping[str, Any]) -> None:
    hub_token = token() if not sharing.member(host.name).has else None
    secret = {"hub_token": hub_token} if hub_token else {}
    begin, end = part
    what = f"download bytes {begin} to {end} of {_named(asks)}"
    unit = Unit(host, f"fetch-{asks['key']}", what, _PROPERTIES)
    asks = {**asks, "part": {"begin": begin, "end": end, "piece": sharing.piece}}
    try:
        unit.run(root, "fetch", asks, **secret)
        if not sharing.bring(part, unit.told.get("pieces", "")):
            _tell(host, f"sent invalid hashes of its part of {_named(asks)}")
    except LOST as error:
        _tell(host, f"has not its part of {_named(asks)}: {error}")


def _begin(state: State, host: Host, sharing: Sharing, root: str, asks: Mapping[str, Any]) -> bool:
    """Begin to share, where all parts are on some hosts."""
    if not sharing.takes_part(host.name):
        if sharing.missing:
            _tell(host, f"{_named(asks)} is not shared: a part of it could not be fetched on any host")
        return True
    try:
        shared = {**asks, "swarm": order(sharing, host.name)}
        _unit(host, sharing, asks).begin(root, "fetch", shared)
    except LOST as error:
        _tell(host, f"did not begin to share {_named(asks)}: {error}")
        sharing.leave(host.name)
    return True


def _follow(state: State, host: Host, sharing: Sharing, root: str, asks: Mapping[str, Any]) -> bool:
    """Follow the host until it has the checkpoint and no other host lacks any of it."""
    if not sharing.takes_part(host.name):
        return True
    try:
        _unit(host, sharing, asks).follow()
        COMPLETED.add((host.name, asks["key"]))
        _tell(host, f"{_named(asks)} is complete and verified, shared among {len(sharing.able)} hosts")
    except LOST as error:
        _tell(host, f"{_named(asks)} is not complete: {error}. The Hub is asked for the rest.")
    return True


def _named(asks: Mapping[str, Any]) -> str:
    return f"{asks['repo']} at {asks['commit'][:12]}"


def _unit(host: Host, sharing: Sharing, asks: Mapping[str, Any]) -> Unit:
    """The unit in which the host shares; the kernel lets it talk to the other hosts and nobody else."""
    addresses = [sharing.member(host.name).address, *(address for address, _ in sharing.peers(host.name))]
    fence = ("IPAddressDeny=any", f"IPAddressAllow={' '.join(addresses)}")
    wall = f"RuntimeMaxSec={3600 + sharing.total_bytes // SLOWEST}"
    return Unit(host, f"fetch-{asks['key']}", f"share {_named(asks)}", (*_PROPERTIES, *fence, wall))


def order(sharing: Sharing, name: str) -> dict[str, object]:
    """The settings that a host needs to share. They hold no secret and no host name."""
    member = sharing.member(name)
    return {
        "python": sharing.python(name),
        "piece": sharing.piece,
        "hashes": sharing.hashes,
        "address": member.address,
        "port": member.port,
        "peers": sharing.peers(name),
        "bytes_per_s": member.bytes_per_s,
    }


def _step(callback: Callable[..., bool]) -> Any:
    """The operation in which each host that shares a checkpoint does one thing."""

    @operation()
    @alone
    def step(declared: Fleet, checkpoint: Checkpoint) -> Commands:
        service, mine = declared.served_by(host.name, checkpoint), declared.hosts[host.name]
        if service is None or mine.sources.swarm is None:
            host.noop(f"does not share {checkpoint.repo}")
            return
        asks = request(mine.root, runtime_path(mine.root, service), checkpoint)
        yield FunctionCommand(callback, (_sharing(declared, checkpoint), mine.root, asks), {})

    return step


# In this order, each on all hosts before the next: what one records of a host, the next one needs of all.
STEPS = (
    (joined, "count who shares it"),
    (_step(_ask), "ask who can share it"),
    (_step(_fetch_part), "fetch its parts on a few hosts"),
    (_step(_fetch_part_again), "fetch parts that failed on other hosts"),
    (_step(_begin), "begin to share it"),
    (_step(_follow), "share it until all have it"),
)
