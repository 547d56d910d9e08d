"""The small language of `when:` in the catalog: facts and tests, no code.

    when: {compute_capability: "9.0", --kv-cache-dtype: [fp8, fp8_e4m3], vllm: {at_least: "0.20", below:
        "0.24"}}

All tests of a `when` must hold. A fact is a name (see `tuning.facts`), or a flag or variable as decided so
far. A test is a value, a list of values (any of them), or a mapping of these words:

    below, at_least     numbers, or versions such as "0.24"
    above               more than this number
    not                 a value, or a list of them
    set                 true: the fact has a value; false: it has none
    divides             the fact divides this number without a rest (0 stands for nothing to divide)
    not_divides         the contrary
    differs             has another value than this
    starts_with         the text begins with this one

Where a word takes a number or a version, "$name" is another fact. Without a value it passes no test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pyinfra_vllm.catalog import versions

Facts = Mapping[str, Any]


def holds(when: Mapping[str, Any] | None, facts: Facts) -> bool:
    """Whether every test holds.

    Raises KeyError for a fact that doesn't exist: a typing error in the catalog.
    """
    if not when:
        return True
    for name, test in when.items():  # most of a resolution is spent here
        try:
            value = facts[name]
        except KeyError:
            value = _fact(name, facts)
        if not _test(test, value, facts):
            return False
    return True


def possible(when: Mapping[str, Any] | None, known: Mapping[str, Any]) -> bool:
    """Whether a `when` may hold where these facts are known: their tests do, but for those against others."""
    return all(
        name not in known or "$" in str(test) or _test(test, known[name], known)
        for name, test in (when or {}).items()
    )


def needed(when: Mapping[str, Any] | None) -> tuple[str, ...]:
    """The flags and variables without which a `when` can't hold: most rules are about one that isn't set."""
    return tuple(
        name for name, test in (when or {}).items() if _is_setting(name) and not _test(test, None, {})
    )


def _is_setting(name: str) -> bool:
    return name.startswith("--") or name.isupper()


def _fact(name: str, facts: Facts) -> Any:
    try:
        return facts[name]
    except KeyError:
        if _is_setting(name):
            return None
        raise KeyError(
            f"`when` names {name!r}, which is no fact; known: {', '.join(sorted(facts))}"
        ) from None


def _test(test: Any, value: Any, facts: Facts) -> bool:
    if type(test) is str and type(value) is str:  # as most are
        return test == value
    if isinstance(test, dict):
        for word, operand in test.items():  # noqa: SIM110  # as above
            if not _word(word, operand, value, facts):
                return False
        return True
    if isinstance(test, list):
        return any(_same(each, value) for each in test)
    return _same(test, value)


def _word(word: str, operand: Any, value: Any, facts: Facts) -> bool:
    if word == "set":
        return (value is not None) is bool(operand)
    if word == "not":
        return not _test(operand, value, facts)
    if word not in COMPARISONS:
        raise ValueError(f"`when` uses {word!r}, which is no test: not, set, {', '.join(COMPARISONS)}")
    if value is None:
        return False
    if isinstance(operand, str) and operand.startswith("$"):
        operand = _fact(operand[1:], facts)
    return operand is not None and COMPARISONS[word](value, operand)


def _same(wanted: Any, value: Any) -> bool:
    if isinstance(wanted, bool) or isinstance(value, bool):
        return wanted is value
    return value is not None and str(wanted) == str(value)


def _below(value: Any, limit: Any) -> bool:
    if isinstance(value, tuple):
        return versions.below(value, str(limit))
    if isinstance(limit, str):
        return versions.below(versions.parse(str(value)), limit)
    return bool(value < limit)


def _divides(value: int, number: int) -> bool:
    return not number or number % value == 0


COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "below": _below,
    "at_least": lambda value, limit: not _below(value, limit),
    "above": lambda value, limit: value > limit,
    "divides": _divides,
    "not_divides": lambda value, number: not _divides(value, number),
    "differs": lambda value, other: bool(value != other),
    "starts_with": lambda value, beginning: str(value).startswith(beginning),
}
