"""scripts/scan_flags.py: what it writes is what it reads, and the catalog is what it would write."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

SCRIPT = Path(__file__).parents[2] / "scripts" / "scan_flags.py"
ENGINE = """
class EngineArgs:
    @staticmethod
    def add_cli_args(parser):
        parser.add_argument("--max-model-len", type=int)
        parser.add_argument("--brand-new", "-b")
"""
FRONTEND = "class FrontendArgs:\n    api_key: str | None = None\n"


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("scan_flags", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


scan_flags = _load()


def test_the_catalog_is_what_the_script_writes() -> None:
    text = scan_flags.CATALOG.read_text(encoding="utf-8")
    assert scan_flags.render(scan_flags.read(scan_flags.CATALOG)) == text


@pytest.mark.thorough
@given(
    st.dictionaries(
        st.sampled_from(["0.9.2", "0.11.0", "0.12.0", "0.25.1", "0.33.0"]),
        st.sets(st.sampled_from(["--a", "--b", "--c"])),
        min_size=1,
    )
)
def test_what_is_written_is_read_back(found: dict[str, set[str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "flags.json")
        path.write_text(scan_flags.render(found))
        assert scan_flags.read(path) == found


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "vllm-0.99.0-cp38-abi3-manylinux_2_28_x86_64.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("vllm/engine/arg_utils.py", ENGINE)
        archive.writestr("vllm/entrypoints/common/cli_args.py", FRONTEND)
    return path


def test_a_new_wheel_is_added_once(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = tmp_path / "flags.json"
    catalog.write_text(scan_flags.CATALOG.read_text(encoding="utf-8"), encoding="utf-8")
    before = scan_flags.read(catalog)
    monkeypatch.setattr(scan_flags, "CATALOG", catalog)

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["scan_flags.py", *arguments, str(wheel)])
        code: int = scan_flags.main()
        return code

    assert run("--check") == 1
    assert scan_flags.read(catalog) == before
    assert run() == 0
    after = scan_flags.read(catalog)
    assert after.pop("0.99.0") >= {"--max-model-len", "--brand-new", "--api-key"}
    assert after == before
    assert run("--check") == 0
