"""Reads the files that commands take: records, and the gate's settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from pyinfra_vllm.errors import DeclarationError, one_line
from pyinfra_vllm.on_host.bench.criteria import Criteria, CriteriaError
from pyinfra_vllm.second_opinion import converted

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


def record_in(path: Path) -> Any:
    """The file's JSON value; a result of `vllm bench serve` as a record.

    Raises DeclarationError that names the file.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DeclarationError(f"{path} can't be read: {error.strerror}") from error
    except (
        ValueError,
        RecursionError,
    ) as error:  # not UTF-8, not JSON, or nested deeper than anything measured is
        raise DeclarationError(f"{path} is not JSON: {one_line(error)}") from error
    return converted(value, str(path))
