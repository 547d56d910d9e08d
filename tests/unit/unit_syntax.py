"""Unit and environment files as systemd reads them (systemd.syntax(7), systemd.service(5), systemd.exec(5)),
written out a second time and independently of `release`: what tests hold rendered files against.
"""

from __future__ import annotations

from collections.abc import Iterator

_ESCAPES = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "s": " "}


def directives(unit: str) -> list[tuple[str, str, str]]:
    """(section, key, value) of every directive, in order, continuation lines joined."""
    found: list[tuple[str, str, str]] = []
    section, joined = "", ""
    for line in unit.split("\n"):
        if joined and line.lstrip().startswith(("#", ";")):
            continue  # a comment inside a continuation is skipped
        whole = joined + line
        if whole.endswith("\\") and not whole.lstrip().startswith(("#", ";")):
            joined = whole[:-1] + " "
            continue
        joined = ""
        text = whole.strip(" \t\r")
        if not text or text.startswith(("#", ";")):
            continue
        if text.startswith("["):
            section = text.strip("[]")
            continue
        key, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"not a directive: {text!r}")
        found.append((section, key.strip(), value.strip()))
    return found


def command(value: str) -> list[str]:
    """The argument list that an ExecStart= hands to the process; a specifier or a variable in
    it is an error.
    """
    return [_literal(word) for word in words(value)]


def words(value: str) -> Iterator[str]:
    """The words of a value: split at blanks outside of quotes, C escapes undone."""
    rest = iter(value)
    word: str | None = None
    quote = ""
    for character in rest:
        if character == "\\":
            word = (word or "") + _escaped(rest)
        elif quote:
            quote, word = ("", word) if character == quote else (quote, (word or "") + character)
        elif character in "'\"":
            quote, word = character, word or ""
        elif character in " \t":
            if word is not None:
                yield word
            word = None
        else:
            word = (word or "") + character
    if quote:
        raise ValueError("a quote is never closed")
    if word is not None:
        yield word


def _escaped(rest: Iterator[str]) -> str:
    character = next(rest)
    if character in _ESCAPES:
        return _ESCAPES[character]
    if character in "\\\"'":
        return character
    if character in ("x", "u", "U"):
        return chr(int("".join(next(rest) for _ in range({"x": 2, "u": 4, "U": 8}[character])), 16))
    raise ValueError(f"an escape that systemd does not know: {character!r}")


def _literal(word: str) -> str:
    """The word once specifiers (`%`) and variables (`$`) are expanded; only doubled ones may be there."""
    plain, rest = "", iter(word)
    for character in rest:
        if character in "%$" and next(rest, None) != character:
            raise ValueError(f"systemd would expand something in {word!r}")
        plain += character
    return plain


def environment(text: str) -> dict[str, str]:
    """The variables of an EnvironmentFile=: double quotes, in which a backslash escapes what the shell
    escapes there.
    """
    found = {}
    for line in text.split("\n"):
        if not line or line.startswith(("#", ";")):
            continue
        name, _, value = line.partition("=")
        if len(value) < 2 or value[0] != '"' or value[-1] != '"':
            raise ValueError(f"not quoted: {line!r}")
        found[name] = _unquoted(value[1:-1])
    return found


def _unquoted(value: str) -> str:
    plain, rest = "", iter(value)
    for character in rest:
        if character == '"':
            raise ValueError("a quote ends before the line does")
        if character == "\\":
            after = next(rest)
            plain += after if after in '"\\$`' else f"\\{after}"
        else:
            plain += character
    return plain
