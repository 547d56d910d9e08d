"""Small disks for hosts: ext4 file systems in files, so that one can really fill up or turn read-only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .shell import run


@dataclass(frozen=True)
class Disk:
    """A file system of `size_mib` MiB that the host sees at `path`."""

    path: str
    size_mib: int
    inodes: int | None = None

    def mount(self, place: Path) -> Path:
        """Make (once) and mount it under `place` on this machine; returns the directory to bind into the host."""
        name = self.path.strip("/").replace("/", "-")
        image, directory = place / f"{name}.img", place / name
        directory.mkdir(parents=True, exist_ok=True)
        if not image.exists():
            with image.open("wb") as file:
                file.truncate(self.size_mib << 20)
            count = ["-N", str(self.inodes)] if self.inodes else []
            run("mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", "-e", "remount-ro", *count, image)
        if not directory.is_mount():
            run("mount", "-o", "loop", image, directory)
        return directory


def set_read_only(directory: Path, read_only: bool) -> None:
    run("mount", "-o", f"remount,{'ro' if read_only else 'rw'}", directory)


def fail(directory: Path) -> None:
    """An error of the file system, as the kernel makes one for tests: read-only at once, whoever writes to it."""
    device = run("findmnt", "--noheadings", "--output", "SOURCE", directory).stdout.strip()
    Path("/sys/fs/ext4", Path(device).name, "trigger_fs_error").write_text("1")


def repair(disk: Disk, place: Path) -> None:
    """What a boot after such an error does; the host's power must be off.

    It works on a copy: hosts that were booted meanwhile keep the failed file system in the kernel (their first mount table
    had it), and the same image would come back as it was.
    """
    directory = disk.mount(place)
    image, copy = directory.with_suffix(".img"), directory.with_suffix(".copy")
    run("umount", directory)
    run("cp", "--sparse=always", image, copy)
    run("fsck.ext4", "-p", copy, check=False)  # 1: errors were corrected
    copy.replace(image)
    disk.mount(place)
