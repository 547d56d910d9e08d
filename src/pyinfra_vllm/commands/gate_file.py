"""Reads the gate's settings from a file, for the commands that take `--gate`."""

from __future__ import annotations

from pathlib import Path

import yaml

from pyinfra_vllm.errors import DeclarationError, one_line
from pyinfra_vllm.on_host.bench.criteria import Criteria, CriteriaError

# PyYAML's errors, and that of a text that is not UTF-8.
NOT_YAML = (yaml.YAMLError, ValueError, TypeError, RecursionError)


def criteria_of(path: Path | None) -> Criteria:
    """The gate's settings of a file, the defaults without one. Raises DeclarationError."""
    if path is None:
        return Criteria()
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise DeclarationError(f"{path} can't be read: {error.strerror}") from error
    except NOT_YAML as error:
        raise DeclarationError(f"{path} is not YAML: {one_line(error)}") from error
    try:
        return Criteria.from_dict(values.get("gate", values) if isinstance(values, dict) else values)
    except CriteriaError as error:
        raise DeclarationError(f"{path}: {error}") from error
