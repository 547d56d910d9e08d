"""One host under test as the tests reach it: through the kernel, not over SSH, so that a cut cable hides
nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab import cgroups, light_runtime
from lab.disk import Disk
from lab.machine import Host
from lab.shell import LabError

from pyinfra_vllm.on_host.switch.order import ROLLBACK, Order
from pyinfra_vllm.operations.util.switching import launch

from .witness import Witness

sys.path.insert(0, str(Path(__file__).parents[2]))
import nvidia_smi

HERE = Path(__file__).parent
ROOT = "/srv/pyinfra-vllm"
STATE = f"{ROOT}/tiny"
UNIT = "vllm-tiny.service"
SWITCH = "pyinfra-vllm-switch-tiny.service"
# for a moment every two minutes, whether there is anything to do or not
LOOKS = "pyinfra-vllm-recover-due.service"
ENDS = ("committed", "rolled_back", "refused", "deferred", "interrupted", "calibrated")
HOOK = "usr/local/lib/python3.11/dist-packages"
FOLDER = "var/lib/faults"
NO_START = f"/{FOLDER}/no-start"  # no start of the stub succeeds before the Unix time in it
ENGINE = f"/{FOLDER}/engine"  # what fails of the stub's engine: `RELEASE SLEEP fails`, `RELEASE WAKE wrong`
GATE = {**light_runtime.GATE, "budget_s": 5.0, "concurrency": [1]}
STANDBY_MOST_S = 7.0  # in turns, with standby: a whole switch may take 30 s, on cores that others use
SLOWNESS = float(os.environ.get("PYINFRA_VLLM_LAB_SLOWNESS", "1"))  # of this machine, where others use it too
REAL_BUDGET_S = 20.0  # three real servers share two cores: 10 s once ended before a round's first answer


class Late(AssertionError):
    """Something did not happen on a host within its time."""


@dataclass
class Ground:
    """A host that serves one of two good releases and has all releases of the tests staged.

    releases: what a test calls a release -> its id
    voices: release id -> what its checkpoint says to the watch's prompt
    """

    host: Host
    disk: Disk | None = None
    releases: dict[str, str] = field(default_factory=dict)
    voices: dict[str, str] = field(default_factory=dict)
    mounts: list[str] = field(default_factory=list)
    ready_timeout_s: float = 15.0 * SLOWNESS
    real: bool = False  # the real vLLM serves, which takes its time for everything
    standby: bool = False  # every release can sleep; the card is a stand-in for nvidia-smi

    def __post_init__(self) -> None:
        self.witness = Witness(lambda: self.host.place / "witness.jsonl")

    @property
    def gate(self) -> dict[str, Any]:
        if self.real:
            return {**GATE, "budget_s": REAL_BUDGET_S}
        return {**GATE, "max_budget_s": STANDBY_MOST_S} if self.standby else GATE

    @property
    def patience(self) -> float:
        """How many times longer than with the stub anything may take."""
        return SLOWNESS * (10.0 if self.real else 1.0)

    # The host's inside

    def leader(self) -> int | None:
        """The host's first process as this machine numbers it; None while its power is off."""
        supervisor = self.host._pid
        if supervisor is None:
            return None
        try:
            children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
        except OSError:
            return None
        return int(children[0]) if children else None

    def inside(self, *argv: str, stdin: str = "", check: bool = True, timeout: float = 60) -> str:
        """Run a command in all of the host's namespaces; its standard output."""
        done = subprocess.run(
            [*self._enter(), *argv],
            input=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
        )
        if check and done.returncode:
            raise LabError(
                f"{self.host.name}: {' '.join(argv)[:200]}: {done.returncode}: {done.stderr[-800:]}"
            )
        return done.stdout

    def _enter(self) -> list[str]:
        """The beginning of a command line whose rest runs in the host."""
        leader = self.leader()
        if leader is None:
            raise LabError(f"{self.host.name} has no power")
        spaces = ("--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup")
        path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"
        return ["nsenter", "--target", str(leader), *spaces, "env", path, "LANG=C.UTF-8"]

    def beside(self, *argv: str) -> int:
        """Start a command in the host that goes on by itself; it says its number on the host first, this is
        ours.
        """
        process = subprocess.Popen(
            [*self._enter(), *argv], stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        threading.Thread(target=process.wait, daemon=True).start()  # so that it leaves no zombie
        (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        return int(child)

    def groups(self, pattern: str = "pyinfra-vllm-*.service") -> list[Path]:
        """The control groups of our units that run something, as this machine sees them.

        Asks nobody on the host.
        """
        slices = [group / "payload/system.slice" for group in cgroups.find(self.host.name)]
        found = [
            unit for slice in slices for where in ("", "*.slice/") for unit in slice.glob(where + pattern)
        ]
        return [unit for unit in found if _peopled(unit)]

    @property
    def busy(self) -> bool:
        """Whether anything of ours runs on the host, be it a switch or its recovery."""
        if cgroups.hierarchies():
            return any(group.name != LOOKS for group in self.groups())
        return bool(self.inside("pgrep", "--full", "on-host.pyz", check=False))

    def look(self) -> dict[str, Any]:
        text = self.inside("python3", "-", stdin=(HERE / "inside/look.py").read_text())
        return dict(json.loads(text))

    def current(self) -> str:
        return (self.outside(STATE) / "current").readlink().name

    def outside(self, path: str) -> Path:
        """Where a file of the host lies on this machine."""
        if self.disk is not None and path.startswith(self.disk.path):
            return self.disk.mount(self.host.place) / path[len(self.disk.path) :].lstrip("/")
        return self.host.root / path.lstrip("/")

    def entries(self) -> list[dict[str, Any]]:
        """The newest transaction in the journal as it is now; a line that is torn or being written is left
        out.
        """
        text = (self.outside(STATE) / "journal.jsonl").read_bytes()
        first = text.rfind(b"\n", 0, max(0, text.rfind(b'"step": "begin"'))) + 1
        found = []
        for line in text[first:].splitlines():
            with suppress(ValueError):
                found.append(dict(json.loads(line)))
        begun = [entry["tx"] for entry in found if entry.get("step") == "begin"]
        return [entry for entry in found if begun and entry["tx"] == begun[-1]]

    def transaction(self) -> str:
        """The name of the newest transaction."""
        return str(self.entries()[0]["tx"])

    def outcome(self) -> str | None:
        """How the newest transaction ended; None where it has not."""
        ends = [entry["outcome"] for entry in self.entries() if entry["step"] == "end"]
        return str(ends[-1]) if ends else None

    # Fault points

    def install_hook(self) -> None:
        target = self.host.root / HOOK
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(HERE / "inside/fault_points.py", target / "fault_points.py")
        (target / "fault_points.pth").write_text("import fault_points\n")
        (self.host.root / FOLDER).mkdir(parents=True, exist_ok=True)

    def arm(self, point: str, **how: Any) -> None:
        """A point is an entry like `activate.done`, `turn.note#3` for the third such entry,
        `restore.intended+3` for the third entry after that one, or `+3` for the third from now on, whoever
        writes it.
        """
        folder = self.host.root / FOLDER
        (folder / "reached").unlink(missing_ok=True)
        entry, _, after = point.partition("+")
        name, _, nth = entry.partition("#")
        where: dict[str, Any] = {"point": name, "nth": int(nth or 1), "after": int(after or 0)}
        if point.startswith("+"):
            where = {"point": "any", "skip": int(point) - 1}
        (folder / "armed.partial").write_text(json.dumps({**where, **how}))
        (folder / "armed.partial").rename(folder / "armed")

    def disarm(self) -> None:
        (self.host.root / FOLDER / "armed").unlink(missing_ok=True)

    def reached(self, timeout: float = 120) -> int:
        """Wait until a process stands at the armed point; its number on the host.

        Late where the switch ended before.
        """
        path = self.host.root / FOLDER / "reached"
        begun = False

        def there() -> bool:
            nonlocal begun
            busy = self.busy
            if path.exists() and path.read_text():
                return True
            if begun and not busy:
                raise Late(f"{self.host.name} ended its switch before its fault point: {self.entries()[-1]}")
            begun = begun or busy
            return False

        self.until(there, "reach its fault point", timeout * self.patience)
        return int(path.read_text())

    def reached_later(self, timeout: float) -> int | None:
        """The same for a point after the first fault: None where the host is at rest before it
        comes to it.
        """
        path = self.host.root / FOLDER / "reached"
        end, quiet = time.monotonic() + timeout * self.patience, 0
        while time.monotonic() < end and quiet < 8:
            if path.exists() and path.read_text():
                return int(path.read_text())
            quiet = 0 if self.busy or self.outcome() is None else quiet + 1
            time.sleep(0.1)
        self.disarm()
        return None

    # Switches, as the control machine starts them

    def start(self, release_id: str, **order: Any) -> None:
        """As soon as systemd has forgotten the last switch's unit, which is a moment after its
        last process.
        """
        self.until(lambda: not self._knows(SWITCH), "forget its last switch", 20 * self.patience)
        launch(self, ROOT, self.order(release_id, **order))  # type: ignore[arg-type]

    def _knows(self, unit: str) -> bool:
        return "not-found" not in self.inside("systemctl", "show", "--property", "LoadState", unit)

    def order(self, release_id: str, **order: Any) -> Order:
        values = {
            "operator": "faults@test",
            "criteria": self.gate,
            "ready_timeout_s": self.ready_timeout_s,
            **order,
        }
        return Order(service="tiny", release=release_id, **values)

    def run(self, *words: str, stdin: str | None = None, timeout_s: int | None = None) -> str:
        """The same as operations.util.remote.Remote does over SSH."""
        return self.inside(*words, stdin=stdin or "", timeout=timeout_s or 60)

    def write(self, path: str, text: str, mode: str = "600") -> None:
        self.inside("sh", "-c", f"umask 077; cat > {path}", stdin=text)

    def back(self, release_id: str) -> None:
        """Have the release serve by an order that asks only for tokens, to its end."""
        self.start(release_id, purpose=ROLLBACK, reason="the next case")
        self.wait_over()

    def stirs(self) -> bool:
        """Whether systemd is about to start or stop something of ours, though nothing of it runs just now."""
        words = ("systemctl", "list-units", "--all", "--plain", "--no-legend", "pyinfra-vllm-*.service")
        units = [line.split() for line in self.inside(*words, check=False).splitlines()]
        return any(unit[2] in ("activating", "deactivating", "reloading") for unit in units)

    def wait_over(self, timeout: float = 120) -> None:
        """Wait until the newest transaction has ended and nothing of ours runs any more.

        Between a transaction and what follows it in its unit there is a moment in which nothing runs: systemd
        knows.
        """
        self.until(
            lambda: not self.busy and self.outcome() is not None and not self._knows(SWITCH),
            "end its switch",
            timeout * self.patience,
        )

    # Power

    def power_off(self) -> float:
        """Shut down in good order, as `systemctl poweroff` does; the seconds that it took."""
        began = time.monotonic()
        self.host.stop()
        return time.monotonic() - began

    def reboot_in_order(self) -> float:
        """`systemctl reboot`, and boot; the seconds until it was down.

        Its supervisor ends, to be started anew.
        """
        began = time.monotonic()
        self.inside("systemctl", "reboot", check=False)
        self.until(lambda: not self.host.running, "go down", 120 * self.patience)
        took = time.monotonic() - began
        self.reboot()
        return took

    def power_on(self) -> None:
        self.host.start()
        self.witness.see(self.supervisor)

    def reboot(self) -> None:
        """Power cut, and boot."""
        self.host.power_cut()
        self.power_on()

    @property
    def supervisor(self) -> int:
        assert self.host._pid is not None, f"{self.host.name} has no power"
        return self.host._pid

    def signal(self, number: str, *pids: int) -> None:
        """No process has the number 0: `kill` would take it for all of ours."""
        if all(pids):
            self.inside("kill", f"-{number}", *map(str, pids), check=False)

    def card(self, used_mib: int = 0) -> None:
        """Let the stand-in for nvidia-smi say this of the host's one card from now on."""
        text = nvidia_smi.program(nvidia_smi.card(0, (), **{"memory.used": used_mib}))
        path = self.host.root / "usr/local/bin/nvidia-smi"
        path.with_suffix(".partial").write_text(text)
        path.with_suffix(".partial").chmod(0o755)
        path.with_suffix(".partial").rename(path)

    def server(self) -> int:
        return int(self.inside("systemctl", "show", "--value", "--property", "MainPID", UNIT).strip() or 0)

    # Waiting

    def until(self, reached: Callable[[], Any], what: str, timeout: float, every: float = 0.05) -> None:
        end = time.monotonic() + timeout
        while not reached():
            if time.monotonic() > end:
                raise Late(f"{self.host.name} did not {what} within {timeout:.0f} s")
            time.sleep(every)


def _peopled(group: Path) -> bool:
    try:
        return bool((group / "cgroup.procs").read_text())
    except OSError:  # it has gone
        return False
