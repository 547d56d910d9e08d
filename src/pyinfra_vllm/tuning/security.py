"""Known vulnerabilities of a runtime and dangerous settings: refused where it matters, else a warning.

Data: catalog/security.yaml, dated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pyinfra_vllm.catalog import table, versions
from pyinfra_vllm.tuning.facts import Facts
from pyinfra_vllm.tuning.profile import fill

OFF = ("", "0", "false")  # values with which a setting does nothing


def check(facts: Facts, exposed: bool, reason: str | None) -> tuple[list[str], list[str]]:
    """Warnings and errors.

    + exposed: the service is bound to more than the loopback address
    + reason: why the operator accepts the risk; it turns refusals into warnings that carry it
    """
    warnings: list[str] = []
    errors: list[str] = []
    for refuse, text in (*_vulnerabilities(facts), *_settings(facts)):
        if refuse == "regardless":
            errors.append(text)
        elif refuse != "always" and not (refuse == "exposed" and exposed):
            warnings.append(text)
        elif reason:
            warnings.append(f"{text}. Accepted: {reason}")
        else:
            errors.append(f'{text}. Or record why it is accepted: runtime: {{reason: "..."}}')
    return warnings, errors


def _vulnerabilities(facts: Facts) -> Iterator[tuple[str | None, str]]:
    """When it is refused, and its text, of every one that the version has."""
    catalog, version = table("security.yaml"), facts["vllm"]
    for row in catalog["vulnerabilities"]:
        if _affects(row, version):
            fixed = f"use {row['below']} or newer" if "below" in row else "no fixed version is known"
            text = f"vLLM {facts['vllm_text']} has {row['id']}: {row['text']}; {fixed}"
            yield row.get("refuse"), f"{text} (table of {catalog['reviewed']})"


def _affects(row: Mapping[str, Any], version: versions.Version) -> bool:
    since = "from" not in row or not versions.below(version, row["from"])
    until = "below" not in row or versions.below(version, row["below"])
    return since and until


def _settings(facts: Facts) -> Iterator[tuple[str | None, str]]:
    """The same of every dangerous setting that is switched on."""
    dangerous, profile = table("security.yaml")["settings"], facts.profile
    for name in filter(dangerous.__contains__, (*profile.flags, *profile.environment)):
        row, value = dangerous[name], facts[name]
        if value is None or str(value).strip().lower() in OFF:
            continue
        where = "flags" if name.startswith("--") else "environment"
        said = f"{name.removeprefix('--')}: {'true' if value is True else value}"
        yield row.get("refuse"), f"{where}: {{{said}}} {fill(row['text'], facts)}: {row['fix']}"
