"""Checks for single values of a record: small functions that name the place, the value and what is allowed.

Takes anything that JSON can hold, however large or deep, and raises nothing but RecordError.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

# Beyond these a number is damage, and ratios of such numbers leave what a float can hold. Bytes of a file
# system are the largest that are told: a few petabytes.
MOST = 1e18
LEAST_S = 1e-9
Check = Callable[[Any, str], None]

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60


class RecordError(ValueError):
    """A record that can't be judged: the message names the record, the place and what is wrong with it."""


def required(value: Mapping[str, Any], key: str, where: str) -> Any:
    if key not in value:
        raise RecordError(f"{where}.{key} is missing")
    return value[key]


def number_at(value: Mapping[str, Any], key: str, where: str) -> float:
    """The number under that key. Raises RecordError where there is none that one can compare."""
    found = required(value, key, where)
    number(found, f"{where}.{key}")
    return float(found)


def shown(value: object) -> str:
    """A value as messages show it: on one line and short, however long or deep it is."""
    return _SHORT.repr(value)


def text(value: Any, where: str) -> None:
    """Text that can be written: JSON lets halves of surrogate pairs through, which no file takes."""
    if not isinstance(value, str) or any("\ud800" <= letter <= "\udfff" for letter in value):
        raise RecordError(f"{where} must be text, not {shown(value)}")


def word(value: Any, where: str) -> None:
    """Text that messages can name things by."""
    if not isinstance(value, str) or not value.isprintable():
        raise RecordError(f"{where} must be text on one line, not {shown(value)}")


def flag(value: Any, where: str) -> None:
    if not isinstance(value, bool):
        raise RecordError(f"{where} must be true or false, not {shown(value)}")


def number(value: Any, where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise RecordError(f"{where} must be a number, not {shown(value)}")
    if not -MOST <= value <= MOST:  # whole numbers may be too large for math.isfinite
        raise RecordError(f"{where} is {shown(value)}: not a number one can compare")


def amount(value: Any, where: str) -> None:
    number(value, where)
    if value < 0:
        raise RecordError(f"{where} must be 0 or more, not {shown(value)}")


def share(value: Any, where: str) -> None:
    number(value, where)
    if not 0 <= value <= 1:
        raise RecordError(f"{where} must be a share from 0 to 1, not {shown(value)}")


def count(value: Any, where: str, least: int = 0) -> None:
    number(value, where)
    if not isinstance(value, int) or value < least:
        raise RecordError(f"{where} must be a whole number of at least {least}, not {shown(value)}")


def counts(value: Any, where: str) -> None:
    """A mapping of names to whole numbers of at least 1, with one name at least."""
    mapping()(value, where)
    if not value:
        raise RecordError(f"{where} is empty")
    named(at_least_one)(value, where)


def named(item: Check) -> Check:
    """A mapping of names to values that pass a check."""

    def check(value: Any, where: str) -> None:
        mapping()(value, where)
        for name, one in value.items():
            word(name, f"a name in {where}")
            item(one, f"{where}.{name}")

    return check


def at_least_one(value: Any, where: str) -> None:
    count(value, where, 1)


def mapping(known: dict[str, Check] | None = None, needed: tuple[str, ...] = ()) -> Check:
    """A mapping that has what is needed, and whose known keys are what they must be."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise RecordError(f"{where} must be a mapping, not {shown(value)}")
        for key in needed:
            required(value, key, where)
        optional(value, where, known or {})

    return check


def timestamp(value: Any, where: str) -> None:
    """A time as the journal writes it: ISO 8601 with its offset."""
    text(value, where)
    try:
        at = datetime.fromisoformat(value)
    except ValueError:
        at = datetime.min
    if at.tzinfo is None or not 1970 <= at.year <= 2999:
        raise RecordError(f"{where} must be a time, not {shown(value)}")


def map_of(item: Check) -> Check:
    def check(value: Any, where: str) -> None:
        mapping()(value, where)
        for name, one in value.items():
            text(name, f"a name in {where}")
            item(one, f"{where}.{shown(name)}")

    return check


def list_of(item: Check) -> Check:
    def check(value: Any, where: str) -> None:
        if not isinstance(value, list):
            raise RecordError(f"{where} must be a list, not {shown(value)}")
        for place, one in enumerate(value):
            item(one, f"{where}[{place}]")

    return check


def or_null(check: Check) -> Check:
    return lambda value, where: None if value is None else check(value, where)


def optional(value: Mapping[str, Any], where: str, known: Mapping[str, Check]) -> None:
    """A known key may be left out, and is an error where it is there and can't be used."""
    for key, check in known.items():
        if key in value:
            check(value[key], f"{where}.{key}")
