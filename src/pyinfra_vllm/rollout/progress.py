"""The state of one run's rollout: each host's target, its wave, and its outcome.

pyinfra runs an operation on all hosts before the next one begins, so the records of `release.staged` are
complete for every host when the first wave asks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pyinfra_vllm.config import Rollout as Settings
from pyinfra_vllm.config import Service
from pyinfra_vllm.inventory import command
from pyinfra_vllm.on_host.gate.verdict import PASS
from pyinfra_vllm.on_host.state.observed import Observed
from pyinfra_vllm.release import Release
from pyinfra_vllm.rollout import waves

COMMITTED, UNCHANGED, DEFERRED, HELD = "committed", "unchanged", "deferred", "held"
TAKEN_BACK = "taken back"
TRIED = "tried"  # and gone back from, whatever the verdict
UNDER_WAY = "under way"  # the run was ended while the host switched: it goes on by itself
GOOD = frozenset({COMMITTED, UNCHANGED})
HARMLESS = GOOD | {DEFERRED, TRIED}
# Outcomes that leave it unknown whether the host serves anything.
AWAY = frozenset({"failed", "restore_failed", "unknown"})


@dataclass(frozen=True)
class Wanted:
    """One service of one host: the release that must run there, and its state when that was staged."""

    host: str
    root: str
    service: Service
    release: Release
    observed: Observed
    gpu: str
    warnings: tuple[str, ...] = ()
    standby: str | None = None  # why it can't be had; "": it can; None: it is not asked for
    trades: Mapping[str, Any] | None = None  # known speeds of kernels on this GPU (trades.py)

    @property
    def runs(self) -> bool:
        """Whether that release is current, was proven, and started the running process."""
        return self.observed.runs(self.release.id)


@dataclass(frozen=True)
class Outcome:
    """Outcome of one service of one host in this run.

    verdict: pass, fail or inconclusive, where its switch or its trial came to one
    """

    host: str
    service: str
    status: str
    message: str
    release: str = ""
    verdict: str = ""

    @property
    def good(self) -> bool:
        """Whether the run may go on and ends well: a trial that did not pass is an answer, no good one."""
        return self.status in HARMLESS and (self.status != TRIED or self.verdict == PASS)


class Progress:
    """Shared by all hosts of one run."""

    def __init__(self) -> None:
        self.settings = Settings()
        self.serving: Mapping[str, Collection[str]] = {}
        self.wanted: dict[tuple[str, str], Wanted] = {}
        self.outcomes: dict[tuple[str, str], Outcome] = {}
        self.going: dict[tuple[str, str], str] = {}  # switches that hosts carry out now -> message about each
        self.foretold: dict[str, list[str]] = {}  # host -> why a run would refuse it, as it is prepared
        self._machines: dict[str, str] = {}  # machine id -> the first of its names
        self._waves: tuple[tuple[str, ...], ...] | None = None
        self._opens: dict[int, float] = {}
        self._reason = ""

    def want(self, item: Wanted) -> None:
        self.wanted[item.host, item.service.name] = item

    def twin(self, host: str, machine: str) -> str:
        """Another name of the inventory for the same machine; empty where the host is the first."""
        first = self._machines.setdefault(machine, host) if machine else host
        return first if first != host else ""

    def foretell(self, host: str, message: str) -> bool:
        """Note why a run would refuse a host; False where that was noted before."""
        known = self.foretold.setdefault(host, [])
        if message in known:
            return False
        known.append(message)
        return True

    def goes_on(self, host: str, service: str) -> None:
        """The host carries out a switch: from now on it ends it by itself, whatever becomes of this run."""
        self.going[host, service] = f"the switch goes on on {host}; `{command('watch')}` follows it"

    def followed(self, host: str, service: str) -> None:
        self.going.pop((host, service), None)

    def under_way(self) -> list[str]:
        """The switches that go on on their hosts and that nobody follows any more, one line each."""
        return [f"{host}: {service}: {text}" for (host, service), text in sorted(self.going.items())]

    def record(self, outcome: Outcome) -> None:
        self.outcomes[outcome.host, outcome.service] = outcome

    def services(self, host: str) -> list[Wanted]:
        return [item for (name, _), item in self.wanted.items() if name == host]

    def plan(self, active: Iterable[str], lost: Iterable[str] = ()) -> tuple[tuple[str, ...], ...]:
        """The waves of the hosts that need a switch and were staged; fixed once the first wave has begun.

        + lost: hosts that pyinfra gave up in this run, for whatever reason
        """
        if self._waves is None:
            alive = set(active)
            needing = {item.host for item in self.wanted.values() if item.host in alive and not item.runs}
            self._waves = self.preview(needing, lost)
        return self._waves

    def preview(self, hosts: Iterable[str], lost: Iterable[str] = ()) -> tuple[tuple[str, ...], ...]:
        candidates = [self._candidate(host) for host in sorted(hosts)]
        return waves.plan(candidates, self.settings, self.serving, self._away(lost))

    def _candidate(self, host: str) -> waves.Candidate:
        items = self.services(host)
        gpu = items[0].gpu if items else ""
        return waves.Candidate(host, gpu, tuple(item.service.name for item in items))

    def obstacle(self, wave: int, lost: Iterable[str] = ()) -> tuple[str, str] | None:
        """Why a wave must not begin: (`held` or `deferred`, reason); None when it may."""
        ended = self._ended(wave - 1)
        stopped = self._stopped(ended)
        if stopped:
            return HELD, stopped
        deferred = sorted(h for h, found in ended.items() if any(o.status == DEFERRED for o in found))
        if deferred:
            return DEFERRED, f"an earlier wave was deferred on {', '.join(deferred)}"
        going = [self._candidate(host) for host in (self._waves or ())[wave - 1]]
        crowded = waves.crowded(going, self.settings, self.serving, self._away(lost))
        return (HELD, crowded) if crowded else None

    def _away(self, lost: Iterable[str]) -> set[str]:
        """Hosts that may serve nothing: never reached, given up before all their services had an outcome, or
        ended in AWAY.
        """
        told = {outcome.host for outcome in self.outcomes.values()} - self._unknown()
        ended = {outcome.host for outcome in self.outcomes.values() if outcome.status in AWAY}
        return (set(lost) - told) | ended

    def _unknown(self) -> set[str]:
        """Hosts with a service that needs a switch and has no outcome. Where another of the host failed, it
        was left alone.
        """
        open_ = {item.host for key, item in self.wanted.items() if key not in self.outcomes and not item.runs}
        return open_ - {outcome.host for outcome in self.outcomes.values() if not outcome.good}

    def stopped(self) -> str:
        """Why this run let no further host switch; empty where nothing stopped it.

        The first reason stays.
        """
        if not self._reason:
            self._reason = self._stopped(self._ended(len(self._waves or ())))
        return self._reason

    def switched(self, host: str) -> list[Wanted]:
        """The services of the host that this run brought to a new release, the newest first."""
        found = [(item, self.outcomes.get((host, item.service.name))) for item in self.services(host)]
        return [item for item, outcome in reversed(found) if outcome and outcome.status == COMMITTED]

    def donors(self, item: Wanted) -> list[str]:
        """The other hosts that serve this release on such a GPU, as this run knows: each has compiled it."""
        good = {key for key, outcome in self.outcomes.items() if outcome.status in GOOD}
        return [
            other.host
            for key, other in self.wanted.items()
            if key in good
            and other.host != item.host
            and (other.release.id, other.gpu, other.root) == (item.release.id, item.gpu, item.root)
        ]

    def opens(self, wave: int, now: float) -> float:
        """When a wave may begin: its pause counts from when its first host asked, once for all of them."""
        return self._opens.setdefault(wave, now + (self.settings.pause_s if wave > 1 else 0.0))

    def _ended(self, waves: int) -> dict[str, list[Outcome]]:
        """Outcomes on each host of the first so many waves; none where it has not ended, or was lost."""
        hosts = [host for wave in (self._waves or ())[:waves] for host in wave]
        return {host: [o for o in self.outcomes.values() if o.host == host] for host in hosts}

    def _stopped(self, ended: dict[str, list[Outcome]]) -> str:
        failed = sorted(h for h, found in ended.items() if any(o.status not in HARMLESS for o in found))
        if len(failed) > self.settings.max_failures:
            held = {o.host: o.message for o in self.outcomes.values() if o.status == HELD}
            causes = sorted(set(failed) - set(held))
            if not causes and held[failed[0]]:
                return held[failed[0]]
            return f"the rollout stopped at {', '.join(causes or failed)}"
        unknown = self._unknown()
        lost = sorted(h for h, found in ended.items() if not found or h in unknown)
        return f"an earlier wave has no verdict from {', '.join(lost)}" if lost else ""


PROGRESS = Progress()
