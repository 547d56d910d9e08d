"""Which `vllm serve` flags a version has, and what became of those it no longer has.

Data: flags.json, flag_changes.yaml.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from functools import cache

from pyinfra_vllm.catalog import table, versions
from pyinfra_vllm.catalog.versions import Version

TRUE_NEIGHBOUR = 0.85  # of difflib: "--max-num-sqes" is 0.86 from "--max-num-seqs"


@cache
def known(version: str) -> frozenset[str]:
    """The flags of a version: as scanned, or as in the nearest scanned one (same minor version, else the last
    before).

    Raises ValueError for a version older than the catalog.
    """
    data = table("flags.json")
    asked = nearest_scanned(version)
    at = [versions.parse(text) for text in data["versions"]].index(versions.parse(asked))
    order = {text: index for index, text in enumerate(data["versions"])}
    return frozenset(
        flag
        for flag, ranges in data["flags"].items()
        if any(order[first] <= at <= order[last] for first, last in ranges)
    )


def nearest_scanned(version: str) -> str:
    """The scanned version whose flags stand for `version`."""
    wanted = versions.parse(version)
    scanned: list[str] = table("flags.json")["versions"]
    same_minor = [text for text in scanned if versions.parse(text)[:2] == wanted[:2]]
    if same_minor:
        return same_minor[-1]
    earlier = [text for text in scanned if versions.parse(text) <= wanted]
    if not earlier:
        raise ValueError(
            f"vLLM {version} is older than the flag catalog ({scanned[0]} to {scanned[-1]}): install a"
            " newer runtime"
        )
    return earlier[-1]


def newest() -> Version:
    return versions.parse(table("flags.json")["versions"][-1])


def oldest() -> str:
    version: str = table("flags.json")["versions"][0]
    return version


def renamed(flag: str) -> str | None:
    to: str | None = table("flag_changes.yaml")["renamed"].get(flag)
    return to


def earlier_name(flag: str, known: Collection[str]) -> str | None:
    """The name that a flag has in a version which doesn't know its new one yet; None where there is none."""
    renamed_to: Mapping[str, str] = table("flag_changes.yaml")["renamed"]
    return next((old for old, new in renamed_to.items() if new == flag and old in known), None)


def alias(flag: str) -> str:
    """The flag that a second name of it stands for; any other flag as it is."""
    aliases: Mapping[str, str] = table("flag_changes.yaml")["alias"]
    return aliases.get(flag, flag)


def removal_advice(flag: str) -> str | None:
    advice: str | None = table("flag_changes.yaml")["removed"].get(flag)
    return advice


def refusal(flag: str) -> str | None:
    """Why an operator may not declare this flag, for a message; None where they may.

    `--x.y` sets a part of `--x`, and `--no-x` switches `--x` off: both are refused as `--x` is.
    """
    refused: Mapping[str, str] = table("flag_changes.yaml")["refused"]
    whole = alias(base(flag))
    return refused.get(whole) or refused.get(f"--{whole.removeprefix('--no-')}")


def base(flag: str) -> str:
    """The flag that must exist: `--compilation-config` of `--compilation-config.mode`."""
    return flag.split(".", 1)[0]


def last_version(flag: str) -> str | None:
    """The newest scanned version that had a flag, or None for one that never was."""
    ranges: Mapping[str, list[list[str]]] = table("flags.json")["flags"]
    return ranges[flag][-1][1] if flag in ranges else None


def first_version(flag: str) -> str | None:
    ranges: Mapping[str, list[list[str]]] = table("flags.json")["flags"]
    return ranges[flag][0][0] if flag in ranges else None


def gone(flag: str) -> str | None:
    """Advice on a flag that was gone before the first scanned version; None for any other."""
    found: Mapping[str, str] | None = table("flag_changes.yaml")["gone"].get(flag)
    if found is None:
        return None
    since = f"since {found['since']}" if "since" in found else f"before vLLM {oldest()}"
    return f"gone {since}: {found['advice']}"


def unread(variable: str, version: str) -> str | None:
    """Advice on a VLLM_* variable that this version doesn't read; None where it does, or may.

    Between two scanned versions a variable of either counts as read.
    """
    data = table("variables.json")
    scanned: list[str] = data["versions"]
    wanted = versions.parse(version)
    if not variable.startswith("VLLM_") or wanted < versions.parse(scanned[0]):
        return None
    before = [text for text in scanned if versions.parse(text) <= wanted][-1]
    after = next((text for text in scanned if versions.parse(text) >= wanted), before)
    read = [
        name
        for name, (first, last) in data["variables"].items()
        if versions.parse(first) <= versions.parse(after) and versions.parse(last) >= versions.parse(before)
    ]
    if variable in read:
        return None
    advice: str | None = table("flag_changes.yaml")["variables"].get(variable)
    near = None if advice or variable in data["variables"] else nearest(variable, read)
    return advice or (f"did you mean {near}?" if near else "delete it")


def nearest(flag: str, among: Collection[str]) -> str | None:
    """The flag (or variable) that a misspelt one must mean: its short form, the only one that begins so
    (argparse would take it), or one that is a letter or two away, not merely alike.
    """
    short: Mapping[str, str] = table("flag_changes.yaml")["short"]
    longer = [name for name in among if name.startswith(flag)]
    meant = short.get(flag.rstrip("0123456789"))  # -O3
    if meant in among:
        return meant
    if len(longer) == 1:
        return longer[0]
    near = difflib.get_close_matches(flag, among, n=1, cutoff=TRUE_NEIGHBOUR)
    return near[0] if near else None
