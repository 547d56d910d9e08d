"""Measured profiles: `profiles/*.yaml`, beside checkpoints.lock.yaml.

One file holds the flags that were found best on one card, for one model and one runtime, with the evidence.
All of them are a layer below all group data with the one key `profiles`, so every service has them; the
resolver uses the one that was measured for exactly its card, model, runtime and objective. Reads and writes
files only; decides nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from ..catalog.gpus import same_memory
from ..errors import DeclarationError, one_line
from ..repeated_keys import Loader
from .base import Declaration
from .fields import Environment, Flags, Repository, Text, Version, as_tuple
from .layers import Layer, dotted, merge
from .problems import ItemError, Problems, unknown

FOLDER = Path("profiles")
KEY = "profiles"
FORM = "pyinfra-vllm/profile/1"
OBJECTIVES = ("latency", "throughput", "balanced")
PHASE = re.compile(r"max|c[1-9]\d{0,4}")

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Metric = Literal["tokens_per_s", "ttft_s", "tpot_s", "e2e_s"]


def _phase(text: str) -> str:
    if PHASE.fullmatch(text) is None:
        raise ValueError('must be a phase of the gate, such as "c1" or "max"')
    return text


class Compared(Declaration):
    """One metric of the confirmation: these flags against the release before, in interleaved rounds."""

    phase: Annotated[Text, AfterValidator(_phase)] = Field(
        description='a phase of the gate, such as "c1" or "max"'
    )
    metric: Metric = Field(description='"tokens_per_s", "ttft_s", "tpot_s" or "e2e_s"')
    before: Positive = Field(description="a number above 0, in the metric's unit")
    after: Positive = Field(description="a number above 0, in the metric's unit")
    ratio: Positive = Field(description="after / before, a number above 0")
    interval: Annotated[tuple[Positive, Positive], BeforeValidator(as_tuple)] = Field(
        description="the ratio's 95 % interval, like [1.22, 1.26]"
    )

    @model_validator(mode="after")
    def _ratio_within_its_interval(self) -> Self:
        low, high = self.interval
        if not low <= self.ratio <= high:
            raise ItemError("interval", f"must be [low, high] around the ratio {self.ratio:g}")
        return self

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{self.phase} {self.metric} {self.before:g} -> {self.after:g},"
            f" {self.ratio:.3f} times [{low:.3f}, {high:.3f}]"
        )


class Workload(Declaration):
    """The requests that were measured: medians of tokens, and requests at a time."""

    input_tokens: Count = Field(description="a number of tokens, at least 1")
    output_tokens: Count = Field(description="a number of tokens, at least 1")
    streams: Annotated[tuple[Count, ...], BeforeValidator(as_tuple), Field(min_length=1)] = Field(
        description="a list of how many requests there were at a time, like [1, 64]"
    )


class Tried(Declaration):
    """One configuration that was tried and not taken."""

    name: Text = Field(description="text: the name of the configuration")
    ratio: Positive | None = Field(
        default=None,
        description="of the objective's metric to the release before, in the last look at it; left out: none",
    )
    ended: Text = Field(description="text: why it was not taken")


class Tuned(Declaration):
    """The flags found for one objective, and how that is known."""

    flags: Flags = Field(
        default_factory=dict, description="a map of vLLM flags to values; null takes one of the catalog's out"
    )
    environment: Environment = Field(
        default_factory=dict, description="a map of environment variables to text"
    )
    measured: date = Field(description="the date of the confirmation, like 2026-11-29")
    max_model_len: Count | None = Field(
        default=None, description="the tokens it was measured with, at least 1"
    )
    workload: Workload = Field(description="a map with input_tokens, output_tokens and streams")
    gain: Compared = Field(description="a map: the objective's metric, with its ratio and interval")
    elsewhere: Annotated[tuple[Compared, ...], BeforeValidator(as_tuple)] = Field(
        default=(), description="a list of further metrics, like `gain`: the costs, too"
    )
    tried: Annotated[tuple[Tried, ...], BeforeValidator(as_tuple)] = Field(
        default=(), description="a list of the configurations that were tried and not taken"
    )
    note: Text | None = Field(default=None, description="text, or left out")


def _known_objectives(found: dict[str, Tuned]) -> dict[str, Tuned]:
    for name in found:
        if name not in OBJECTIVES:
            raise ItemError(name, unknown("objective", name, OBJECTIVES))
    return found


class MeasuredProfile(Declaration):
    """One file: valid for one card, number of GPUs, model and runtime, and for nothing else."""

    form: Literal["pyinfra-vllm/profile/1"] = Field(alias="schema", description=f'"{FORM}"')
    card: Annotated[Text, Field(min_length=1)] = Field(
        description='the GPU model as nvidia-smi prints it or the catalog has it, or "cpu"'
    )
    memory_mib: Count | None = Field(
        default=None,
        description="the card's memory in MiB as nvidia-smi prints it; left out: a card of the catalog",
    )
    gpus: Annotated[int, Field(ge=0)] = Field(default=1, description="the service's GPUs; 0 on a CPU")
    model: Repository = Field(description='a repository id like "Qwen/Qwen3-32B-AWQ"')
    runtime: Version = Field(description='the measured vLLM version as text, like "0.25.1"')
    objectives: Annotated[dict[Text, Tuned], Field(min_length=1), AfterValidator(_known_objectives)] = Field(
        description="a map of latency, throughput or balanced to what was found"
    )

    @property
    def file(self) -> str:
        """The path of the file: it is named by what it is valid for."""
        card = re.sub(r"[^A-Za-z0-9.]+", "-", self.card).strip("-")
        several = f"{self.gpus}x-" if self.gpus > 1 else ""
        return str(FOLDER / f"{several}{card}--{self.model.replace('/', '--')}--{self.runtime}.yaml")


def layer(problems: Problems) -> Layer:
    """The layer that the files of this directory are; an empty one where there are none."""
    found = _read(problems)
    return Layer(str(FOLDER), {KEY: found} if found else {})


def own() -> tuple[MeasuredProfile, ...]:
    """The profiles of this directory. Raises DeclarationError with everything that is wrong in them."""
    problems = Problems()
    found = _read(problems)
    problems.raise_if_any()
    return found


def keep(profile: MeasuredProfile) -> Path:
    """Write a profile to its file, whole or not at all. What the file says of other objectives stays; its
    comments don't. Raises DeclarationError where it can't be read or written, or is of another card.
    """
    before = next((each for each in own() if each.file == profile.file), None)
    if before:
        if before.memory_mib and not same_memory(before.memory_mib, profile.memory_mib):
            raise DeclarationError(
                f"{profile.file} is of a card with {before.memory_mib} MiB, and this one has"
                f" {profile.memory_mib} MiB: move it away, and tune again"
            )
        objectives = {**before.objectives, **profile.objectives}
        profile = profile.model_copy(update={"objectives": objectives})
    file = Path(profile.file)
    partial = file.with_name(f".{file.name}.partial")
    try:
        FOLDER.mkdir(exist_ok=True)
        partial.write_text(text(profile), encoding="utf-8")
        partial.replace(file)
    except OSError as error:
        raise DeclarationError(f"{file} can't be written: {one_line(error)}") from error
    return file


def text(profile: MeasuredProfile) -> str:
    """The profile as its file has it."""
    document = _without_none(profile.model_dump(by_alias=True))
    for tuned in document["objectives"].values():
        tuned["flags"] = {name.removeprefix("--"): value for name, value in tuned["flags"].items()}
    return str(yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=110))


def _without_none(value: Any) -> Any:
    """Left-out keys instead of null, but among flags, where it takes one out."""
    if isinstance(value, list | tuple):
        return [_without_none(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {
        key: each if key == "flags" else _without_none(each)
        for key, each in value.items()
        if each is not None
    }


def _read(problems: Problems) -> tuple[MeasuredProfile, ...]:
    files = sorted(FOLDER.glob("*.y*ml")) if FOLDER.is_dir() else []
    found = (_one(file, problems) for file in files)
    return tuple(profile for profile in found if profile is not None)


def _one(file: Path, problems: Problems) -> MeasuredProfile | None:
    from .reading import read  # which imports the models of a service, and they import this one

    content = _content(file, problems)
    if content is None:
        return None
    values = merge([Layer(str(file), content)]).values  # spells flags as a declaration does
    profile = read(MeasuredProfile, values, problems, lambda path: (str(file), dotted(path)))
    if profile is not None and profile.file != str(file):
        fix = f"must be named {profile.file} by what is in it: rename it, or correct what it is valid for"
        problems.add(str(file), "", fix)
        return None
    return profile


def _content(file: Path, problems: Problems) -> Mapping[Any, Any] | None:
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        problems.add(str(file), "", f"can't be read: {one_line(error)}; correct it or remove it")
        return None
    if not isinstance(content, Mapping):
        problems.add(
            str(file), "", f'must be a map that begins with `schema: "{FORM}"`; correct or remove it'
        )
        return None
    return content
