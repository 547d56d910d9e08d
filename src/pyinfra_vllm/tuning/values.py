"""Checks the values of flags and of variants' parameters, and which spellings mean the same.

Data: catalog/flag_values.yaml.

Says what is wrong with a value, in words for an operator; decides nothing else.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from pyinfra_vllm.catalog import table, versions
from pyinfra_vllm.catalog.flags import TRUE_NEIGHBOUR

LARGEST = 2**63 - 1  # beyond any count or size that a server can be told
INTEGER = re.compile(r"[+-]?[0-9]{1,19}")
NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
SIZE = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?[kKmMgGtT]?")
READABLE = re.compile(r"([0-9]{1,9})([kKmMgGtT])|([0-9]{1,9}\.[0-9]{1,9})([kmgt])")
DEEPEST = 32  # levels of a map or list: json.dumps() and vLLM's own parser walk them by recursion


def problem(flag: str, value: Any, version: str) -> str | None:
    """The problem of a flag's value for this vLLM, as `must be ..., not ...`, or None."""
    wrong = _kind_problem(flag, value, versions.parse(version))
    return wrong or (_listed_problem(flag, value) if _is_scanned(version) else None)


def doubt(flag: str, value: Any, version: str) -> str | None:
    """The same of a value that only the scanned version is known to refuse, and this is another one."""
    wrong = None if _is_scanned(version) else _listed_problem(flag, value)
    scanned = table("flag_types.json")["version"]
    return wrong and f"{wrong}: so it is in vLLM {scanned}, and that of {version} isn't known"


def _is_scanned(version: str) -> bool:
    """Whether the words and keys in flag_types.json are this version's: the scanned one and its fixes."""
    return versions.parse(version)[:2] == versions.parse(table("flag_types.json")["version"])[:2]


def _kind_problem(flag: str, value: Any, asked: versions.Version) -> str | None:
    if value is None:
        return None
    unwritable = _unwritable(value)
    if unwritable:
        return unwritable
    until: Mapping[str, str] = table("flag_values.yaml")["until"].get(flag, {})
    kinds = [kind for kind in _kinds(flag) if kind not in until or versions.below(asked, until[kind])]
    if not kinds:
        return _scanned_problem(flag, value, asked)
    if any(CHECKS[kind](value) for kind in kinds):
        return None
    return f"must be {' or '.join(MEANINGS[kind] for kind in kinds)}, not {short(value)}"


def _scanned_problem(flag: str, value: Any, asked: versions.Version) -> str | None:
    """The same by what vLLM's own parser said of its flags (catalog/flag_types.json)."""
    row = table("flag_types.json")["flags"].get(flag)
    if row is None or versions.below(asked, row["since"]) or row["kind"] == "word":
        return None
    check, told = PARSED[row["kind"]]
    each = value if row.get("list") and isinstance(value, list | tuple) else [value]
    if each and all(map(check, each)):
        return None
    return f"must be {told}{' or a list of such' if row.get('list') else ''}, not {short(value)}"


def _listed_problem(flag: str, value: Any) -> str | None:
    """Of a flag that takes certain words, or a map of certain keys, also in a map within it."""
    row = table("flag_types.json")["flags"].get(flag, {})
    value = meaning(flag, value)
    words = [meaning(flag, word) for word in row.get("words", ())]
    each = value if row.get("list") and isinstance(value, list | tuple) else [value]
    if value is not None and words and not all(word in words for word in each):
        return f"must be one of {', '.join(row['words'])}, not {short(value)}"
    return _key_problem(value, row["keys"]) if "keys" in row else None


def _key_problem(value: Any, keys: Collection[str]) -> str | None:
    maps = {key.partition(".")[0] for key in keys if "." in key}
    unknown = next((key for key in _paths(_map(value) or {}, maps) if key not in keys), None)
    if unknown is None:
        return None
    near = difflib.get_close_matches(unknown, keys, n=1, cutoff=TRUE_NEIGHBOUR)
    beside = [key for key in keys if key.rpartition(".")[0] == unknown.rpartition(".")[0]]
    hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(beside)}"
    return f"has no key {short(unknown)} in vLLM {table('flag_types.json')['version']}; {hint}"


def _paths(given: Mapping[str, Any], maps: Collection[str]) -> Iterator[str]:
    """The keys of a map, and as `outer.inner` those of the maps within it whose own are known."""
    for key, value in given.items():
        yield str(key)
        if key in maps and isinstance(value, Mapping):
            yield from (f"{key}.{each}" for each in value)


def parameter_problem(default: Any, value: Any) -> str | None:
    """The same for a variant's parameter: a whole number above 0, or text if the default is no number."""
    kind = "whole" if isinstance(default, int) else "word"
    return None if CHECKS[kind](value) else f"must be {MEANINGS[kind]}, not {short(value)}"


def read(flag: str, value: Any) -> Any:
    """A value without problems as rules and variants work with it: maps given as JSON text are maps, and
    sizes such as "16k" are numbers.
    """
    if not isinstance(value, str):
        return value
    kinds = _kinds(flag)
    if "size" in kinds:
        return _readable(value)
    return _map(value) if "map" in kinds else value


def of_map(flag: str, value: Any) -> tuple[str, Any]:
    """A part of a map, `--x.y` and its value, as the map: vLLM's own parser would take several parts together
    in the place of the map itself, and of a part without a value the next flag for it.
    """
    head, *path = flag.split(".")
    if value is None or not path:
        return flag, value
    if isinstance(value, str):  # as the parser reads it
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(value)
    for key in reversed(path):
        value = {key: value}
    return head, value


def meaning(name: str, value: Any) -> Any:
    """The one spelling that stands for all those that vLLM reads alike; for comparisons, not for argv."""
    if not isinstance(value, str) or "WORD" not in _kinds(name):
        return value
    word = value.lower().replace("-", "_")
    return table("flag_values.yaml")["same"].get(name, {}).get(word, word)


def short(value: Any) -> str:
    """A value for a message: what is told wrong may be long."""
    text = repr(value) if not isinstance(value, int) or abs(value) <= LARGEST else "a number of that size"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _kinds(flag: str) -> list[str]:
    kinds: str | list[str] = table("flag_values.yaml")["kinds"].get(flag, [])
    return [kinds] if isinstance(kinds, str) else kinds


def _unwritable(value: Any) -> str | None:
    """Values of which no argument can be made for any flag: endless numbers, nesting without end."""
    level = [value]
    for _ in range(DEEPEST):
        if any(isinstance(each, float) and not math.isfinite(each) for each in level):
            return "must be a number above 0, written out, not infinity or NaN"
        if any(isinstance(each, int) and abs(each) > LARGEST for each in level):
            return f"must be a number of at most {LARGEST}"
        level = [inner for each in level for inner in _inner(each)]
        if not level:
            return None
    return f"must not be nested more than {DEEPEST} levels deep"


def _inner(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, list | tuple) else []


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= LARGEST


def _readable(value: Any) -> int | None:
    """The number of a size as vLLM reads it (utils/argparse_utils.py human_readable_int): "16k" is 16000, and
    "16K" is 16384. None for anything else.
    """
    found = READABLE.fullmatch(value.strip()) if isinstance(value, str) else None
    if not found:
        return None
    number, unit = found[1] or found[3], found[2] or found[4]
    base = 1000 if unit.islower() else 1024
    return int(float(number) * base ** (1 + "kmgt".index(unit.lower())))


def _share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= LARGEST


def _wholes(value: Any) -> bool:
    return _whole(value) or (isinstance(value, list | tuple) and bool(value) and all(map(_whole, value)))


def _word(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable() and bool(value.strip())


def _map(value: Any) -> Mapping[str, Any] | None:
    """A map, or the map that a JSON text is; None for anything else."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
        if _unwritable(value):
            return None
    return value if isinstance(value, Mapping) else None


def _integer(value: Any) -> bool:
    return not isinstance(value, bool) and (isinstance(value, int) or bool(INTEGER.fullmatch(str(value))))


def _number(value: Any) -> bool:
    return not isinstance(value, bool) and bool(NUMBER.fullmatch(str(value)))


def _size(value: Any) -> bool:
    return not isinstance(value, bool) and bool(SIZE.fullmatch(str(value)))


def _json(value: Any) -> bool:
    if not isinstance(value, str):
        return True
    try:
        return not _unwritable(json.loads(value))
    except (ValueError, RecursionError):
        return False


# By the kind of flag_types.json: a check, and a message's words. Numbers may come as text, as in argv.
PARSED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "truth": (lambda value: isinstance(value, bool), "true or false"),
    "integer": (_integer, "a whole number"),
    "number": (_number, "a number"),
    "size": (_size, "a whole number, or one with k, M or G behind it"),
    "json": (_json, "a map or a list, or the JSON text of one"),
    "map": (lambda value: _map(value) is not None, "a map or the JSON text of one"),
}
CHECKS: dict[str, Callable[[Any], bool]] = {
    "whole": _whole,
    "size": lambda value: _whole(value) or _whole(_readable(value)),
    "share": _share,
    "wholes": _wholes,
    "truth": lambda value: isinstance(value, bool),
    "word": _word,
    "WORD": _word,
    "map": lambda value: _map(value) is not None,
}
MEANINGS = {
    "whole": "a number above 0 (a whole one, written out)",
    "size": "a number above 0 (a whole one, or with k, M or G behind it)",
    "share": "a number above 0, written out",
    "wholes": "a whole number above 0 or a list of such",
    "truth": "true or false",
    "word": "a text",
    "WORD": "a text",
    "map": "a map or the JSON text of one",
}
