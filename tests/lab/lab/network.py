"""The lab's bridge and the hosts' cables: real interfaces that can be cut, restored and slowed down."""

from __future__ import annotations

from .layout import BRIDGE, INNER_PREFIX, NAME_LIMIT, OUTER_PREFIX, Network
from .shell import LabError, run


def make_bridge(network: Network) -> None:
    if f" {network.prefix}." in run("ip", "-4", "-o", "addr").stdout:
        raise LabError(
            f"{network.subnet} is already used on this machine: name another private prefix, such as"
            " 10.99.1, in PYINFRA_VLLM_LAB_NETWORK"
        )
    run("ip", "link", "add", BRIDGE, "type", "bridge")
    run("ip", "addr", "add", f"{network.gateway}/24", "dev", BRIDGE)
    run("ip", "link", "set", BRIDGE, "up")


def outer(name: str) -> str:
    return OUTER_PREFIX + checked(name)


def inner(name: str) -> str:
    return INNER_PREFIX + checked(name)


def checked(name: str) -> str:
    if not name.isalnum() or not name.islower() or len(name) > NAME_LIMIT:
        raise LabError(
            f"host name {name!r}: small letters and digits, beginning with a letter, at most {NAME_LIMIT}"
        )
    return name


def plug_in(name: str) -> None:
    """Plug the host's cable into the bridge."""
    run("ip", "link", "set", outer(name), "master", BRIDGE, "up")


def unplug(name: str) -> None:
    if outer(name) in interfaces():
        run("ip", "link", "del", outer(name), check=False)


def cut(name: str) -> None:
    run("ip", "link", "set", outer(name), "down")


def restore(name: str) -> None:
    run("ip", "link", "set", outer(name), "up")


def limit(name: str, rate_mbit: float | None) -> None:
    """Limit what the host receives, in Mbit/s; None takes the limit away."""
    run("tc", "qdisc", "del", "dev", outer(name), "root", check=False)
    if rate_mbit is not None:
        shape = ["tbf", "rate", f"{rate_mbit}mbit", "burst", "64kb", "latency", "50ms"]
        run("tc", "qdisc", "add", "dev", outer(name), "root", *shape)


def interfaces() -> list[str]:
    """The lab's own interfaces on this machine."""
    lines = run("ip", "-o", "link").stdout.splitlines()
    names = [line.split(": ")[1].split("@")[0] for line in lines]
    return [name for name in names if name == BRIDGE or name.startswith((OUTER_PREFIX, INNER_PREFIX))]
