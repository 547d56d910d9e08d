"""Who may import whom: arrows point one way, and no circle is in the house."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import pyinfra_vllm

SOURCE = Path(pyinfra_vllm.__file__).parent
# Each package of the program on the host imports from those before it only.
ON_HOST = ("state", "openai", "inspect", "server", "bench", "gate", "staging", "switch")


def imports(place: Path) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """(module, what it imports) of all modules below, as paths from `place` on."""
    prefix = ("pyinfra_vllm", *place.relative_to(SOURCE).parts)
    for file in place.rglob("*.py"):
        module = file.relative_to(place).with_suffix("").parts
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom):
                continue
            name = tuple(node.module.split(".")) if node.module else ()
            if node.level:
                whole = (*prefix, *module[:-1])
                name = (*whole[: len(whole) - node.level + 1], *name)
            if name[: len(prefix)] == prefix:
                yield from ((module, (*name, alias.name)[len(prefix) :]) for alias in node.names)


def test_packages_on_the_host_import_from_those_before_them() -> None:
    found = {(module[0], told[0]) for module, told in imports(SOURCE / "on_host") if len(module) > 1}
    assert {room for pair in found for room in pair} == set(ON_HOST)
    wrong = [(one, other) for one, other in found if ON_HOST.index(other) > ON_HOST.index(one)]
    assert wrong == []


@pytest.mark.thorough
def test_imports_have_no_cycle() -> None:
    rooms: dict[str, set[str]] = {}
    for module, told in imports(SOURCE):
        if module[0] != told[0] and not module[0].startswith("__"):
            rooms.setdefault(module[0], set()).add(told[0])
    assert len(rooms) > 20
    TopologicalSorter(rooms).prepare()  # raises CycleError, which names the circle


def test_packages_are_installed_by_the_lab_before_the_project_is_there() -> None:
    """On a fresh machine `make test` begins with a Python that has nothing but its standard library."""
    code = f"import sys; sys.path.insert(0, {str(SOURCE.parents[1] / 'tests/lab')!r}); import lab.__main__"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
