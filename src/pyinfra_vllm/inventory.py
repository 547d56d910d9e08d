"""Loads an inventory file as pyinfra does: hosts that a pattern means, and the layers of data of each.

Contacts none of them. Layers go from general to particular: all, the inventory, groups in the inventory's
order, host, --data. Names decide that, never how many hosts a group happens to hold.
"""

from __future__ import annotations

import ast
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from pyinfra.api import Host
from pyinfra.api.exceptions import NoGroupError, PyinfraError
from pyinfra.api.inventory import Inventory
from pyinfra.api.state import State
from pyinfra.context import ctx_state
from pyinfra_cli.exceptions import CliError, UnexpectedExternalError
from pyinfra_cli.inventory import make_inventory
from pyinfra_cli.util import PYTHON_CODES

from .config import Layer
from .config.declared import DEFAULT_ROOT, KEYS
from .config.problems import nearest
from .errors import DeclarationError

# What is no inventory, however often it stands in an inventory's place on a command line.
DEPLOYS = ("deploy.py", "rollback.py", "config.py")
OTHER_LANGUAGES = (".yml", ".yaml", ".json", ".toml", ".ini", ".cfg", ".txt")
FOLDER = "inventory"
NO_HOSTS = 'has no hosts: list their names, like prod = ["gpu1"]'
# Of pyinfra's loader: for what it can't read, and for lists that hold something else than hosts.
UNREADABLE = (CliError, PyinfraError, OSError, UnicodeDecodeError)
MISSHAPED = (TypeError, ValueError, LookupError, AttributeError)

_typed = ""  # the inventory of this process, as it was typed


class BrokenFile(DeclarationError):
    """A file of the declaration that Python can't run.

    + file: as an operator would type it
    """

    def __init__(self, file: str, line: int | None, problem: str) -> None:
        self.file = shortened(file)
        where = f"{self.file}, line {line}" if line else self.file
        super().__init__(f"{where}: {problem}. No host was contacted.")


def command(name: str) -> str:
    """`pyinfra-vllm NAME INVENTORY` for a message: what to type next about the inventory of this process."""
    return " ".join(filter(None, ("pyinfra-vllm", name, _typed)))


def naming(message: str) -> str:
    """The same for a message from where no inventory is known (checkpoint.py)."""
    return message.replace("`pyinfra-vllm lock`", f"`{command('lock')}`")


def load(path: str, data: Mapping[str, Any], group_data: Sequence[str]) -> Inventory:
    """The inventory below the current directory, with its group data; `data` is what `--data` says.

    What these files print is no result of ours: it goes to stderr.
    Raises DeclarationError with the file and the line where it can't be loaded.
    """
    global _typed
    _refuse_other_files(path)
    _refuse_missing(group_data)
    _typed = path
    PYTHON_CODES.clear()  # pyinfra keeps compiled files by relative name, whatever directory that was in
    if not ctx_state.isset():
        ctx_state.set(State())  # pyinfra's loader notes there which file it executes
    try:
        with redirect_stdout(sys.stderr):
            return in_order(make_inventory(path, dict(data), str(Path.cwd()), list(group_data)), path)
    except UnexpectedExternalError as error:
        cause = error.exception
        line = _line_in(cause, error.filename)
        raise BrokenFile(error.filename, line, f"{type(cause).__name__}: {cause}") from error
    except SyntaxError as error:
        raise BrokenFile(error.filename or path, error.lineno, error.msg) from error
    except SystemExit as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise BrokenFile(place.filename, place.lineno, f"it ends the program: {error.code}") from error
    except UNREADABLE as error:
        raise DeclarationError(f"{path} can't be loaded: {error}. No host was contacted.") from error
    except MISSHAPED as error:
        raise DeclarationError(
            f"{path} can't be loaded: {error}. A group is a list of names, or of tuples of a name and a map."
            " No host was contacted."
        ) from error


def _refuse_other_files(path: str) -> None:
    """Raises DeclarationError, with the nearest inventory, for a path that is a slip."""
    file = Path(path)
    if file.name in DEPLOYS:
        raise DeclarationError(
            f"{path} is no inventory: it says what to do, an inventory says where, and comes first: "
            f"`pyinfra {_nearest(path) or 'inventory/prod.py'} deploy.py`. No host was contacted."
        )
    if file.is_dir():
        problem = "is a folder; name one of its files"
    elif file.is_file() and file.resolve().parent.name == "group_data":
        problem = "is group data, not an inventory"
    elif file.suffix in OTHER_LANGUAGES:
        problem = "is no inventory: an inventory is a Python file with lists of hosts"
    elif not file.exists() and ("/" in path or file.suffix == ".py") and "@" not in path:
        raise DeclarationError(f"There is no inventory {path}{meant(path)} No host was contacted.")
    else:
        return
    raise DeclarationError(f"{path} {problem}{meant(path)} No host was contacted.")


def _refuse_missing(group_data: Sequence[str]) -> None:
    """A path that is not there would be passed over by pyinfra, and the declaration be another one."""
    for path in group_data:
        if not (Path(path).is_dir() or (Path(path).is_file() and path.endswith(".py"))):
            raise DeclarationError(
                f"--group-data {path} is neither a folder nor a Python file. No host was contacted."
            )


def meant(path: str) -> str:
    """The end of a sentence: `; did you mean inventory/prod.py?`, or its full stop."""
    found = _nearest(path)
    return f"; did you mean {found}?" if found else "."


def _nearest(path: str) -> str | None:
    """The inventory file that a path was probably meant to be; the only one where there is but one."""
    folders = dict.fromkeys((Path(path), Path(path).parent, Path(FOLDER)))
    files = [file for folder in folders if folder.is_dir() for file in sorted(folder.glob("*.py"))]
    known = {
        file.stem: str(file)
        for file in files
        if file.name not in DEPLOYS and file.parent.name == FOLDER and file != Path(path)
    }
    if len(known) == 1:
        return next(iter(known.values()))
    stem = nearest(Path(path).stem, known)
    return known[stem] if stem else None


def in_order(inventory: Inventory, path: str) -> Inventory:
    """The inventory of the file `path`, with each host's groups from general to particular.

    pyinfra makes a group of the file's name and lists it last, where `group_data/<inventory>.py` would win
    over `group_data/<group>.py`. Its own settings (`host.data`) are read from these same lists.
    """
    own = Path(path).name.rsplit(".", 1)[0] if Path(path).is_file() else None
    for host in inventory:
        host.groups[:] = sorted(dict.fromkeys(host.groups), key=lambda group: group != own)
    return inventory


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


class Files:
    """Which file declares a key: pyinfra executes group data and does not remember where a value was."""

    def __init__(self, inventory: str, cwd: str, group_data: Sequence[str]) -> None:
        self.inventory = shortened(inventory)
        beside = Path(inventory).resolve().parent / "group_data"
        folders = [Path(cwd) / "group_data", beside, *map(Path, group_data)]
        self._folders = list(dict.fromkeys(folder.resolve() for folder in folders))
        self._keys: dict[Path, frozenset[str]] = {}

    def source(self, group: str, key: str) -> str:
        """The last file that assigns `key` for `group`: the same one that won in pyinfra."""
        for folder in reversed(self._folders):
            file = folder if folder.is_file() and folder.stem == group else folder / f"{group}.py"
            if key in self._assigned(file):
                return shortened(str(file))
        return self.inventory

    def _assigned(self, file: Path) -> frozenset[str]:
        if file not in self._keys:
            tree = ast.parse(file.read_text(encoding="utf-8")) if file.is_file() else ast.Module([], [])
            names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
            self._keys[file] = frozenset(names)
        return self._keys[file]


def layers(inventory: Inventory, name: str, files: Files) -> Iterator[Layer]:
    """Every layer of one host, general to particular, each key labelled with its file."""
    for group, values in _groups(inventory, name):
        for key, value in _ours(values).items():
            yield Layer(files.source(group, key), {key: value})
    yield Layer(f"{files.inventory} (host {name})", _ours(inventory.host_data.get(name, {})))
    yield Layer("--data", _ours(inventory.override_data))


def root_of(host: Host) -> str:
    """The declared root of a host, also while the rest of the declaration is broken."""
    inventory: Inventory = host.inventory
    found: Any = DEFAULT_ROOT
    groups = [values for _, values in _groups(inventory, host.name)]
    for values in (*groups, inventory.host_data.get(host.name, {}), inventory.override_data):
        found = values.get("root", found)
    return DEFAULT_ROOT if found is None else str(found).rstrip("/")


def _groups(inventory: Inventory, name: str) -> list[tuple[str, Mapping[str, Any]]]:
    """The data of the host's groups, with their names, general to particular."""
    groups = inventory.get_host(name).groups
    return [("all", inventory.data), *((group, inventory.group_data.get(group, {})) for group in groups)]


def _ours(values: Mapping[str, Any]) -> Mapping[str, Any]:
    return {key: value for key, value in values.items() if key in KEYS}


def _line_in(cause: BaseException, filename: str) -> int | None:
    """The last line of `filename` that the exception went through."""
    found, trace = None, cause.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == filename:
            found = trace.tb_lineno
        trace = trace.tb_next
    return found
