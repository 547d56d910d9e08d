"""What the operator adds to a profile: variants by name, and flags and variables of their own."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from pyinfra_vllm.catalog import flags as catalogue
from pyinfra_vllm.catalog import table
from pyinfra_vllm.tuning.facts import Facts
from pyinfra_vllm.tuning.profile import Flag, Profile, apply

SOURCE = "declared"
# What the memory fit reckons with: checked here, so that a slip is an error of its own.
NUMBERS = (
    "--gpu-memory-utilization",
    "--kv-cache-memory-bytes",
    "--max-cudagraph-capture-size",
    "--max-num-batched-tokens",
    "--max-num-seqs",
    "--tensor-parallel-size",
)
NUMBER_VARIABLES = ("VLLM_CPU_KVCACHE_SPACE",)


def apply_variants(variants: Iterable[str | Mapping[str, Any]], facts: Facts, profile: Profile) -> None:
    """Applies variants: a name, {name: {parameter: value}} or {name: first parameter}.

    In the order declared, except that those marked `first` come first: how many tokens are drafted decides sizes.
    """
    items: list[tuple[str, Any]] = []
    for variant in variants:
        items += [(variant, None)] if isinstance(variant, str) else list(variant.items())
    known: dict[str, Any] = table("variants.yaml")
    for name, given in sorted(items, key=lambda item: not known.get(item[0], {}).get("first", False)):
        _apply_variant(name, given, facts, profile)


def _apply_variant(name: str, given: Any, facts: Facts, profile: Profile) -> None:
    known: dict[str, Any] = table("variants.yaml")
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        profile.fail(f"variants: {name!r} is no variant; {hint}")
        return
    parameters = dict(known[name].get("parameters", {}))
    if given is not None:
        named = given if isinstance(given, Mapping) else dict.fromkeys(list(parameters)[:1], given)
        unknown = [key for key in named if key not in parameters]
        if unknown or not named:
            profile.fail(
                f"variants: {name} has no parameter {', '.join(unknown) or repr(given)}; "
                f"it takes {', '.join(parameters) or 'none'}"
            )
            return
        parameters.update(named)
    missing = [key for key, value in parameters.items() if value is None]
    if missing:
        profile.fail(f"variants: {name} needs {', '.join(missing)}: {{{name}: {{{missing[0]}: ...}}}}")
        return
    for entry in known[name]["entries"]:
        apply(entry, facts.given(parameters), profile)


def apply_flags(declared: Mapping[str, Any], known: Collection[str], version: str, profile: Profile) -> None:
    """Applies the operator's flags: checked against the runtime's, None takes one out."""
    for name, value in declared.items():
        flag, value = _normal(name, value, known)
        key = catalogue.owner(flag)
        if key:
            profile.fail(f"flags: {name} is set by {key}; declare it there")
            continue
        existing = _existing(flag, known, version, profile)
        if existing in NUMBERS and not _is_number(value):
            profile.fail(f"flags: {name} must be a number above 0, written out, not {value!r}")
        elif existing and value is None:
            profile.flags.pop(existing, None)
        elif existing:
            profile.set(existing, value, "declared by the operator", SOURCE)
            profile.declared.add(existing)


def apply_environment(declared: Mapping[str, str], profile: Profile) -> None:
    """Applies the operator's variables; they win over the catalog's."""
    for name, value in declared.items():
        if name in NUMBER_VARIABLES and not (str(value).isdigit() and int(value)):
            profile.fail(f"environment: {name} must be a whole number of GiB above 0, not {value!r}")
            continue
        profile.environment[name] = Flag(name, str(value), "declared by the operator", SOURCE)


def keep_known(profile: Profile, known: Collection[str], version: str) -> None:
    """Takes out, with a note, what the catalog's layers chose and this runtime doesn't have."""
    for flag in list(profile.flags):
        if base(flag) in known:
            continue
        chosen = profile.flags.pop(flag)
        new = catalogue.renamed(flag)
        if new and base(new) in known:
            profile.set(new, chosen.value, chosen.reason, chosen.source)
            continue
        profile.warn(f"{flag} is left out: vLLM {version} doesn't have it ({chosen.reason})")


def base(flag: str) -> str:
    """The flag that must exist: `--compilation-config` of `--compilation-config.mode`."""
    return flag.split(".", 1)[0]


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and value > 0)


def _normal(name: str, value: Any, known: Collection[str]) -> tuple[str, Any]:
    """`max_num_seqs`, `max-num-seqs` and `--max-num-seqs` alike; `no-x: true` is `x: false`."""
    head, dot, rest = name.lstrip("-").partition(".")
    flag = f"--{head.replace('_', '-')}{dot}{rest}"
    positive = f"--{flag.removeprefix('--no-')}"
    if flag.startswith("--no-") and flag not in known and positive in known and isinstance(value, bool):
        return positive, not value
    return flag, value


def _existing(flag: str, known: Collection[str], version: str, profile: Profile) -> str | None:
    """The flag under the name that the runtime knows, or None after saying what is wrong."""
    if base(flag) in known:
        return flag
    new = catalogue.renamed(flag)
    if new and base(new) in known:
        profile.warn(f"flags: {flag} is called {new} in vLLM {version}: the new name is used")
        return new
    old = catalogue.earlier_name(flag, known)
    if old:
        profile.warn(f"flags: {flag} was still called {old} in vLLM {version}: the old name is used")
        return old
    profile.fail(f"flags: {_unknown(flag, known, version)}")
    return None


def _unknown(flag: str, known: Collection[str], version: str) -> str:
    last, first = catalogue.last_version(flag), catalogue.first_version(flag)
    advice = catalogue.removal_advice(flag)
    if last and advice:
        return f"{flag} is gone from vLLM {version} (last in {last}): {advice}"
    near = catalogue.nearest(flag, known)
    if first and last:
        return f"vLLM {version} doesn't have {flag}: it is in {first} to {last}. Take it out or use such a runtime"
    hint = f"did you mean {near}?" if near else "see `vllm serve --help=all`"
    return f"vLLM {version} doesn't have {flag}; {hint}"
