"""Installs a vLLM into a venv of its own, with uv, as a transient systemd unit.

A venv is bound to its path, so it is built in place: `.building` is there until the end, and whatever finds
it takes the venv for none. A failed build is removed whole. A venv that is complete is never touched: a
release may run from it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..inspect.runtime import BUILDING, CACHE, RECORD, distribution, same, unit_key
from ..state import durable, task
from ..state.status import RUN, Status

LOCK = "requirements.lock"  # in the venv: every package that was installed, by version and sha256
LAST_WORDS = 12  # lines of uv's output in an error: its reasons come last
PASSED_ON = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")


class BuildError(task.TaskError):
    """The runtime can't be installed: the message is for the operator."""


@dataclass(frozen=True)
class Request:
    """Which packages, from where, into which venv below `root`/runtimes."""

    root: Path
    name: str
    uv: str
    package: str
    version: str
    packages: tuple[str, ...]
    index: str | None
    run: Path

    @property
    def path(self) -> Path:
        return self.root / "runtimes" / self.name

    @property
    def key(self) -> str:
        return unit_key(self.name)

    @property
    def cache(self) -> Path:
        """Uv links files from its cache, which must be on the same file system; it goes after the build."""
        return self.root / "runtimes" / f"{CACHE}{self.name}"

    @property
    def lock(self) -> Path:
        return self.run / f"build-{self.key}.lock"

    @property
    def status(self) -> Path:
        return self.run / f"build-{self.key}.json"

    @property
    def purpose(self) -> str:
        return f"the installation of {self.package} {self.version}"

    def record(self) -> dict[str, Any]:
        """The content of `.complete`: the request."""
        return {
            "package": self.package,
            "version": self.version,
            "packages": list(self.packages),
            "index": self.index,
        }


def main(argv: list[str]) -> int:
    """Install the runtime that a request file names (see task.run)."""
    os.umask(0o022)  # the service's user must be able to read it
    return task.run("build", argv, read_request, lambda request: Status(request.status), build)


def read_request(path: Path) -> Request:
    """The request in a file. Raises BuildError for anything that could lead outside `root`/runtimes."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        request = Request(
            root=Path(content["root"]),
            name=str(content["name"]),
            uv=str(content["uv"]),
            package=str(content["package"]),
            version=str(content["version"]),
            packages=tuple(str(item) for item in content["packages"]),
            index=content["index"],
            run=Path(content.get("run", RUN)),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BuildError(f"{path} is no request to build: {type(error).__name__}: {error}") from error
    if not request.root.is_absolute() or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+_-]*", request.name):
        raise BuildError(f"no plain name below an absolute root: {request.name!r} below {request.root}")
    if any(item.startswith("-") for item in (request.package, *request.packages)):
        raise BuildError("a requirement must not begin with a dash")
    return request


def build(request: Request, status: Status) -> None:
    """Install into `path`. Raises BuildError, with nothing left of the attempt, when that fails."""
    if (request.path / RECORD).exists() and not (request.path / BUILDING).exists():
        raise BuildError(f"{request.path} is complete; it was left as it is, as a release may run from it")
    if request.path.is_symlink():
        raise BuildError(f"{request.path} is a symbolic link; it was left as it is. Remove it.")
    if request.path.exists():
        shutil.rmtree(request.path)
    request.path.mkdir(parents=True, mode=0o755)
    durable.write_text(request.path / BUILDING, "", durable.PUBLIC)
    try:
        _install(request, status)
        _check(request)
    except BaseException:
        shutil.rmtree(request.path)
        raise
    finally:
        shutil.rmtree(request.cache, ignore_errors=True)
    os.sync()  # the record says that all files are there, also after a power cut
    durable.write_json(request.path / RECORD, request.record(), durable.PUBLIC)
    durable.remove(request.path / BUILDING)
    status.done(f"{request.package} {request.version} is installed")


def _install(request: Request, status: Status) -> None:
    _uv(request, status, "venv", "--allow-existing", str(request.path))
    source: list[str] = []
    if request.index is not None:
        folder = request.index.startswith("/")
        source = (
            ["--no-index", "--find-links", request.index] if folder else ["--default-index", request.index]
        )
    python = str(request.path / "bin" / "python")
    asked = request.path / "requirements.in"
    wanted_lines = [f"{request.package}=={request.version}", *request.packages]
    durable.write_text(asked, "\n".join(wanted_lines) + "\n", mode=durable.PUBLIC)
    # First what it comes to, with the sha256 of every file, then exactly that: the lock stays with the
    # runtime.
    lock = str(request.path / LOCK)
    locked = ("--generate-hashes", "--no-header", "--no-annotate", "--quiet", "--output-file", lock)
    _uv(request, status, "pip", "compile", "--python", python, *source, *locked, str(asked))
    wanted = ["--require-hashes", "--requirement", lock]
    # The service's user can't write byte code here: without it each process would compile all that it
    # imports, at each start.
    _uv(request, status, "pip", "install", "--compile-bytecode", "--python", python, *source, *wanted)


def _uv(request: Request, status: Status, *arguments: str) -> None:
    """One command of uv; its lines are the progress, its last ones the error."""
    passed = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    environment = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": str(request.cache),
        "LANG": "C.UTF-8",
        "UV_CACHE_DIR": str(request.cache),
        "UV_NO_CONFIG": "1",
        "UV_NO_PROGRESS": "1",
        "UV_PYTHON_DOWNLOADS": "never",
        "UV_LINK_MODE": "hardlink",
        **passed,
    }
    request.cache.mkdir(mode=0o700, exist_ok=True)
    lines: deque[str] = deque(maxlen=LAST_WORDS)
    with subprocess.Popen(
        [request.uv, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
        cwd=request.path,
    ) as child:
        for line in child.stdout or ():
            lines.append(line.strip())
            status.say("installing", f"{request.package} {request.version}: {line.strip()}")
    if child.returncode:
        raise BuildError(
            f"{request.package} {request.version} could not be installed; nothing is left of the attempt. "
            f"uv says: {' '.join(line for line in lines if line)[-800:]}"
        )


def _check(request: Request) -> None:
    """Checks that the installed packages are those of the request."""
    for packages in sorted(request.path.glob("lib/python3*/site-packages")):
        found = distribution(packages)
        if found and found["distribution"] == request.package and same(found["version"], request.version):
            if not (request.path / "bin" / "vllm").exists():
                raise BuildError(f"{request.package} {request.version} brought no `vllm` command")
            return
    raise BuildError(
        f"{request.path} does not hold {request.package} {request.version} after its installation"
    )
