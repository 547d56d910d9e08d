"""How a rollout goes over its hosts, and where they get checkpoints from, as declared."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from .base import Declaration
from .fields import AbsolutePath, OneAddress, Port, ServiceName, Text, as_tuple

Count = Annotated[int, Field(ge=1)]
Percent = Annotated[str, Field(pattern=r"^([1-9]\d?|100)%$")]


class Rollout(Declaration):
    """Order in which hosts switch, and the rule that stops the rest."""

    canary: Annotated[int, Field(ge=0)] | Annotated[tuple[Text, ...], BeforeValidator(as_tuple)] = Field(
        default=1, description="a number of hosts of each kind (0: none), or a list of host names"
    )
    waves: Annotated[tuple[Count | Percent, ...], BeforeValidator(as_tuple)] = Field(
        default=(),
        description='a list of host counts and percentages, like [2, "25%"]; the rest follows in one wave',
    )
    max_failures: Annotated[int, Field(ge=0)] = Field(default=0, description="a number of hosts, 0 or more")
    on_failure: Literal["stop", "rollback_all"] = Field(
        default="stop", description='"stop" or "rollback_all"'
    )
    pause_s: Annotated[float, Field(ge=0, le=86400)] = Field(
        default=0.0, description="seconds from 0 to 86400"
    )
    max_unavailable: dict[ServiceName, Count | Percent] = Field(
        default_factory=dict,
        description='a map of service names to a host count or a percentage, like {"chat": "25%"}',
    )

    share_compile_cache: bool = Field(default=False, description="True or False")

    def most_waves(self, hosts: int) -> int:
        """The most waves that `rollout.waves.plan` can make for that many hosts: a wave has at least one."""
        return hosts if self.max_unavailable else min(hosts, 1 + len(self.waves) + 1)


class Swarm(Declaration):
    """How hosts fetch a checkpoint from each other."""

    from_hub: Annotated[int, Field(ge=1, le=16)] = Field(
        default=4, description="a number of hosts from 1 to 16 that fetch from the Hub, each a part"
    )
    port: Port = Field(default=6881, description="a TCP port from 1 to 65535, free on the host")
    address: OneAddress | None = Field(
        default=None,
        description="an IP address of the host at which the others reach it; left out: the one of SSH",
    )
    max_mib_per_s: Annotated[int, Field(ge=1, le=100_000)] | None = Field(
        default=None, description="MiB per second in each direction, 1 or more; None: no limit"
    )


class Sources(Declaration):
    """Where a host asks for checkpoints before it asks the Hub."""

    path: AbsolutePath | None = Field(
        default=None, description="the absolute path of a folder of checkpoints on the host, or None"
    )
    swarm: Swarm | None = Field(default=None, description="a map of settings, {} for the defaults, or None")
