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

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pyinfra_vllm.catalog import versions

Facts = Mapping[str, Any]
# A test of one fact's value; the others are there to compare with.
Passes = Callable[[Any, Facts], bool]


@dataclass(frozen=True)
class Test:
    """One test of a `when`. `alone`: it compares with no other fact."""

    fact: str
    passes: Passes
    alone: bool


@dataclass(frozen=True)
class Condition:
    """A `when` that has been read: most of a resolution is spent in asking it."""

    tests: tuple[Test, ...]

    def holds(self, facts: Facts) -> bool:
        """Whether every test holds.

        Raises KeyError for a fact that doesn't exist: a typing error in the catalog.
        """
        for test in self.tests:
            try:
                value = facts[test.fact]
            except KeyError:
                value = _fact(test.fact, facts)
            if not test.passes(value, facts):
                return False
        return True

    def among(self, known: Facts) -> Condition | None:
        """The condition without the tests that these known facts pass; None where they fail one."""
        told = [test for test in self.tests if test.alone and test.fact in known]
        if not all(test.passes(known[test.fact], known) for test in told):
            return None
        return Condition(tuple(test for test in self.tests if test not in told))

    def needed(self) -> tuple[str, ...]:
        """The flags and variables without which it can't hold: most rules are about one that isn't set."""
        return tuple(test.fact for test in self.tests if _is_setting(test.fact) and not test.passes(None, {}))


def read(when: Mapping[str, Any] | None) -> Condition:
    """A `when` of the catalog. Raises ValueError for a word that is no test."""
    return Condition(
        tuple(Test(name, _passes(test), "$" not in str(test)) for name, test in (when or {}).items())
    )


def holds(when: Mapping[str, Any] | None, facts: Facts) -> bool:
    """Whether every test of a `when` holds, for one that is asked once.

    Raises as `read` and `Condition.holds`.
    """
    return read(when).holds(facts)


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


def _passes(test: Any) -> Passes:
    if isinstance(test, Mapping):
        return _all([_word(word, operand) for word, operand in test.items()])
    if isinstance(test, list):
        return lambda value, facts: any(_same(each, value) for each in test)
    return lambda value, facts: _same(test, value)


def _all(words: Iterable[Passes]) -> Passes:
    first, *others = words
    if not others:
        return first
    return lambda value, facts: first(value, facts) and all(word(value, facts) for word in others)


def _word(word: str, operand: Any) -> Passes:
    if word == "set":
        wanted = bool(operand)
        return lambda value, facts: (value is not None) is wanted
    if word == "not":
        passes = _passes(operand)
        return lambda value, facts: not passes(value, facts)
    if word not in COMPARISONS:
        raise ValueError(f"`when` uses {word!r}, which is no test: not, set, {', '.join(COMPARISONS)}")
    compare = COMPARISONS[word]
    if not (isinstance(operand, str) and operand.startswith("$")):
        return lambda value, facts: value is not None and compare(value, operand)
    other = operand[1:]

    def compared(value: Any, facts: Facts) -> bool:
        if value is None:
            return False
        with_this = _fact(other, facts)
        return with_this is not None and compare(value, with_this)

    return compared


def _same(wanted: Any, value: Any) -> bool:
    if type(wanted) is str and type(value) is str:  # as most are
        return wanted == value
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
