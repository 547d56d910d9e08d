"""A switch with standby: the old release sleeps on the card while the new one is judged (docs/standby.md).

Says whether a switch can have that, and builds what `two_servers` acts on: the transaction and a recovery
that knows nothing but the journal build the same.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from pathlib import Path

from ..inspect import gpus as inspect_gpus
from ..inspect import nvidia
from ..openai.client import ClientError
from ..server import gpu_memory, systemd
from ..server import release as releases
from ..server.release import NotReady, Release
from ..server.service import Service
from ..state.journal import Entry, Journal
from ..state.paths import FRONT_FILES, ServicePaths, awake
from ..state.transactions import SLEEPS_ON, Transaction
from . import pair
from .pair import NEW, OLD, Act
from .two_servers import Limits, Member, TwoServers

PASS = "X-Pyinfra-Vllm-Pass"
# The canary questions, asked at temperature 0: the answers after each wake are those before the first sleep.
QUESTIONS = (
    "Count from one to ten: one two",
    "The capital of France is",
    "def add(a, b):\n    return",
)
CANARY_TOKENS, CANARY_S = 16, 60.0
# vLLM's own default share of a card (0.92 from 0.20 on), for a release whose command line says none.
DEFAULT_SHARE = 0.92
SPARE_MIB = 512  # a server that sleeps keeps at least as much, so that a wake needs less than it had before
OLDEST_SYSTEMD = 252
MEMINFO = Path("/proc/meminfo")
FREE_SHARE = 0.1  # of host memory, which must stay free
# Their product is the number of processes with a GPU of their own (vllm/config/parallel.py). Each pins the
# weights of its GPU; the predicted fit is of the fullest one (fit.py).
RANKS = (
    "--tensor-parallel-size",
    "--pipeline-parallel-size",
    "--prefill-context-parallel-size",
    "--data-parallel-size",
)
CANARIES, ACTS = "canary", "turn"  # entries of the journal


def refusal(paths: ServicePaths, old: Release | None, new: Release, asleep: bool = False) -> str | None:
    """Why this switch is today's; empty where the old release can sleep, None where nobody asked for it.

    + asleep: whether the new one sleeps already, and so has its host memory
    """
    if new.sockets is None:
        return None
    if old is None:
        return "there is no old release that could sleep"
    if old.sockets is None:
        return "the old release was started without it; the next switch has it"
    if old.id == new.id:
        return "the old release and the new one are the same"
    if _front(paths, old) != _front(paths, new):
        return "clients are to ask at another address"
    return host_problem(old) if asleep else host_problem(old, new)


def host_problem(*releases: Release) -> str:
    """Why no server of this host may sleep: its systemd, or its memory for the weights of these releases."""
    return _old_systemd() or _short_of_memory(*releases)


def kept(entries: Sequence[Entry]) -> str | None:
    """The old release of a committed switch that may sleep on: until its time is over or its soak ended."""
    sleeper = Transaction(entries).sleeper
    return sleeper["release"] if sleeper and time.time() < sleeper["until"] else None


def _old_systemd() -> str:
    """Before 252 a unit and its alias that moves to another one become one unit."""
    version = systemd.version()
    return f"systemd is {version}, {OLDEST_SYSTEMD} or newer is needed" if version < OLDEST_SYSTEMD else ""


def _short_of_memory(*asleep: Release) -> str:
    """Weights of a server that sleeps lie in host memory, in blocks rounded up to powers of two, which
    stay there after its wake.
    """
    lines = (line.split(":", 1) for line in MEMINFO.read_text().splitlines() if ":" in line)
    told = {name: int(value.split()[0]) << 10 for name, value in lines}
    for unknown in (each.id for each in asleep if not _weights_bytes(each)):
        return f"nobody knows how much memory the weights of release {unknown} take"
    need = 2 * sum(map(_weights_bytes, asleep))
    free = told["MemAvailable"] - FREE_SHARE * told["MemTotal"]
    if need <= free:
        return ""
    return (
        f"{need >> 30} GiB of host memory may be needed for the weights of releases that sleep, and"
        f" {max(0, int(free)) >> 30} GiB are free beyond the {FREE_SHARE:.0%} that must stay free"
    )


def _weights_bytes(release: Release) -> int:
    """Of all its GPUs; 0 where nobody predicted it."""
    of_one = int(release.predicted_fit.get("weights_bytes") or 0)
    return of_one * math.prod(release.number(flag) or 1 for flag in RANKS)


def _front(paths: ServicePaths, release: Release) -> list[str]:
    return [(paths.release(release.id) / file).read_text(encoding="utf-8") for file in FRONT_FILES]


class Turns:
    """The two servers of one switch, and what its journal knows of them."""

    def __init__(
        self, service: Service, log: Journal, old: Release, new: Release, start_s: float, must: bool = True
    ) -> None:
        self.service, self.log, self.must = service, log, must
        self.releases = {OLD: old, NEW: new}
        members = (self._member(OLD), self._member(NEW))
        link = awake(service.paths.name)
        self.two = TwoServers(*members, link, self._room, self._note, _limits(old, new, start_s))

    def reach(self, goal: pair.Goal) -> list[Act]:
        return self.two.reach(goal)

    def keep_asleep(self, seconds: float) -> bool:
        """After the commit: whether the old release sleeps on for so long, which is written down.

        It must sleep already. A way back would first put the new one to sleep, so host memory needs room.
        """
        problem = _short_of_memory(self.releases[NEW]) if self._sleeps(OLD) else "it does not sleep"
        release = None if problem else self.releases[OLD].id
        self._write(SLEEPS_ON, "note", release=release, until=time.time() + seconds, because=problem)
        return not problem

    def keep_canary(self, who: str) -> None:
        """Write down what this server answers now. Raises ClientError where it does not answer."""
        self._write(CANARIES, "done", release=self.releases[who].id, answers=self._answers(who, ""))

    def know_canary(self, who: str) -> None:
        """The same, unless it was asked before its first sleep."""
        if self._kept(CANARIES, release=self.releases[who].id) is None:
            self.keep_canary(who)

    def _member(self, who: str) -> Member:
        release = self.releases[who]
        assert release.sockets is not None
        unit = self.service.paths.server_unit(release.id)
        return Member(unit, release.sockets, lambda api, key: self._is_right(who, key))

    def _is_right(self, who: str, key: str) -> bool:
        """Whether it answers as before. One that nobody had asked must answer, and that is written down."""
        try:
            answers = self._answers(who, key)
        except ClientError as error:
            self.service.say(f"canary of the {who} release: {error}")
            return False
        kept = self._kept(CANARIES, release=self.releases[who].id)
        if kept is None:
            self._write(CANARIES, "done", release=self.releases[who].id, answers=answers)
        return kept is None or kept.get("answers") == answers

    def _answers(self, who: str, key: str) -> str:
        client = self.service.client(self.releases[who], CANARY_S, {PASS: key} if key else None)
        client.negotiate(CANARY_S)
        texts = [client.stream(each, CANARY_TOKENS, CANARY_S, require_usage=False).text for each in QUESTIONS]
        return hashlib.sha256("\0".join(texts).encode()).hexdigest()

    def _note(self, act: Act) -> None:
        """Ahead of each act; a sleep with the memory that its server has, which a wake needs again."""
        used = {"used_mib": gpu_memory.used_mib(self.releases[act.who].gpus)} if act.do == pair.SLEEP else {}
        self._write(ACTS, "note", act=act.do, who=act.who, **used)

    def _write(self, step: str, state: str, **fields: object) -> None:
        (self.log.write if self.must else self.log.try_write)(step, state, **fields)

    def _kept(self, step: str, **fields: object) -> dict[str, object] | None:
        """The newest entry of this switch with these fields."""
        for entry in reversed(self.log.entries()):
            if entry["step"] == step and all(entry.get(key) == value for key, value in fields.items()):
                return entry
        return None

    def _room(self, who: str) -> bool:
        """Whether each card has room: for a wake as much as the server gave back, for a start what vLLM asks
        for. Where no card is known, as on a CPU, there is.
        """
        release = self.releases[who]
        try:
            rows = [row for row in inspect_gpus.gpus() if _is_of(release, row)]
        except nvidia.NoAnswer:
            return not nvidia.there()
        slept = self._kept(ACTS, act=pair.SLEEP, who=who) if self._sleeps(who) else None
        return all(_has_room(row, release, slept.get("used_mib") if slept else None) for row in rows)

    def _sleeps(self, who: str) -> bool:
        return self.service.asleep(self.releases[who].id)


def _limits(old: Release, new: Release, start_s: float) -> Limits:
    """Requests have as long to end before a sleep as before a stop."""
    longest_s = max(old.stop_limit_s, new.stop_limit_s)
    return Limits(start_s=start_s, drain_s=max(Limits.drain_s, longest_s), stop_s=longest_s)


def _is_of(release: Release, row: inspect_gpus.Gpu) -> bool:
    if release.gpus is None:
        return row.instance is None
    return any(gpu_memory.called(row, name) for name in release.gpus)


def _has_room(row: inspect_gpus.Gpu, release: Release, slept_with: object) -> bool:
    total, used = row.memory_mib, row.used_mib
    if total is None or used is None:
        return False
    start = math.ceil(total * _share(release))
    return total - used >= (slept_with - SPARE_MIB if isinstance(slept_with, int) else start)


def _share(release: Release) -> float:
    words = release.argv
    flag = "--gpu-memory-utilization"
    return float(words[words.index(flag) + 1]) if flag in words[:-1] else DEFAULT_SHARE


def back(service: Service, log: Journal, old_id: str, new_id: str, start_s: float) -> None:
    """Have the old release serve again, awake in a second where it sleeps. Never fails: whatever is wrong,
    both servers are stopped, but an old one that serves, and whoever called starts the old release plainly.
    """
    if not any(entry["step"] == "activate" and entry.get("standby") for entry in log.entries()):
        return
    try:
        old, new = releases.load(service.paths, old_id), releases.load(service.paths, new_id)
        Turns(service, log, old, new, start_s, must=False).reach(pair.BACK)
    except Exception as problem:
        if systemd.stopping():
            return
        service.say(
            f"{old_id} could not be woken, so it is started: {str(problem) or type(problem).__name__}"
        )
        _stop(service, new_id)
        if not _serves(service, old_id):
            _stop(service, old_id)


def _serves(service: Service, release_id: str) -> bool:
    try:
        return service.serves(releases.load(service.paths, release_id))
    except (NotReady, systemd.SystemdError, OSError):
        return False


def _stop(service: Service, release_id: str) -> None:
    try:
        service.stop_server(release_id)
    except (systemd.SystemdError, OSError) as problem:
        service.say(f"{release_id} could not be stopped: {problem}")
