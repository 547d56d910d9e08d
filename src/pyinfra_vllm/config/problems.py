"""What is wrong with a declaration, one tidy line each, and all of it at once.

A line names the file, the dotted key, the value and what is allowed. A value that may be a secret is never
shown.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from ..errors import DeclarationError
from ..printable import printable

SECRET_NAME = re.compile(r"(?:key|token|secret|password|passwd|credentials?)$", re.IGNORECASE)
# Chat services put their tokens into the path of a URL.
_TOKEN = re.compile(r"(?=.*\d)(?=.*[A-Za-z])[A-Za-z0-9_-]{20,}")
MISSING = object()

_LONGEST_VALUE = 60


class ItemError(ValueError):
    """One item of a map is wrong: names the item, so that the message can."""

    def __init__(self, item: str, message: str) -> None:
        super().__init__(message)
        self.item = item


@dataclass(frozen=True)
class Problem:
    """One line for the operator: `source: key = value: message`."""

    source: str
    key: str
    message: str
    value: object = MISSING

    def __str__(self) -> str:
        key = printable(self.key)
        where = f"{self.source}: {key}" if key else self.source
        if self.value is MISSING:
            return f"{where}: {self.message}"
        return f"{where} = {shown(self.key, self.value)}: {self.message}"


@dataclass
class Problems:
    """Collects problems, each once, in the order in which they were found."""

    found: list[Problem] = field(default_factory=list)

    def add(self, source: str, key: str, message: str, value: object = MISSING) -> None:
        problem = Problem(source, key, message, value)
        if str(problem) not in map(str, self.found):
            self.found.append(problem)

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
    """The known word that `word` was probably meant to be, without regard to case; None when
    nothing is near.
    """
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
