"""Adds the operator's settings to a profile: variants by name, and flags and variables of their own."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from pyinfra_vllm.catalog import flags as flag_table
from pyinfra_vllm.catalog import table, variables, versions
from pyinfra_vllm.catalog.conditions import holds
from pyinfra_vllm.tuning import values
from pyinfra_vllm.tuning.facts import Facts
from pyinfra_vllm.tuning.profile import Flag, Profile, apply

SOURCE = "declared"
KERNEL_CHOICES = ("--linear-backend", "VLLM_DISABLED_KERNELS")
NUMBER_VARIABLES = ("VLLM_CPU_KVCACHE_SPACE",)
LOADED_BY_NAME = ("--tokenizer", "--hf-config-path", "--lora-modules", "--default-mm-loras")
ON_THE_HUB = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
# Files that vLLM opens by name. A relative one is sought in a folder of the service's, where it isn't; vLLM's
# own chat templates have names of their own (transformers_utils/chat_templates, 0.32.0).
FILES = ("--chat-template", "--tool-parser-plugin", "--reasoning-parser-plugin", "--log-config-file")
RELATIVE = re.compile(r"(?:\.{1,2}|~)/.+|(?!/|~|template_[a-z0-9_]+\.jinja)[^{}\n]*\.(?:jinja|py)")
WHOLE_GIB = re.compile(r"0*[1-9][0-9]{0,5}")  # up to a pebibyte


def problems(
    declared: Mapping[str, Any], version: str, installed: Collection[str] | None = None
) -> list[tuple[str, str]]:
    """(flag, problem) of every declared flag that this runtime doesn't have or can't take, on whatever card.

    + installed: the flags of the vLLM on a host; None: those of the catalog
    """
    found: list[tuple[str, str]] = []
    for name, value in declared.items():
        profile = Profile()
        apply_flags({name: value}, known_flags(version, installed, Profile()), version, profile)
        found += [(name, problem) for problem in profile.errors]
    return found


def known_flags(version: str, installed: Collection[str] | None, profile: Profile) -> Collection[str]:
    """The flags of a runtime: those that it was asked for, else the catalog's, with a note on the profile
    where the catalog doesn't know this version.
    """
    if installed is not None:
        return installed
    if versions.parse(version)[:2] > flag_table.newest()[:2]:
        nearest = flag_table.nearest_scanned(version)
        profile.warn(f"vLLM {version} is newer than the flag catalog; the flags of {nearest} are assumed")
    try:
        return flag_table.known(version)
    except ValueError as error:
        profile.fail(str(error))
        # Of an unknown version: messages about single flags hold at least for the oldest one's.
        return flag_table.known(flag_table.oldest())


def apply_variants(variants: Iterable[str | Mapping[str, Any]], facts: Facts, profile: Profile) -> None:
    """Applies variants: a name, {name: {parameter: value}} or {name: first parameter}.

    In the order declared, except that those marked `first` come first: drafted tokens decide sizes.
    """
    items: list[tuple[str, Any]] = []
    for variant in variants:
        items += [(variant, None)] if isinstance(variant, str) else list(variant.items())
    known: dict[str, Any] = table("variants.yaml")
    _check_groups(items, known, profile)
    for name, given in sorted(items, key=lambda item: not known.get(item[0], {}).get("first", False)):
        _apply_variant(name, given, facts, profile)


def _check_groups(items: Iterable[tuple[str, Any]], known: Mapping[str, Any], profile: Profile) -> None:
    """Variants that answer one question exclude each other, and so do two values of one variant."""
    answers: dict[str, list[tuple[str, Any]]] = {}
    for name, given in items:
        group = answers.setdefault(known.get(name, {}).get("group", name), [])
        if (name, given) not in group:
            group.append((name, given))
    for group in answers.values():
        if len(group) > 1:
            names = [name if given is None else f"{name}: {values.short(given)}" for name, given in group]
            profile.fail(f"variants: {' and '.join(names)} contradict each other; declare one of them")


def _apply_variant(name: str, given: Any, facts: Facts, profile: Profile) -> None:
    known: dict[str, Any] = table("variants.yaml")
    if name not in known:
        near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        profile.fail(f"variants: {values.short(name)} is no variant; {hint}")
        return
    parameters = _parameters(name, known[name].get("parameters", {}), given, profile)
    if parameters is None:
        return
    asked = facts.given(parameters)
    for entry in known[name]["entries"]:
        if holds(entry.get("when"), asked):
            apply(entry, asked, profile)


def _parameters(
    name: str, defaults: Mapping[str, Any], given: Any, profile: Profile
) -> dict[str, Any] | None:
    """A variant's parameters with what was given for them, or None after saying what is wrong with that."""
    named = given if isinstance(given, Mapping) else dict.fromkeys(list(defaults)[:1], given)
    if given is None:
        named = {}
    elif not named or any(key not in defaults for key in named):
        unknown = [str(key) for key in named if key not in defaults]
        profile.fail(
            f"variants: {name} has no parameter {', '.join(unknown) or values.short(given)}; "
            f"it takes {', '.join(defaults) or 'none'}"
        )
        return None
    for key, value in named.items():
        wrong = values.parameter_problem(defaults[key], value)
        if wrong:
            profile.misread(f"variants: {name}: {key} {wrong}")
            return None
    parameters = {**defaults, **named}
    missing = [key for key, value in parameters.items() if value is None]
    if missing:
        profile.fail(f"variants: {name} needs {', '.join(missing)}: {{{name}: {{{missing[0]}: ...}}}}")
        return None
    return parameters


def apply_flags(declared: Mapping[str, Any], known: Collection[str], version: str, profile: Profile) -> None:
    """Applies the operator's flags: checked against the runtime's, None takes one out."""
    said: dict[str, tuple[str, Any]] = {}
    for name, given in declared.items():
        flag, value = _normal(name, given, known)
        refusal = flag_table.refusal(flag)
        if refusal:
            profile.fail(f"flags: {name} {refusal}")
            continue
        existing = _existing(flag, known, version, profile)
        whole, inner = values.of_map(existing, value) if existing else ("", None)
        wrong = existing and values.problem(whole, inner, version)
        if wrong:
            profile.misread(f"flags: {name} {wrong}")
        elif existing and said.setdefault(existing, (name, value))[1] != value:
            profile.fail(f"flags: {said[existing][0]} and {name} are the same flag; declare one of them")
        elif existing:
            if doubt := values.doubt(whole, inner, version):
                profile.warn(f"flags: {name} {doubt}")
            _declare(whole, values.read(whole, inner), profile)


def _declare(flag: str, value: Any, profile: Profile) -> None:
    if value is None:
        profile.drop(flag)
        return
    profile.set(flag, value, "declared by the operator", SOURCE)
    profile.declared.add(flag)


def check_names(
    declared: Mapping[str, Any],
    environment: Mapping[str, str],
    model: str,
    draft: str | None,
    profile: Profile,
) -> None:
    """Refuses names on the Hub where only a path can work: a service starts offline, from staged files.

    A cache of the operator's own (HF_HOME or HF_HUB_CACHE) may hold them.

    + model: the repository that is served
    + draft: the model that drafts, by whatever flag or variant
    """
    if draft == model:
        profile.fail(
            f"speculative-config: {model} is the served model itself, and a service starts offline: leave"
            " `model` out, and vLLM takes the served one for multi-token prediction"
        )
        draft = None
    for name, given in declared.items():
        relative = [each for each in _each(given) if RELATIVE.fullmatch(_path(each))]
        if relative and spelled(name) in (*LOADED_BY_NAME, *FILES):
            profile.fail(f"flags: {name}: {_path(relative[0])} must be an absolute path on the host")
    if any(name in environment for name in ("HF_HOME", "HF_HUB_CACHE")):
        return
    named = [(f"flags: {name}", given) for name, given in declared.items() if spelled(name) in LOADED_BY_NAME]
    for where, given in (*named, ("the model that drafts", draft)):
        for each in _each(given):
            repository = _repository(each)
            if repository:
                profile.fail(
                    f"{where}: {repository} is a name on the Hub, and a service starts offline: put it"
                    " on the host and declare its absolute path"
                )


def _each(given: Any) -> Iterable[Any]:
    """The values of a flag that may have several, also by name (--default-mm-loras)."""
    if isinstance(given, list | tuple):
        return given
    return given.values() if isinstance(given, Mapping) and "path" not in given else [given]


def _path(value: Any) -> str:
    """The path or name in a value, also after `NAME=` or in a map as `path`."""
    if isinstance(value, Mapping):
        value = value.get("path")
    return str(value or "").rpartition("=")[2]


def _repository(value: Any) -> str | None:
    """The repository that a value names; None for a path."""
    text = _path(value)
    return text if ON_THE_HUB.fullmatch(text) else None


def apply_environment(declared: Mapping[str, str], version: str, profile: Profile) -> None:
    """Applies the operator's variables; they win over the catalog's, unless a rule needs another value."""
    for name, value in declared.items():
        if name in NUMBER_VARIABLES and not WHOLE_GIB.fullmatch(str(value)):
            profile.misread(
                f"environment: {name} must be a whole number of GiB above 0, not {values.short(value)}"
            )
            continue
        advice = flag_table.unread(name, version)
        if advice:
            profile.warn(f"environment: vLLM {version} doesn't read {name}: {advice}")
        elif wrong := variables.problem(name, str(value)):
            _misread_variable(f"environment: {name} {wrong}", version, profile)
        profile.take(Flag(name, str(value), "declared by the operator", SOURCE))
        profile.declared.add(name)


def choose_kernel(profile: Profile) -> None:
    """Takes out the objective's choice of a kernel where the operator made one, by whichever of the ways."""
    if profile.declared.intersection(KERNEL_CHOICES):
        for name in set(KERNEL_CHOICES) - profile.declared:
            profile.drop(name)


def _misread_variable(problem: str, version: str, profile: Profile) -> None:
    """A value that ends the start of the scanned vLLM; of another version that isn't known."""
    if variables.known_of(version):
        profile.misread(f"{problem}: vLLM {version} can't read it, and ends")
    else:
        profile.warn(f"{problem}: so it is in vLLM {variables.scanned()}, and that of {version} isn't known")


def keep_known(profile: Profile, known: Collection[str], version: str) -> None:
    """Takes out, with a note, what the catalog's layers chose and this runtime doesn't have."""
    for flag in list(profile.flags):
        if flag_table.base(flag) in known:
            continue
        chosen = profile.flags[flag]
        profile.drop(flag)
        new = flag_table.renamed(flag)
        if new and flag_table.base(new) in known:
            profile.set(*values.of_map(new, chosen.value), chosen.reason, chosen.source)
            continue
        profile.warn(f"{flag} is left out: vLLM {version} doesn't have it ({chosen.reason})")


def spelled(name: str) -> str:
    """The flag that a declared name stands for: two options of one flag are one, and the later would win."""
    head, dot, rest = name.lstrip("-").partition(".")
    flag = f"--{head.replace('_', '-')}{dot}{rest}"
    return flag_table.alias(flag)


def _normal(name: str, value: Any, known: Collection[str]) -> tuple[str, Any]:
    """`max_num_seqs` and `--max-num-seqs` alike; `no-x: true` is `x: false`; an alias is its flag."""
    flag = spelled(name)
    positive = f"--{flag.removeprefix('--no-')}"
    if flag.startswith("--no-") and flag not in known and positive in known and isinstance(value, bool):
        return positive, not value
    return flag, value


def _existing(flag: str, known: Collection[str], version: str, profile: Profile) -> str | None:
    """The flag under the name that the runtime knows, or None after saying what is wrong."""
    if flag_table.base(flag) in known:
        return flag
    new = flag_table.renamed(flag)
    if new and flag_table.base(new) in known:
        profile.warn(f"flags: {flag} is called {new} in vLLM {version}: the new name is used")
        return new
    old = flag_table.earlier_name(flag, known)
    if old:
        profile.warn(f"flags: {flag} was still called {old} in vLLM {version}: the old name is used")
        return old
    profile.fail(f"flags: {_unknown(flag, known, version)}")
    return None


def _unknown(flag: str, known: Collection[str], version: str) -> str:
    last, first = flag_table.last_version(flag), flag_table.first_version(flag)
    advice = flag_table.removal_advice(flag)
    if last and advice:
        return f"{flag} is gone from vLLM {version} (last in {last}): {advice}"
    gone = flag_table.gone(flag)
    if gone:
        return f"vLLM {version} doesn't have {flag}, {gone}"
    near = flag_table.nearest(flag, known)
    if first and last:
        return (
            f"vLLM {version} doesn't have {flag}: it is in {first} to {last}. Take it out or use such a"
            " runtime"
        )
    hint = f"did you mean {near}?" if near else "see `vllm serve --help=all`"
    return f"vLLM {version} doesn't have {flag}; {hint}"
