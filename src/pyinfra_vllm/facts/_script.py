"""Sends modules of `on_host` to a host's own python3 as one command: nothing is installed there, nothing is
written.
"""

from __future__ import annotations

import json
from importlib.resources import files

from pyinfra.api import QuoteString, StringCommand

# Makes the modules importable from memory, as they are on the control machine, then runs the first one's
# main().
_START = """\
import importlib.abc, importlib.util, json, sys
sources = json.loads(sys.argv[1])
class FromMemory(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        package = name == "on_host"
        if package or name.split(".")[-1] in sources and name.startswith("on_host."):
            return importlib.util.spec_from_loader(name, self, is_package=package)
    def create_module(self, spec):
        return None
    def exec_module(self, module):
        exec(compile(sources.get(module.__name__.split(".")[-1], ""), module.__name__, "exec"), module.__dict__)
sys.meta_path.insert(0, FromMemory())
sys.exit(importlib.import_module("on_host." + sys.argv[2]).main(sys.argv[3:]))
"""  # noqa: E501


def python(module: str, *arguments: str, needs: tuple[str, ...] = ()) -> StringCommand:
    """The command that runs `main(arguments)` of an `on_host` module on a host.

    + module: its name; it prints its result as JSON
    + needs: the other `on_host` modules that it imports
    """
    sources = {name: _source(name) for name in (module, *needs)}
    words = [_START, json.dumps(sources), module, *arguments]
    return StringCommand("python3", "-I", "-c", *(QuoteString(word) for word in words))


def from_input(module: str, *arguments: str) -> tuple[tuple[str, ...], str]:
    """The same for a program that needs more modules than fit into a command.

    Returns its words and its standard input.
    """
    start = _START.replace("json.loads(sys.argv[1])", "json.load(sys.stdin)")
    names = [file.name for file in files("pyinfra_vllm.on_host").iterdir() if file.name.endswith(".py")]
    sources = {
        name[: -len(".py")]: _source(name[: -len(".py")]) for name in names if not name.startswith("__")
    }
    return ("python3", "-I", "-c", start, "-", module, *arguments), json.dumps(sources)


def _source(name: str) -> str:
    return files("pyinfra_vllm.on_host").joinpath(f"{name}.py").read_text(encoding="utf-8")
