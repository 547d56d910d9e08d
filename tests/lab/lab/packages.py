"""Installing Python packages fast, from wherever pip on this machine is set up to look; no index is named
here.
"""

from __future__ import annotations

import ast
import os
import sys
import tempfile
from pathlib import Path

from .layout import cache
from .shell import run

_UV = (sys.executable, "-m", "uv", "pip")
EXTRA_INDEX = "PYINFRA_VLLM_LAB_TORCH_INDEX"


def install(python: Path, *wanted: str) -> None:
    """Install into the environment of `python`. Downloads are linked into place, not kept twice."""
    _install("--python", python, *wanted)


def install_for(version: str, site: Path, *wanted: str) -> None:
    """Install into a directory of packages for a Python that this machine may not have, such as 3.9."""
    only = ("--only-binary", ":all:")
    _install("--python-version", version, "--python-platform", "linux", "--target", site, *only, *wanted)


def _install(*words: str | Path) -> None:
    cache().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache(), prefix="packages-") as downloads:
        environment = {**os.environ, "UV_CACHE_DIR": downloads, **for_uv()}
        run(*_UV, "install", *words, env=environment)


def uninstall(python: Path, *names: str) -> None:
    run(*_UV, "uninstall", "--python", python, *names)


def for_uv() -> dict[str, str]:
    """Pip's own configuration on this machine (indexes, links, certificates) as uv's variables."""
    settings: dict[str, list[str]] = {}
    for line in run(sys.executable, "-m", "pip", "config", "list").stdout.splitlines():
        key, _, value = line.partition("=")
        name = key.rsplit(".", 1)[-1]
        settings.setdefault(name, []).extend(str(ast.literal_eval(value)).split())
    extra = [*settings.get("extra-index-url", []), *os.environ.get(EXTRA_INDEX, "").split()]
    found = {
        "UV_INDEX_STRATEGY": "unsafe-best-match",  # the best version of any index, as pip does
        "UV_DEFAULT_INDEX": "".join(settings.get("index-url", [])[-1:]),
        "UV_INDEX": " ".join(dict.fromkeys(extra)),
        "UV_FIND_LINKS": ",".join(dict.fromkeys(settings.get("find-links", []))),
        "SSL_CERT_FILE": "".join(settings.get("cert", [])[-1:]),
    }
    return {name: value for name, value in found.items() if value}
