"""Small disks for hosts: ext4 file systems in files, so that one can really fill up or turn read-only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .shell import LabError, run


@dataclass(frozen=True)
class Disk:
    """A file system of `size_mib` MiB that the host sees at `path`."""

    path: str
    size_mib: int
    inodes: int | None = None
    journal: bool = False  # costs 4 MiB; what survives a power cut or an error needs it

    def mount(self, place: Path) -> Path:
        """Make (once) and mount it under `place` on this machine; returns the directory to bind into the
        host.
        """
        name = self.path.strip("/").replace("/", "-")
        image, directory = place / f"{name}.img", place / name
        directory.mkdir(parents=True, exist_ok=True)
        if not image.exists():
            with image.open("wb") as file:
                file.truncate(self.size_mib << 20)
            run("mkfs.ext4", "-q", "-F", "-m", "0", "-e", "remount-ro", *self._features(), image)
        if not directory.is_mount():
            run("mount", "-o", "loop", image, directory)
        return directory

    def _features(self) -> list[str]:
        inodes = ["-N", str(self.inodes)] if self.inodes else []
        return inodes if self.journal else ["-O", "^has_journal", *inodes]


def set_read_only(directory: Path, read_only: bool) -> None:
    run("mount", "-o", f"remount,{'ro' if read_only else 'rw'}", directory)


def fail(directory: Path) -> None:
    """An error of the file system, as the kernel makes one for tests: read-only at once, whoever writes to
    it.
    """
    Path("/sys/fs/ext4", Path(_device(directory)).name, "trigger_fs_error").write_text("1")


def _device(directory: Path) -> str:
    return run("findmnt", "--noheadings", "--output", "SOURCE", directory).stdout.strip()


def repair(disk: Disk, place: Path) -> None:
    """Repair it as a boot after such an error does; the host's power must be off.

    It works on a copy: hosts that were booted meanwhile keep the failed file system in the kernel (their
    first mount table had it), and the same image would come back as it was.
    """
    directory = disk.mount(place)
    image, copy = directory.with_suffix(".img"), directory.with_suffix(".copy")
    run("blockdev", "--flushbufs", _device(directory))
    run("umount", directory)
    run("cp", "--sparse=always", image, copy)
    checked = run("fsck.ext4", "-y", copy, check=False)
    if checked.returncode > 1:  # 1: errors were corrected
        raise LabError(f"{image} can't be repaired: {checked.stdout[-500:]}")
    copy.replace(image)
    disk.mount(place)
