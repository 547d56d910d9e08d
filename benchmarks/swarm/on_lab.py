"""A checkpoint to many hosts of the lab whose links are limited: the time against one host's, and bytes from
the Hub.

    on_lab.py [--hosts 16] [--gigabytes 2] [--mbit 100] [--repeat 3] [--from-hub 4]

Both times are taken in one run, turn by turn, and end when the checkpoint is verified and installed: one host
from the Hub alone, then all hosts with `sources.swarm`. Ends with 1 where the target is missed. Nothing else
should run beside it; hosts, Hub and control machine share this machine's cores.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests/lab"))

from lab import peers, session
from lab.machine import Host
from lab.peers import Project

MOST_TIME, MOST_CHECKPOINTS = 1.5, 3.0
SHARDS = 8
CHUNK = 16 << 20


@dataclass(frozen=True)
class Turn:
    """One measurement: seconds of one host and of all, and how many checkpoints the Hub sent to all."""

    alone_s: float
    shared_s: float
    checkpoints: float

    @property
    def ratio(self) -> float:
        return self.shared_s / self.alone_s


def weights(folder: Path, total: int) -> dict[str, Path | bytes]:
    """Files of random bytes, which nothing on the way can compress."""
    files: dict[str, Path | bytes] = {"config.json": b'{"model_type": "qwen3"}'}
    for number in range(SHARDS):
        path = folder / f"model-{number + 1:05}-of-{SHARDS:05}.safetensors"
        with path.open("wb") as file:
            left = total // SHARDS
            while left:
                left -= file.write(os.urandom(min(CHUNK, left)))
        files[path.name] = path
    return files


def stage(project: Project, hosts: Sequence[Host], swarm: dict[str, object] | None) -> float:
    """Seconds until the checkpoint is installed on each of them."""
    project.forget(hosts)
    os.sync()
    began = time.monotonic()
    project.run(*project.words(hosts), swarm=swarm, timeout=3 * 3600)
    took = time.monotonic() - began
    for host in hosts:
        host.ssh(f"test -e {project.directory}/.complete")
    return took


def measure(hosts: int, gigabytes: float, mbit: float, repeat: int, from_hub: int) -> list[Turn]:
    total = int(gigabytes * 1e9)
    with session.lab(light=True) as lab, tempfile.TemporaryDirectory() as folder:
        added = lab.add(*(f"n{number}" for number in range(1, hosts + 1)), binds=peers.binds(), timeout=300)
        (Path(folder) / "project").mkdir()
        (Path(folder) / "files").mkdir()
        project = Project.of(lab, Path(folder) / "project", weights(Path(folder) / "files", total))
        project.run(*project.words(added, "preparing.py"), swarm={"from_hub": from_hub}, timeout=1200)
        for host in added:
            peers.limit_both_ways(host, mbit)
        turns = []
        for number in range(repeat):
            alone = stage(project, added[:1], None)
            shared = stage(project, added, {"from_hub": from_hub})
            turns.append(Turn(alone, shared, project.from_hub() / total))
            for host in added:
                project.verify(host)
            print(f"{number + 1}: {line(turns[-1])}", flush=True)
        return turns


def line(turn: Turn) -> str:
    return (
        f"one host {turn.alone_s:.1f} s, all {turn.shared_s:.1f} s: {turn.ratio:.2f} times;"
        f" {turn.checkpoints:.2f} checkpoints from the Hub"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hosts", type=int, default=16)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--mbit", type=float, default=100.0)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--from-hub", type=int, default=4)
    turns = measure(**vars(parser.parse_args()))
    ratios, sent = [turn.ratio for turn in turns], [turn.checkpoints for turn in turns]
    print(
        f"median {statistics.median(ratios):.2f} times the time of one host"
        f" ({min(ratios):.2f} to {max(ratios):.2f}; at most {MOST_TIME}),"
        f" at most {max(sent):.2f} checkpoints from the Hub (at most {MOST_CHECKPOINTS})"
    )
    return int(statistics.median(ratios) > MOST_TIME or max(sent) > MOST_CHECKPOINTS)


if __name__ == "__main__":
    sys.exit(main())
