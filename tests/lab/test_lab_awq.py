"""The cached vLLM multiplies 4-bit weights rightly, with the lab's plugin on a processor without AVX-512."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from lab import awq_without_avx512, venvs
from lab.shell import run

pytestmark = pytest.mark.full

COMPARE = Path(awq_without_avx512.__file__).parent / "in_vllm/compare_products.py"
# One rounding of the result, relative to the largest of a few thousand products.
ROUNDING = {"torch.float16": 2**-11, "torch.bfloat16": 2**-8}


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    (tmp_path / "lib/python3.11/site-packages").mkdir(parents=True)
    return tmp_path


def processor(place: Path, *flags: str) -> Path:
    file = place / "cpuinfo"
    file.write_text(f"processor\t: 0\nflags\t\t: fpu sse avx2 {' '.join(flags)}\n")
    return file


def added(venv: Path) -> dict[str, int]:
    """Each file in the venv, and when it was written."""
    files = [file for file in (venv / "lib").rglob("*") if file.is_file()]
    return {file.name: file.stat().st_mtime_ns for file in files}


def test_without_avx512_the_plugin_is_added_once(venv: Path) -> None:
    old = processor(venv)
    awq_without_avx512.add_to(venv, old)
    first = added(venv)
    assert set(first) == {"lab_awq_without_avx512.py", "METADATA", "entry_points.txt"}
    awq_without_avx512.add_to(venv, old)
    assert added(venv) == first


def test_an_older_plugin_is_replaced(venv: Path) -> None:
    old = processor(venv)
    awq_without_avx512.add_to(venv, old)
    (module,) = venv.rglob("lab_awq_without_avx512.py")
    module.write_text("older")
    awq_without_avx512.add_to(venv, old)
    assert module.read_text() == awq_without_avx512.PLUGIN.read_text()


def test_with_avx512_nothing_is_added(venv: Path) -> None:
    awq_without_avx512.add_to(venv, processor(venv, "avx512f"))
    assert added(venv) == {}


@pytest.mark.skipif(bool(os.environ.get(venvs.NAMED)), reason="the runtime that is named serves on GPUs")
def test_products_are_those_of_the_plain_weights() -> None:
    """On random tensors of a checkpoint, all of vLLM's way to a product: packing, kernel and operator."""
    errors = json.loads(run(venvs.real() / "bin/python", "-B", COMPARE, timeout=300).stdout.splitlines()[-1])
    assert len(errors) == 24
    wrong = {case: error for case, error in errors.items() if error > ROUNDING[case.split()[0]]}
    assert wrong == {}
