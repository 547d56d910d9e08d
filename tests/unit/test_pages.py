"""Files are read into memory before a start: as far as memory and time go, whatever their state."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from pyinfra_vllm.on_host.inspect import gpus, nvidia
from pyinfra_vllm.on_host.staging import pages

MIB = 1 << 20


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    made = [tmp_path / f"{number}.safetensors" for number in range(3)]
    for path in made:
        path.write_bytes(os.urandom(4 * MIB))
    return made


def meminfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, available_mib: int) -> None:
    text = f"MemTotal: 10240 kB\nMemAvailable: {available_mib << 10} kB\nHugePages_Total: 0\n"
    (tmp_path / "meminfo").write_text(text)
    monkeypatch.setattr(pages, "MEMINFO", tmp_path / "meminfo")


def test_every_byte_is_read(files: list[Path]) -> None:
    found = pages.warm(files)
    assert (found.files, found.bytes, found.of_bytes) == (3, 12 * MIB, 12 * MIB)
    assert str(found) == "0.0 GB read into memory in 0 s"


def test_pages_that_the_disk_alone_had_are_in_memory_afterwards() -> None:
    """On a real disk: in memory-backed folders nothing can be driven out."""
    path = Path(__file__).with_name(f".{os.getpid()}.bin")
    path.write_bytes(os.urandom(8 * MIB))
    try:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if _resident(path):
            pytest.skip("nothing can be driven out of memory here")
        pages.warm([path])
        assert _resident(path) == 8 * MIB
    finally:
        path.unlink()


def _resident(path: Path) -> int:
    words = ["fincore", "--bytes", "--noheadings", "--output", "RES", str(path)]
    return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def test_what_does_not_fit_is_left_out(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meminfo(tmp_path, monkeypatch, available_mib=10)  # of which one must stay free
    found = pages.warm(files)
    assert (found.files, found.bytes) == (2, 8 * MIB)
    assert "of 0.0 GB" in str(found)


def test_it_ends_when_its_time_is_over(files: list[Path]) -> None:
    assert pages.warm(files, limit_s=0.0).bytes < 12 * MIB


def test_the_libraries_of_a_new_runtime_are_read_before_the_checkpoint(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "venv/lib").mkdir(parents=True)
    library = tmp_path / "venv/lib/libtorch.so.2"
    library.write_bytes(b"\x7fELF")
    (tmp_path / "venv/lib/libbroken.so").symlink_to("nowhere")
    (tmp_path / "venv/lib/module.py").write_text("")
    read: list[Path] = []
    monkeypatch.setattr(pages, "warm", read.extend)
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    moved = [path.rename(checkpoint / path.name) for path in files]
    pages.read_ahead(checkpoint, tmp_path / "venv")
    assert read == [library, *moved]
    read.clear()
    pages.read_ahead(checkpoint, None)
    assert read == moved


def test_where_gpu_and_host_share_their_memory_nothing_is_read(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    card = gpus.Gpu(0, "GPU-1", "NVIDIA GB10", None, None, None, "12.1", None, 0, None, False)
    monkeypatch.setattr(gpus, "gpus", lambda: [card])
    assert "not read ahead" in pages.read_ahead(files[0].parent, None)


def test_a_host_without_an_answer_of_its_driver_reads_all_the_same(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> list[gpus.Gpu]:
        raise nvidia.NoAnswer("the driver is dead")

    monkeypatch.setattr(gpus, "gpus", fail)
    assert "GB read into memory" in pages.read_ahead(files[0].parent, None)


def test_a_file_that_can_not_be_read_is_said(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "MEMINFO", files[0].parent / "none")
    assert pages.read_ahead(files[0].parent, None).startswith("not read ahead: ")
