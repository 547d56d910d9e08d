"""The zipapp is the same for the same sources, and runs on every python3 that a host may have."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import pyinfra_vllm.on_host
from pyinfra_vllm.operations.util.archive import archive, program_name

ON_HOST = Path(pyinfra_vllm.on_host.__file__).parent
VERSIONS = ("3.9", "3.10", "3.11", "3.12", "3.13", "3.14")


def interpreters() -> list[str]:
    """Every python3 of this machine: the one that runs the tests, and others where they are installed."""
    installed = [shutil.which(f"python{version}") for version in VERSIONS]
    found = [sys.executable]
    found += [program for program in installed if program and "shims" not in Path(program).parts]
    pyenv = Path.home() / ".pyenv" / "versions"
    found += [str(path) for version in VERSIONS for path in pyenv.glob(f"{version}.*/bin/python")]
    return found


def test_the_same_sources_make_the_same_bytes() -> None:
    first = archive()
    archive.cache_clear()
    assert archive() == first and program_name().startswith("on-host-")


@pytest.mark.thorough
@pytest.mark.parametrize("python", interpreters())
def test_archive_runs_without_the_checkout(tmp_path: Path, python: str) -> None:
    program = tmp_path / "on-host.pyz"
    program.write_bytes(archive())
    command = [python, "-I", str(program), "--root", str(tmp_path / "root"), "status"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == []


def test_the_program_for_the_host_imports_the_standard_library_and_itself_only() -> None:
    for source in ON_HOST.rglob("*.py"):
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            for name in names:
                assert name.split(".")[0] in sys.stdlib_module_names, f"{source.name} imports {name}"


def compiled(folder: Path) -> Path:
    program = folder / "on-host.pyz"
    program.write_bytes(archive())
    subprocess.run([sys.executable, "-I", str(program), "compile"], check=True)
    return program


@pytest.mark.thorough
def test_byte_code_that_the_host_adds_is_used(tmp_path: Path) -> None:
    program = compiled(tmp_path)
    bare = tmp_path / "bare.pyz"
    with zipfile.ZipFile(program) as packed, zipfile.ZipFile(bare, "w") as without:
        for item in packed.infolist():
            if not item.filename.endswith(".py"):
                without.writestr(item, packed.read(item))
    done = subprocess.run(
        [sys.executable, "-I", str(bare), "status", "--help"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.thorough
@pytest.mark.parametrize("python", interpreters())
def test_another_python_takes_the_sources(tmp_path: Path, python: str) -> None:
    program = compiled(tmp_path)
    again = subprocess.run([sys.executable, "-I", str(program), "compile"], check=False)
    assert again.returncode == 0, "what was compiled before does not stay beside the new"
    command = [python, "-I", str(program), "--root", str(tmp_path / "root"), "status"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "[]")
