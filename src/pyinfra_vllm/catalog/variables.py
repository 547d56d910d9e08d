"""Which values vLLM can read of its own variables. Data: variable_types.json.

vllm/envs.py reads a variable when it is first used: a value that it can't read ends the start. Its yes and no
are 1 and 0 for most, and `true` is none of them.
"""

from __future__ import annotations

import re

from pyinfra_vllm.catalog import table, versions

WHOLE = re.compile(r"\s*[+-]?[0-9]+(_[0-9]+)*\s*")  # as int() takes it


def problem(name: str, value: str) -> str | None:
    """The problem of a variable's value for the scanned vLLM, as `must be ..., not ...`, or None."""
    types = table("variable_types.json")
    told = repr(value if len(value) <= 60 else f"{value[:57]}...")
    if name in types["whole"] and not WHOLE.fullmatch(value):
        return f"must be a whole number (1 for yes, 0 for no), not {told}"
    if name in types["number"] and not _is_number(value):
        return f"must be a number, not {told}"
    words: list[str] = types["words"].get(name, [])
    if words and value.lower() not in [word.lower() for word in words]:
        return f"must be one of {', '.join(words)}, not {told}"
    return None


def scanned() -> str:
    """The version whose variables were asked."""
    version: str = table("variable_types.json")["version"]
    return version


def known_of(version: str) -> bool:
    """Whether what is known here is this version's: the scanned one and its fixes."""
    return versions.parse(version)[:2] == versions.parse(scanned())[:2]


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True
