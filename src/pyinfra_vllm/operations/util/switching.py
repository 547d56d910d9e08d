"""The control machine's part of one switch: check that it may begin, start it, follow it, report its end."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from pyinfra import logger
from pyinfra.api import Host

from pyinfra_vllm import answers
from pyinfra_vllm.answers import End, Entry, News, T
from pyinfra_vllm.errors import HostError
from pyinfra_vllm.on_host.state.observed import Observed
from pyinfra_vllm.on_host.state.transactions import RESTORE_FAILED
from pyinfra_vllm.on_host.switch.order import ROLLBACK, ROLLOUT, Order
from pyinfra_vllm.operations.util.remote import LOST, Remote, never_ask, program
from pyinfra_vllm.operations.util.screen import SCREEN, Working
from pyinfra_vllm.operations.util.unit import ANSWER_S, POLL_S, RUN_DIRECTORY, NoContact, through_outages
from pyinfra_vllm.printable import printable
from pyinfra_vllm.rollout import story
from pyinfra_vllm.rollout.orders import Prepared
from pyinfra_vllm.rollout.progress import DEFERRED, PROGRESS, UNCHANGED, Outcome

UNIT = "pyinfra-vllm-switch"
PATIENCE = 5  # looks
RETRY = "retry_rejected"
BY_ITSELF = "the host finishes it by itself and keeps what is no worse; the next run reports how it ended."


class Switching:
    """One order on one host. The host decides; this only starts and follows it."""

    def __init__(self, host: Host, root: str, prepared: Prepared) -> None:
        self.host = host
        self.order, self.prompts = prepared.order, prepared.prompts
        self.deferred = prepared.deferred
        self.remote = Remote(host)
        self.root = root
        self.program = program(root)
        self.unit = f"{UNIT}-{self.order.service}"

    def run(self) -> Outcome:
        """Carry the order out, unless the window defers it.

        Every end is an Outcome; no failure of a host raises.
        """
        try:
            observed = self._observe()
            before = self._under_way(observed)
            if before is not None:
                self._say("this switch is under way already: following it")
                return self._follow(before or None)
            if self._done(observed):
                return self.outcome(UNCHANGED, "it runs by now, without this run. Nothing was touched")
            if self.deferred:
                return self.outcome(DEFERRED, self.deferred)
            if self.order.purpose == ROLLBACK and soaks(observed):
                observed = self._end_soak()
            retry = self.order.purpose != ROLLOUT or RETRY in self.order.overrides
            found = hindrance(observed, self.order.release, self.order.criteria, retry=retry)
            return self.outcome(*found) if found else self._follow(self._start(observed))
        except HostError as error:
            return self.outcome("failed", str(error))
        except LOST as error:
            begun = "Nothing was touched unless the switch had begun; then"
            return self.outcome("unknown", f"the connection was lost ({error}). {begun} {BY_ITSELF}")
        except Exception as error:  # over something that this host said: the others go on
            words = f"internal error (bug in pyinfra-vllm): {type(error).__name__}: {error}"
            return self.outcome("unknown", f"{words}. If the switch had begun, {BY_ITSELF}")

    def _under_way(self, observed: Observed) -> str | None:
        """The transaction before this switch ("" where there is none), if the host carries it out now."""
        last = observed.last
        if not under_way(observed, self.order.release) or not last:
            return None
        if last.purpose != self.order.purpose:
            return None
        earlier = [record.tx for record in observed.history[:-1]]
        return earlier[-1] if earlier else ""

    def _done(self, observed: Observed) -> bool:
        """Whether the release that is to serve does by now: another run or the host itself saw to it."""
        serve = self.order.purpose in (ROLLOUT, ROLLBACK)
        return serve and observed.lock is None and observed.runs(self.order.release)

    def _end_soak(self) -> Observed:
        """End the soak of the release that an operator leaves by hand: its outcome has been decided."""
        self._say("ends the soak of the release that is to be left")
        self.remote.run("systemctl", "stop", self.unit)
        self.remote.run(*self.program, "recover", "--wait", str(ANSWER_S), self.order.service)
        return self._observe()

    def _observe(self) -> Observed:
        return answers.only(answers.observed(self._host_program(Any, "status", self.order.service)))

    def _host_program(self, kind: type[T], *words: str) -> T:
        """The answer of the host's program, within a time limit."""
        return self.remote.json(kind, *self.program, *words, timeout_s=ANSWER_S)

    def _start(self, observed: Observed) -> str | None:
        """Hand the order to systemd on the host; returns the transaction that was the newest before."""
        if self.prompts is not None:
            self.remote.write(str(self.order.criteria["quality_prompts"]), self.prompts)
        launch(self.remote, self.root, self.order)
        last = observed.last
        return last.tx if last else None

    def _follow(self, after_tx: str | None) -> Outcome:
        never_ask()
        PROGRESS.goes_on(self.host.name, self.order.service)
        with SCREEN.following(self.host) as show:
            try:
                outcome = self._watch(after_tx, show)
            except NoContact as error:
                outcome = self.outcome("unknown", f"{error}. The switch has begun: {BY_ITSELF}")
        PROGRESS.followed(self.host.name, self.order.service)
        return outcome

    def _watch(self, after_tx: str | None, show: Callable[[Working], None]) -> Outcome:
        step, said = "", ""
        entries = lines = gone = 0
        judged: Entry | None = None
        while True:
            ask = partial(self._news, after_tx, entries, lines)
            news = through_outages(self.host, ask, self._say)
            entries, lines = entries + len(news["entries"]), lines + len(news["progress"])
            for line in story.tell(news["entries"], news["progress"]):
                self._say(line)
            judged = story.verdict_in(news["entries"]) or judged
            if now := news["step"]:
                said = story.how_far(news["progress"]) or (said if now["name"] == step else "")
                step = now["name"]
                what = f"{self.order.service}: {story.STEPS.get(step, step)}"
                show(Working(what, now["elapsed_s"], now["limit_s"], said))
            if news["end"] and not news["active"]:
                return self._ended(news["end"], str(news["tx"]), judged)
            if failing := news.get("failing"):
                words = (
                    f"the old release does not serve again: {failing}. The host goes on trying by itself"
                    f" (`systemctl status pyinfra-vllm-recover@{self.order.service}`), and the next run"
                    " reports how it ended."
                )
                return self.outcome(RESTORE_FAILED, words)
            gone = gone + 1 if not news["active"] else 0
            if gone > PATIENCE:  # between the end of a switch and the start of its recovery neither is active
                return self.outcome("failed", self._no_end(news))
            time.sleep(POLL_S)

    def _news(self, after_tx: str | None, entries: int, lines: int) -> News:
        after = ("--after-tx", after_tx) if after_tx else ()
        words = ("--unit", self.unit, "--entries", str(entries), "--lines", str(lines), *after)
        return self._host_program(News, "follow", self.order.service, *words)

    def _ended(self, end: End, tx: str, judged: Entry | None) -> Outcome:
        reason = story.in_short(end.get("reason", "it gave no reason"), judged)
        outcome = self.outcome(end.get("outcome", "failed"), reason)
        outcome = replace(outcome, verdict=end.get("verdict") or "")
        self._show_last_words(end, tx)
        if problem := acknowledge(self.remote, self.root, self.order.service, tx):
            self._say(problem)
        return outcome

    def _show_last_words(self, end: End, tx: str) -> None:
        """Print the cause of a failed start from its log, and the path of the whole log."""
        words = end.get("log") or []
        told = bool(words) and words[0] in end.get("reason", "")
        for line in words[told:]:
            self._say(f"| {line}")
        if words:
            kept = f"{self.root}/{self.order.service}/evidence/{tx}/service.log"
            self._say(f"the whole log of that start: `less {kept}` on {self.host.name}")

    def _no_end(self, news: News) -> str:
        words = ("journalctl", "--unit", self.unit, "--lines", "20", "--output", "cat", "--no-pager")
        said = self.remote.run(*words).strip()
        if news["tx"] is None:
            return f"the switch did not begin, so nothing was touched. Its last words: {said}"
        return (
            "the switch ended in the middle and its recovery could not finish it. Run the same command"
            f" again, or on the host `python3 {self.root}/bin/on-host.pyz --root {self.root} recover"
            f" {self.order.service}`. Its last words: {said}"
        )

    def outcome(self, status: str, message: str) -> Outcome:
        self._say(f"{status}: {message}")
        return Outcome(self.host.name, self.order.service, status, message, self.order.release)

    def _say(self, text: str) -> None:
        for line in SCREEN.lines(f"{self.host.print_prefix}{self.order.service}: ", printable(text)):
            logger.info(line)


def hindrance(
    observed: Observed, release_id: str, criteria: Mapping[str, Any], *, retry: bool
) -> tuple[str, str] | None:
    """Why a switch to a release must not begin: (`refused` or `rejected`, reason); None where it may.

    + criteria: of the gate that would judge it
    + retry: whether a rejected release may be tried again
    """
    held = observed.lock
    if held is not None:
        return (
            "refused",
            f"{held.holder or 'someone'} has held it since {held.since or 'an unknown time'} for"
            f" {held.purpose or 'an unknown purpose'}. Nothing was touched; try again when it has"
            " ended.",
        )
    rejected = observed.rejection(release_id, criteria)
    if rejected and not retry:
        return (
            "rejected",
            f"release {release_id} was found worse at {rejected.at} ({rejected.reason}) and is not"
            f" tried again. Change the declaration or its gate, or pass --data {RETRY}=true.",
        )
    return None


def under_way(observed: Observed, release_id: str) -> bool:
    """Whether a live process on the host switches to that release at this moment."""
    last = observed.last
    return bool(observed.lock and last and not last.ended and last.new == release_id)


def soaks(observed: Observed) -> bool:
    """Whether a live process watches a release that was committed."""
    last = observed.last
    return bool(observed.lock and last and not last.ended and last.kept)


# The unit removes its order when it ends; where it never began, nobody else would.
_LAUNCH = 'order=$1; shift; "$@" || { status=$?; rm -f -- "$order"; exit "$status"; }'


def launch(remote: Remote, root: str, order: Order) -> None:
    """Start the switch on the host, as a unit of its own whose end systemd watches over."""
    unit = f"{UNIT}-{order.service}"
    path = f"{RUN_DIRECTORY}/{unit}-{secrets.token_hex(4)}.json"
    remote.run("install", "-d", "-m", "700", RUN_DIRECTORY)
    remote.write(path, json.dumps(order.as_dict()))
    remote.run(
        *("sh", "-c", _LAUNCH, "sh", path),
        "systemd-run",
        f"--unit={unit}",
        f"--description=pyinfra-vllm: {order.purpose} of {order.service}",
        "--collect",
        "--quiet",
        "--property=Type=exec",
        "--property=TimeoutStopSec=15",
        "--property=KillMode=mixed",  # a hook that ignores SIGTERM must not hold the recovery up
        "--property=OOMScoreAdjust=-500",
        f"--property=ExecStopPost=-/usr/bin/env rm -f {path}",
        f"--property=OnFailure=pyinfra-vllm-recover@{order.service}.service",
        *("/usr/bin/env", *program(root), "switch", path),
    )


def acknowledge(remote: Remote, root: str, service: str, tx: str) -> str:
    """Note on the host that an operator has seen how the transaction ended; returns what went wrong, empty if
    nothing. It decides no outcome: the next run says the end again.
    """
    try:
        remote.run(*program(root), "reported", service, tx)
    except LOST as error:
        return f"the host could not be told that this was seen ({error}); the next run says it again"
    return ""
