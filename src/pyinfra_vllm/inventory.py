"""Loads an inventory file as pyinfra does, and finds the hosts that a pattern means. Contacts none of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from pyinfra.api.exceptions import NoGroupError, PyinfraError
from pyinfra.api.inventory import Inventory
from pyinfra.api.state import State
from pyinfra.context import ctx_state
from pyinfra_cli.exceptions import CliError, UnexpectedExternalError
from pyinfra_cli.inventory import make_inventory
from pyinfra_cli.util import PYTHON_CODES

from .errors import DeclarationError


def load(path: str, data: Mapping[str, Any], group_data: Sequence[str]) -> Inventory:
    """The inventory below the current directory, with its group data; `data` is what `--data` says.

    Raises DeclarationError with the file and the line where it can't be loaded.
    """
    if path.endswith(".py") and not Path(path).exists():
        raise DeclarationError(f"There is no inventory {path}; no host was contacted.")
    PYTHON_CODES.clear()  # pyinfra keeps compiled files by relative name, whatever directory that was in
    if not ctx_state.isset():
        ctx_state.set(State())  # pyinfra's loader notes there which file it executes
    try:
        loaded: Inventory = make_inventory(path, dict(data), str(Path.cwd()), list(group_data))
        return loaded
    except UnexpectedExternalError as error:
        raise DeclarationError(_broken_file(error)) from error
    except SyntaxError as error:
        place = f"{shortened(error.filename or '?')}, line {error.lineno}"
        raise DeclarationError(f"{place}: {error.msg}. No host was contacted.") from error
    except (CliError, PyinfraError, TypeError, OSError, UnicodeDecodeError) as error:
        raise DeclarationError(f"{path} can't be loaded: {error}. No host was contacted.") from error


def matching(inventory: Inventory, pattern: str) -> set[str]:
    """The names of the hosts that `--limit` or `--exclude` means by a group, a name or a pattern of names."""
    try:
        return {host.name for host in inventory.get_group(pattern)}
    except NoGroupError:
        return {host.name for host in inventory if fnmatch(host.name, pattern)}


def shortened(path: str) -> str:
    """The path as an operator would type it from the current directory."""
    try:
        return str(Path(path).resolve().relative_to(Path.cwd().resolve()))
    except ValueError:
        return path


def _broken_file(error: UnexpectedExternalError) -> str:
    cause = error.exception
    line = _line_in(cause, error.filename)
    where = f"{shortened(error.filename)}, line {line}" if line else shortened(error.filename)
    return f"{where}: {type(cause).__name__}: {cause}. No host was contacted."


def _line_in(cause: BaseException, filename: str) -> int | None:
    """The last line of `filename` that the exception went through."""
    found, trace = None, cause.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == filename:
            found = trace.tb_lineno
        trace = trace.tb_next
    return found
