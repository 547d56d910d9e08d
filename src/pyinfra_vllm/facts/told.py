"""Facts whose command prints JSON. A bad answer stops its own host, never the run of the others."""

from __future__ import annotations

from typing import Any, ClassVar, Generic, TypeVar

from pyinfra.api import FactBase, Host
from typing_extensions import override

from pyinfra_vllm import answers
from pyinfra_vllm.errors import HostError, one_line

T = TypeVar("T")

LIMIT_S = 120  # a host that has not answered by then is given up


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


def fact(host: Host, what: type[FactBase[T | None]], **arguments: Any) -> T:
    """A fact that has to be there. Raises HostError where the host could not tell it, or told nonsense."""
    found = asked(host, what, _ignore_errors=True, **arguments)
    if found is None:
        raise HostError(
            f"connected, but {what.__name__.lower()} could not be read: python3, and the right to read"
            f" {arguments.get('root', 'its files')} (`_sudo`), are needed"
        )
    return found


def asked(host: Host, what: type[FactBase[T]], **arguments: Any) -> T:
    """A fact, or its default where pyinfra gave the host up.

    Raises HostError where the host told nonsense.
    """
    try:
        found: T = host.get_fact(what, _timeout=LIMIT_S, **arguments)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        words = f"{type(error).__name__}: {one_line(error)}"
        raise HostError(f"{what.__name__.lower()}: answered nonsense ({words}). {answers.ADVICE}") from error
    return found
