"""Looks for secrets where they must not be: in every command line while a block runs, and in what a host
keeps.

A host's processes are this machine's too, so one look sees the command lines of both.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .machine import Host

EVERY_S = 0.005
# Whole, as text, whatever format it is kept in: journald compresses long fields, so its files are read by its
# own tool.
_TOLD = """
journalctl --no-pager --all --output=export
systemctl show '*' --no-pager
systemctl cat --no-pager 'vllm-*' 'pyinfra-vllm-*'
"""
# Not below: other file systems (processes, devices, what is bound in), and the journal's own files (see
# above).
_KEPT = "grep -rlaF --exclude-dir=journal -f - /etc /home /root /run /srv /tmp /usr/local /var || true"


@contextmanager
def command_lines(secrets: Sequence[str]) -> Iterator[set[str]]:
    """The command lines seen on this machine and its hosts, during the block, that hold one of
    the secrets.
    """
    seen: set[str] = set()
    over = threading.Event()

    def watch() -> None:
        while not over.wait(EVERY_S):
            seen.update(line for line in _now() if any(secret in line for secret in secrets))

    watcher = threading.Thread(target=watch, name="witness", daemon=True)
    watcher.start()
    try:
        yield seen
    finally:
        over.set()
        watcher.join()


def _now() -> Iterator[str]:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            yield (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has ended
            continue


def told(host: Host) -> str:
    """Everything that a user with the right to ask is told: the host's journal, and its units with all their
    properties.
    """
    return host.ssh(f"set -e; {_TOLD}").stdout


def kept(host: Host, secrets: Sequence[str]) -> list[str]:
    """The files of a host that hold one of the secrets."""
    return sorted(host.ssh(_KEPT, stdin="\n".join(secrets)).stdout.splitlines())
