"""Reads the files that `bench` or `vllm bench serve` wrote, for the commands that take them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pyinfra_vllm.errors import DeclarationError, one_line
from pyinfra_vllm.second_opinion import converted


def read(path: Path) -> Any:
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
