"""Collects the problems of a declaration, one line each, to report all of them at once.

A line names the file, the dotted key, the value (never one that may be secret) and what is allowed.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from ..errors import DeclarationError
from ..printable import printable

SECRET_NAME = re.compile(r"(?:key|token|secret|password|passwd|credentials?)$", re.IGNORECASE)
# Chat services put their tokens into the path of a URL.
_TOKEN = re.compile(r"(?=.*\d)(?=.*[A-Za-z])[A-Za-z0-9_-]{20,}")
MISSING = object()
ON_HOSTS = "{on hosts}"

_LONGEST_VALUE = 60


class ItemError(ValueError):
    """One item of a map is wrong: names the item, so that the message can."""

    def __init__(self, item: str, message: str) -> None:
        super().__init__(message)
        self.item = item


@dataclass(frozen=True)
class Problem:
    """One line for the operator: `source: key = value: message`.

    message: what is allowed, or what to do; ` ON_HOSTS` in it stands for the hosts that it is about
    hosts: those whose declaration has it; none where it is about no host, such as a slip on the command line
    """

    source: str
    key: str
    message: str
    value: object = MISSING
    hosts: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        """The line's beginning: `source: key = value`."""
        key = printable(self.key)
        where = f"{self.source}: {key}" if key else self.source
        return where if self.value is MISSING else f"{where} = {shown(self.key, self.value)}"

    @property
    def fix(self) -> str:
        named = ", ".join(self.hosts[:3]) + (f" and {len(self.hosts) - 3} more" if self.hosts[3:] else "")
        return self.message.replace(f" {ON_HOSTS}", f" on host {named}" if named else "")

    def __str__(self) -> str:
        return f"{self.where}: {self.fix}"

    def as_dict(self) -> dict[str, object]:
        """DESIGN's `validate --json`."""
        return {
            "file": self.source.partition(" (host ")[0],
            "key": self.key,
            "value": None if self.value is MISSING else shown(self.key, self.value),
            "fix": self.fix,
            "hosts": list(self.hosts),
        }


@dataclass
class Problems:
    """Collects problems, each once however many hosts have it, in the order in which they were found."""

    found: list[Problem] = field(default_factory=list)
    _host: str = ""

    def add(self, source: str, key: str, message: str, value: object = MISSING) -> None:
        problem = Problem(source, key, message, value, (self._host,) if self._host else ())
        for place, known in enumerate(self.found):
            if (known.where, known.message) == (problem.where, problem.message):
                hosts = tuple(dict.fromkeys((*known.hosts, *problem.hosts)))
                self.found[place] = replace(known, hosts=hosts)
                return
        self.found.append(problem)

    @contextmanager
    def about(self, host: str) -> Iterator[None]:
        """Attribute the problems that are added in the body to this host."""
        before, self._host = self._host, host
        try:
            yield
        finally:
            self._host = before

    def raise_if_any(self) -> None:
        """Raises DeclarationError with every line found so far."""
        if not self.found:
            return
        count = "1 problem" if len(self.found) == 1 else f"{len(self.found)} problems"
        lines = "\n".join(f"  {problem}" for problem in self.found)
        raise DeclarationError(f"The declaration has {count}; no host was contacted.\n{lines}")


def shown(key: str, value: object) -> str:
    """The value as an operator wrote it, shortened; hidden where key or value look like a secret."""
    last = key.rsplit(".", 1)[-1]
    if SECRET_NAME.search(last) or (isinstance(value, str) and secret_in_url(value)):
        return "(not shown)"
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."


def secret_in_url(text: str) -> bool:
    """Whether a URL carries credentials, a query's token, or a word in its path that nobody would choose."""
    if re.search(r"//[^/\s]*@", text):
        return True
    _, slashes, rest = text.partition("://")
    path, _, query = rest.partition("?")
    names = (item.partition("=")[0] for item in query.split("&"))
    return bool(slashes) and (
        any(map(SECRET_NAME.search, names)) or any(map(_TOKEN.fullmatch, path.split("/")))
    )


def nearest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known word that `word` was probably meant to be, in any case; None when nothing is near."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=cutoff)
    return by_lower[close[0]] if close else None


def unknown(kind: str, word: str, known: Iterable[str]) -> str:
    """`unknown key; did you mean "port"?`, or the whole list where nothing is near."""
    names = sorted(known)
    meant = nearest(word, names)
    if meant is not None:
        return f'unknown {kind}; did you mean "{meant}"?'
    return f"unknown {kind}; known: {', '.join(names)}"
