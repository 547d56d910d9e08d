"""Facts whose command prints JSON. A bad answer stops its own host, never the run of the others."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from pyinfra.api import FactBase, Host, StringCommand
from typing_extensions import override

from pyinfra_vllm import answers
from pyinfra_vllm.errors import HostError, one_line
from pyinfra_vllm.facts import script
from pyinfra_vllm.facts.script import Question, Words

T = TypeVar("T")

LIMIT_S = 120  # a host that has not answered by then is given up
INVALID = (ValueError, TypeError, LookupError, AttributeError, RecursionError)  # of an answer's reader
MAX_AGE_S = 30.0  # an answer that was given together with others counts for so long


class Told(FactBase[T], Generic[T]):
    """JSON from a program on the host. Raises HostError where it is not of that `kind` (answers.py)."""

    abstract = True
    kind: ClassVar[Any]

    @override
    def requires_command(self, *args: Any, **kwargs: Any) -> str:
        return "python3"

    @override
    def process(self, output: list[str]) -> T:
        return self.taken(answers.read("".join(output), self.kind))

    def taken(self, value: Any) -> T:
        """The fact itself, from a value that passed the check."""
        found: T = value
        return found


class Together(FactBase[list[str | None]]):
    """A host's answers to several questions, by one command (see on_host/inspect/together.py).

    + questions: of each its words (script.Question)
    + installed: root and name of the program that is asked, which may not be there: then there is no answer;
      None: one is sent along
    """

    default = list

    @override
    def requires_command(self, *args: Any, **kwargs: Any) -> str:
        return "python3"

    @override
    def command(
        self, questions: tuple[Words, ...], installed: tuple[str, str] | None = None
    ) -> StringCommand:
        if installed:
            return script.by_installed(*installed, questions)
        return script.together(questions)

    @override
    def process(self, output: list[str]) -> list[str | None]:
        return answers.read("".join(output), list[str | None])


@dataclass(frozen=True)
class _Answers:
    """A host's answers to one command."""

    of: Mapping[Words, str | None]
    at: float  # time.monotonic()


@dataclass(frozen=True)
class _Expected:
    """The questions that a run will ask of a host, and the program there that may answer them."""

    questions: tuple[Words, ...]
    installed: tuple[str, str] | None


_expected: dict[str, _Expected] = {}  # by host
_answers: dict[str, _Answers] = {}


def ask_together(
    host: Host,
    facts: Iterable[tuple[type[Told[Any]], Mapping[str, Any]]],
    installed: tuple[str, str] | None = None,
) -> None:
    """Ask a host at once for facts, given with their arguments, that `asked` is going to be called for.

    + installed: root and name of the program that answers where it is there; one is sent where it is not
    """
    questions = (_question(what, arguments) for what, arguments in facts)
    asked_for = tuple(dict.fromkeys(words for words in questions if words))
    _expected[host.name] = _Expected(asked_for, installed)
    _ask(host)


def forget(host: Host) -> None:
    """Have the host asked anew: something on it may have changed."""
    _answers.pop(host.name, None)


def current(host: Host) -> object | None:
    """The host's last answers while they count, else None; another object after each command."""
    found = _answers.get(host.name)
    return found if found and time.monotonic() - found.at <= MAX_AGE_S else None


def _ask(host: Host) -> _Answers:
    expected = _expected[host.name]
    told: list[str | None] = []
    if expected.installed:
        told = _told(host, expected.questions, expected.installed)
    if not told:
        told = _told(host, expected.questions, None)
    by_question = dict(zip(expected.questions, told, strict=False))
    found = _answers[host.name] = _Answers(by_question, time.monotonic())
    return found


def _told(host: Host, questions: tuple[Words, ...], installed: tuple[str, str] | None) -> list[str | None]:
    """The answers; none where the host can't give them together: then each is asked alone, and the operation
    that does so refuses.
    """
    try:
        told: list[str | None] = host.get_fact(
            Together, questions=questions, installed=installed, _ignore_errors=True, _timeout=LIMIT_S
        )
    except (HostError, *INVALID):
        return []
    return told


def _answered(host: Host, what: type[FactBase[T]], arguments: Mapping[str, Any]) -> str | None:
    """The answer of the last command; None where the question has to be asked alone."""
    expected = _expected.get(host.name)
    words = _question(what, arguments) if expected else None
    if expected is None or words not in expected.questions:
        return None
    if current(host) is None:
        _ask(host)
    return _answers[host.name].of.get(words)


def _question(what: type[FactBase[Any]], arguments: Mapping[str, Any]) -> Words | None:
    own = {key: value for key, value in arguments.items() if not key.startswith("_")}
    command = what().command(**own)
    return command.words if isinstance(command, Question) else None


def fact(host: Host, what: type[FactBase[T | None]], **arguments: Any) -> T:
    """A fact that has to be there. Raises HostError where it is missing, or its answer is invalid."""
    found = asked(host, what, _ignore_errors=True, **arguments)
    if found is None:
        raise HostError(
            f"connected, but {what.__name__.lower()} could not be read: python3, and the right to read"
            f" {arguments.get('root', 'its files')} (`_sudo`), are needed"
        )
    return found


def asked(host: Host, what: type[FactBase[T]], **arguments: Any) -> T:
    """A fact, or its default where pyinfra gave the host up.

    Raises HostError where the host sent an invalid answer.
    """
    try:
        together = _answered(host, what, arguments)
        if together is not None:
            return what().process([together])
        found: T = host.get_fact(what, _timeout=LIMIT_S, **arguments)
    except INVALID as error:
        words = f"{type(error).__name__}: {one_line(error)}"
        raise HostError(
            f"{what.__name__.lower()}: sent an invalid answer ({words}). {answers.ADVICE}"
        ) from error
    return found
