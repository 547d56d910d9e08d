"""Known vulnerabilities of a runtime, from a dated table: refused where it matters, else a warning."""

from __future__ import annotations

from typing import Any

from pyinfra_vllm.catalog import table, versions


def check(runtime_version: str, exposed: bool, reason: str | None) -> tuple[list[str], list[str]]:
    """Warnings and errors.

    + exposed: the service is bound to more than the loopback address
    + reason: why the operator accepts a refused version; it turns refusals into warnings that carry it
    """
    version = versions.parse(runtime_version)
    warnings: list[str] = []
    errors: list[str] = []
    for row in table("security.yaml")["vulnerabilities"]:
        if not _affects(row, version):
            continue
        text = _text(row, runtime_version)
        refused = row.get("refuse") == "always" or (row.get("refuse") == "exposed" and exposed)
        if refused and reason:
            warnings.append(f"{text}. Accepted: {reason}")
        elif refused:
            errors.append(f'{text}. Or record why it is accepted: runtime: {{reason: "..."}}')
        else:
            warnings.append(text)
    return warnings, errors


def _affects(row: dict[str, Any], version: versions.Version) -> bool:
    since = "from" not in row or not versions.below(version, row["from"])
    until = "below" not in row or versions.below(version, row["below"])
    return since and until


def _text(row: dict[str, Any], runtime_version: str) -> str:
    fixed = f"use {row['below']} or newer" if "below" in row else "no fixed version is known"
    reviewed = table("security.yaml")["reviewed"]
    return f"vLLM {runtime_version} has {row['id']}: {row['text']}; {fixed} (table of {reviewed})"
