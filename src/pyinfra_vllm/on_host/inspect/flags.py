"""Which flags an installed vLLM accepts, read from its sources.

Never imports vLLM or torch (that takes many seconds and a GPU driver): the sources are parsed with `ast`. One
file on purpose, with nothing but the standard library in it: the control machine also sends it to a host by
itself.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterable
from pathlib import Path

ENGINE = "vllm/engine/arg_utils.py"
# Where the server's own arguments are defined: up to 0.28, in 0.29 to 0.32, from 0.33 on.
FRONTEND = (
    "vllm/entrypoints/openai/cli_args.py",
    "vllm/entrypoints/launchers/cli_args.py",
    "vllm/entrypoints/common/cli_args.py",
)
FRONTEND_CLASSES = ("BaseFrontendArgs", "FrontendArgs")


class FlagsUnreadable(Exception):
    """The directory holds no vLLM whose flags can be read: the message names the missing file."""


def known_flags(site_packages: str) -> list[str]:
    """The long flags of `vllm serve`, sorted, as `--max-model-len`.

    + site_packages: directory that holds `vllm/` (a venv's site-packages, or an unpacked wheel)

    Booleans are listed once; vLLM also accepts their `--no-` form. Raises FlagsUnreadable.
    """
    root = Path(site_packages)
    engine = root / ENGINE
    frontends = [root / path for path in FRONTEND if (root / path).is_file()]
    if not engine.is_file():
        raise FlagsUnreadable(f"no vLLM here: {engine} does not exist")
    if not frontends:
        raise FlagsUnreadable(
            "this vLLM keeps its server arguments elsewhere: none of {} is in {}".format(
                ", ".join(FRONTEND), root
            )
        )
    flags = _arguments(_parse(engine))
    for path in frontends:
        tree = _parse(path)
        flags |= _arguments(tree) | _fields(tree)
    return sorted(flags)


def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def _arguments(tree: ast.Module) -> set[str]:
    """The option strings of every `add_argument("--x", ...)`, and of loops that add what a literal lists."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _adds_argument(node):
            found |= _options(node.args)
        elif isinstance(node, ast.For) and any(map(_adds_argument, ast.walk(node))):
            found |= _options(ast.walk(node.iter))
    return found


def _adds_argument(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument"


def _options(nodes: Iterable[ast.AST]) -> set[str]:
    return {
        node.value
        for node in nodes
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("--")
    }


def _fields(tree: ast.Module) -> set[str]:
    """The flags that vLLM makes of the annotated fields of its frontend classes."""
    return {
        "--" + statement.target.id.replace("_", "-")
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name in FRONTEND_CLASSES
        for statement in node.body
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
    }


if __name__ == "__main__":
    print(json.dumps(known_flags(sys.argv[1])))
