"""Runs modules of `on_host` by a host's own python3 as one command; nothing is written there."""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import cast

from pyinfra.api import QuoteString, StringCommand
from typing_extensions import override

from pyinfra_vllm.rendering import quoted

# Makes the modules importable from memory, as they are on the control machine, then runs the first one's
# main().
_START = """\
import base64, importlib, json, sys, zlib
from importlib.machinery import ModuleSpec
sources = json.loads(zlib.decompress(base64.b64decode(sys.argv[1])))
class FromMemory:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] != "on_host":
            return None
        package = any(module.startswith(name + ".") for module in sources)
        if package or name in sources:
            return ModuleSpec(name, self, is_package=package)
    def create_module(self, spec):
        return None
    def exec_module(self, module):
        exec(compile(sources.get(module.__name__, ""), module.__name__, "exec"), module.__dict__)
sys.meta_path.insert(0, FromMemory())
sys.exit(importlib.import_module("on_host." + sys.argv[2]).main(sys.argv[3:]))
"""


# Parsing the modules took a tenth of a run with nothing to do. They are ours, and laid out by one formatter.
_IMPORTS = re.compile(r"^ *from (\.+)([\w.]*) import (\([^)]*\)|[^\n]*)", re.MULTILINE)
_NAME = re.compile(r"(?<!as )\b(?!as\b)\w+")

DUE_UNIT = "/etc/systemd/system/pyinfra-vllm-recover-due.service"
Words = tuple[str, ...]  # a module of `on_host`, such as `state.observe`, and the arguments of its main()


class Question(StringCommand):
    """The command that runs main() of a module on a host, with the words that it stands for.

    The module is sent with all that it imports, packed when the command is carried out.
    """

    def __init__(self, words: Words, packed: Packed) -> None:
        sent = cast(str, packed)  # pyinfra makes text of it when it carries the command out
        super().__init__("python3", "-I", "-c", *(QuoteString(word) for word in (_START, sent, *words)))
        self.words = words


def python(module: str, *arguments: str) -> Question:
    """The command that runs `main(arguments)` of a module of `on_host`, such as `state.observe`, on a host.

    The module prints its result as JSON.
    """
    return Question((module, *arguments), Packed(module))


def together(questions: Sequence[Words]) -> Question:
    """One command that answers several questions: a JSON list with what each of them prints, or null."""
    module = "inspect.together"
    modules = dict.fromkeys(words[0] for words in questions)
    return Question((module, json.dumps(questions)), Packed(module, *modules))


def by_installed(root: str, program: str, questions: Sequence[Words]) -> StringCommand:
    """The same, by the program of that name below the root; it prints nothing where that is not there.

    It is run only where a unit of root's runs what lies in that folder every two minutes anyway: whoever
    could put something else there gains nothing by it.
    """
    path = f"{root}/bin/{program}"
    return StringCommand(
        "! grep -qsF", QuoteString(quoted(f"{root}/bin/on-host.pyz")), DUE_UNIT,
        "|| ! test -f", QuoteString(path),
        "|| python3 -I", QuoteString(path), "answer", QuoteString(json.dumps(questions)),
    )  # fmt: skip


def from_input(module: str, *arguments: str) -> tuple[tuple[str, ...], str]:
    """The same for a program that needs more modules than fit into a command.

    Returns its words and its standard input.
    """
    start = _START.replace("sys.argv[1]", "sys.stdin.read()")
    return ("python3", "-I", "-c", start, "-", module, *arguments), str(Packed(module))


class Packed:
    """The sources of these modules and of all that they import, as a short word."""

    def __init__(self, *modules: str) -> None:
        self.modules = modules

    @override
    def __str__(self) -> str:
        return _packed(*self.modules)


@cache
def _packed(*modules: str) -> str:
    return base64.b64encode(zlib.compress(json.dumps(_sources(*modules)).encode())).decode()


def _sources(*modules: str) -> dict[str, str]:
    """`on_host.MODULE` -> its source, for these modules and all that they import."""
    found: dict[str, str] = {}
    wanted = list(modules)
    while wanted:
        name = wanted.pop()
        if f"on_host.{name}" not in found:
            found[f"on_host.{name}"] = source = _source(name)
            wanted += _imported(name, source)
    return found


def _source(name: str) -> str:
    return _file(name.split(".")).read_text(encoding="utf-8")


def _imported(name: str, source: str) -> Iterator[str]:
    """The modules that this one imports: `from ..state import durable`, `from .journal import x`."""
    package = name.split(".")[:-1]
    for dots, module, names in _IMPORTS.findall(source):
        place = [*package[: len(package) - len(dots) + 1], *filter(None, module.split("."))]
        if place and _file(place).is_file():
            yield ".".join(place)
        else:
            yield from (".".join([*place, each]) for each in _NAME.findall(names))


def _file(place: list[str]) -> Traversable:
    return files("pyinfra_vllm.on_host").joinpath(*place[:-1], f"{place[-1]}.py")
