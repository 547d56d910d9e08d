"""Starts a switch on a host, follows it, and shows each step as it happens.

The host does the work and finishes it alone (on_host/switch/transaction.py).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Generator, Mapping
from datetime import UTC, datetime

from pyinfra import host, logger, state
from pyinfra.api import FunctionCommand, Host, QuoteString, State, StringCommand, operation
from pyinfra.api.command import PyinfraCommand

from pyinfra_vllm import release as releases
from pyinfra_vllm import trades
from pyinfra_vllm.config import Overrides, Rollout
from pyinfra_vllm.errors import HostError
from pyinfra_vllm.facts.service import Service, Services
from pyinfra_vllm.facts.told import asked, fact
from pyinfra_vllm.on_host.state.observed import Observed
from pyinfra_vllm.on_host.switch.order import ROLLBACK
from pyinfra_vllm.operations.util import compiled, diff, summary
from pyinfra_vllm.operations.util.refuse import alone, foretell, refuse
from pyinfra_vllm.operations.util.remote import Remote
from pyinfra_vllm.operations.util.switching import Switching, acknowledge, hindrance, under_way
from pyinfra_vllm.rollout import orders
from pyinfra_vllm.rollout.opening import explain, never
from pyinfra_vllm.rollout.orders import Prepared
from pyinfra_vllm.rollout.progress import (
    COMMITTED,
    HARMLESS,
    HELD,
    PROGRESS,
    TAKEN_BACK,
    UNCHANGED,
    Outcome,
    Wanted,
)
from pyinfra_vllm.rollout.story import ending
from pyinfra_vllm.tuning import standby

ROLLBACK_ALL = "rollback_all"
IDEMPOTENT_NOTICE = "A switch restarts a service; a host that runs the declared release is left alone."


# `_set_in_op=False`: the callback asks facts and runs commands itself, as pyinfra's own `python.call` does.
@operation(is_idempotent=False, idempotent_notice=IDEMPOTENT_NOTICE, _set_in_op=False)
@alone
def wave(
    number: int, rollout: Rollout, serving: Mapping[str, Collection[str]], overrides: Overrides
) -> Generator[PyinfraCommand, None, None]:
    """
    Switch the hosts of one wave to their staged releases, each inside its window, and go back where worse.

    + number: 1 is the canary
    + rollout: canary, waves, pauses and how many failures stop the rest
    + serving: every service, and all hosts that declare it
    + overrides: the operator's overrides of this run

    **Example:**

    .. code:: python

        switch.wave(
            name="Wave 1",
            number=1,
            rollout=declared.rollout,
            serving=declared.serving,
            overrides=declared.overrides,
        )
    """
    summary.install(state)
    PROGRESS.settings, PROGRESS.serving = rollout, serving
    lost = [failed.name for failed in state.failed_hosts]
    needing = {item.host for item in PROGRESS.wanted.values() if not item.runs}
    planned = PROGRESS.plan(_active(), lost) if state.is_executing else PROGRESS.preview(needing, lost)
    if number == 1:
        _record_unchanged()
        for item in PROGRESS.services(host.name):
            yield from _tell_unseen(item.root, item.observed)
            yield from _mend_front(item)
    if number > len(planned) or host.name not in planned[number - 1]:
        host.noop(f"nothing to switch here in wave {number}")
        return
    if overrides.trial and number > 1:
        host.noop("a trial is the canary's alone: to try it elsewhere, name the hosts with --limit")
        return
    if not state.is_executing:
        _foretell(f"wave {number} of {len(planned)}", overrides)
    obstacle = PROGRESS.obstacle(number, lost) if state.is_executing else None
    if obstacle:
        yield from _stop(*obstacle)
        return
    yield FunctionCommand(switch_host, (number, overrides), {})


def _foretell(which: str, overrides: Overrides) -> None:
    """Tell what the wave would switch on this host, and what would stop that."""
    for item in _todo(host):
        logger.info(f"{host.print_prefix}{which}: {preview(item, overrides)}")
        criteria = item.service.gate.criteria().as_dict()
        retry = overrides.retry_rejected or overrides.trial
        found = hindrance(item.observed, item.release.id, criteria, retry=retry)
        if found and not under_way(item.observed, item.release.id):
            foretell(f"{item.service.name}: {found[1]}")
        elif why := _never(item, overrides):
            foretell(f"{item.service.name}: {why}")
        if state.config.DIFF:
            diff.show(host, item)


@operation(is_idempotent=False, idempotent_notice=IDEMPOTENT_NOTICE, _set_in_op=False)
@alone
def taken_back(number: int, overrides: Overrides) -> Generator[PyinfraCommand, None, None]:
    """
    Where the rollout stopped, roll the hosts of one wave back to their releases before this run.

    A wave at a time, so that no more hosts of a service are away together than when they switched.

    + number: the wave
    + overrides: the operator's overrides of this run

    **Example:**

    .. code:: python

        switch.taken_back(name="Wave 2, back if the rollout stopped", number=2, overrides=declared.overrides)
    """
    planned = PROGRESS.plan(_active()) if state.is_executing else ()
    reason = PROGRESS.stopped()
    if not reason or number > len(planned) or host.name not in planned[number - 1]:
        host.noop(f"nothing to take back of wave {number}")
        return
    yield FunctionCommand(take_back, (reason, overrides), {})


@operation(is_idempotent=False, idempotent_notice=IDEMPOTENT_NOTICE, _set_in_op=False)
@alone
def can_go_back(root: str, service: str | None = None) -> Generator[PyinfraCommand, None, None]:
    """
    Fail a host that has nothing to roll back: a name that no service has must not look like success.

    + root: where pyinfra-vllm keeps its files on the host
    + service: the service's name; left out: any

    **Example:**

    .. code:: python

        switch.can_go_back(name="Find what to roll back", root="/srv/pyinfra-vllm", service="chat")
    """
    found = asked(host, Services, root=root)
    if found and service in (None, *found):
        host.noop(f"it has {service or ', '.join(found)}")
        return
    wanted = f"service {service}" if service else "service"
    yield refuse(
        f"there is no {wanted} below {root}; it has {', '.join(found) or 'none'}. Nothing was touched."
    )


def services(root: str) -> list[str]:
    """The services that rollback.py is about; none where it can't tell, which `can_go_back` says."""
    try:
        return asked(host, Services, root=root)
    except HostError:
        return []


@operation(is_idempotent=False, idempotent_notice=IDEMPOTENT_NOTICE, _set_in_op=False)
@alone
def back(
    root: str, service: str, overrides: Overrides, release: str | None = None, ready_timeout_s: float = 1800.0
) -> Generator[PyinfraCommand, None, None]:
    """
    Go back to a service's previous release, or to a named one. No window; the gate is the generation check.

    + root: where pyinfra-vllm keeps its files on the host
    + service: the service's name
    + overrides: operator and reason, for the record
    + release: the id of a staged release; left out: the previous one
    + ready_timeout_s: seconds until it must generate tokens

    **Example:**

    .. code:: python

        switch.back(name="Roll back chat", root="/srv/pyinfra-vllm", service="chat", overrides=overrides)
    """
    summary.install(state)
    observed = fact(host, Service, root=root, service=service)
    yield from _tell_unseen(root, observed)
    target = release or observed.previous
    if target is None:
        yield refuse(f"{service} has no previous release to go back to. Nothing was touched.")
        return
    if release is None and _was_left(observed, target):
        yield from _has_gone_back(observed, target)
        return
    if target not in observed.staged:
        staged = ", ".join(observed.staged) or "none"
        yield refuse(f"{service} has no release {target}; staged are {staged}. Nothing was touched.")
        return
    if observed.runs(target):
        _nothing_to_do(service, target, f"it runs release {target}")
        return
    if not state.is_executing:
        logger.info(f"{host.print_prefix}{service}: release {target} would replace {observed.current}")
    prepared = orders.rollback(service, target, overrides, overrides.reason or "", ready_timeout_s)
    yield FunctionCommand(carry_out, (root, prepared), {})


def _nothing_to_do(service: str, release: str, why: str) -> None:
    """For the table at the end: pyinfra shows the words of a noop with `-v` alone."""
    host.noop(f"{service}: {why}")
    PROGRESS.record(Outcome(host.name, service, UNCHANGED, why, release))
    if not state.is_executing:
        logger.info(f"{host.print_prefix}{service}: {why}")


def _was_left(observed: Observed, release: str) -> bool:
    """Whether the service's last change was to leave this release: by hand, or because its soak failed.

    One that the gate alone rejected served before and was not left so: an operator may go back to it.
    """
    for last in reversed(observed.history):
        if last.outcome == COMMITTED:
            return last.purpose == ROLLBACK and last.old == release
        if last.outcome == "rolled_back" and last.kept:
            return last.new == release
    return False


def _has_gone_back(observed: Observed, left: str) -> Generator[PyinfraCommand, None, None]:
    """The same command, given twice, must not return to the release that the first one left."""
    rejected = observed.rejected.get(left)
    reason = f" ({rejected.reason.split('; ')[0]})" if rejected else ""
    why = f"the previous release {left} is the one that was left{reason}"
    if observed.current and observed.runs(observed.current):
        text = f"it has gone back already: it runs release {observed.current}; {why}"
        _nothing_to_do(observed.service, observed.current, text)
        return
    yield refuse(
        f"{observed.service}: {why}; name what it is to go back to with `--data release=ID`, one of"
        f" {', '.join(observed.staged)}. Nothing was touched."
    )


def _tell_unseen(root: str, observed: Observed) -> Generator[PyinfraCommand, None, None]:
    """Reports, once, the end of a switch whose operator was gone."""
    last = observed.last
    if last and last.outcome and not last.reported:
        text = f"{host.print_prefix}{observed.service}: since the last run: {ending(last)}"
        if state.is_executing:
            yield FunctionCommand(report, (root, observed.service, last.tx, text), {})
        else:
            logger.info(text)


def _mend_front(item: Wanted) -> Generator[PyinfraCommand, None, None]:
    """Also where nothing is to be switched: the release that runs is right, and nobody is led to it."""
    if not item.observed.front_lost:
        return
    if not state.is_executing:
        logger.info(f"{host.print_prefix}{item.service.name}: its front leads to no server; to be mended")
    program = f"{item.root}/bin/on-host.pyz"
    yield StringCommand(
        "python3 -I", QuoteString(program), "--root", QuoteString(item.root), "recover", item.service.name
    )


def report(state: State, host: Host, root: str, service: str, tx: str, text: str) -> bool:
    logger.info(text)
    if problem := acknowledge(Remote(host), root, service, tx):
        logger.info(f"{host.print_prefix}{service}: {problem}")
    return True


def carry_out(state: State, host: Host, root: str, prepared: Prepared) -> bool:
    outcome = Switching(host, root, prepared).run()
    PROGRESS.record(outcome)
    return outcome.status in HARMLESS


def preview(item: Wanted, overrides: Overrides) -> str:
    """One line for a dry run: which release replaces which, what changes, whether it may begin now."""
    old, new, name = item.observed.release, item.release, item.service.name
    rejected = item.observed.rejection(new.id, item.service.gate.criteria().as_dict())
    if rejected and not (overrides.retry_rejected or overrides.trial):
        return f"{name}: release {new.id} was rejected and would not be tried again"
    replaces = f"replace release {old['id']}" if old else "be the first release"
    if overrides.trial:
        replaces = f"be tried, and release {old['id']} serve again" if old else "not be tried: nothing serves"
    checkpoint = releases.difference_of_checkpoint(old, new) if old else ""
    changed = f"; checkpoint: {checkpoint}" if checkpoint else ""
    changes = releases.difference(old["argv"][1:], new.argv[1:]) if old else []
    changed += f"; command line: {', '.join(changes)}" if changes else ""
    variables = releases.difference_of_environment(old.get("environment", {}), new.environment) if old else []
    changed += f"; environment: {', '.join(variables)}" if variables else ""
    secrets = releases.difference_of_secrets(old, new)
    changed += f"; secrets: {', '.join(secrets)}" if secrets else ""
    kernel = old.get("kernel") if old else None
    trade = trades.foreseen(item.trades, kernel, new.kernel, item.service.gate.criteria())
    changed += f"; known trade {trade}" if trade else ""
    sleeps = standby.told(item.standby)
    changed += f"; standby: {sleeps}" if sleeps else ""
    when = explain(item.service, overrides, item.observed.history)
    return f"{name}: release {new.id} would {replaces}{changed}; {when}"


def _active() -> list[str]:
    return [active.name for active in state.inventory.get_active_hosts()]


def _todo(host: Host) -> list[Wanted]:
    return [item for item in PROGRESS.services(host.name) if not item.runs]


def _record_unchanged() -> None:
    for item in PROGRESS.services(host.name):
        if item.runs:
            PROGRESS.record(
                Outcome(host.name, item.service.name, UNCHANGED, "runs the declared release", item.release.id)
            )


def _stop(status: str, reason: str) -> Generator[PyinfraCommand, None, None]:
    for item in _todo(host):
        PROGRESS.record(Outcome(host.name, item.service.name, status, reason, item.release.id))
    if status == HELD:
        yield refuse(f"held: {reason}. This host was not touched; it serves what it served before.")
    else:
        host.noop(f"{status}: {reason}")


def switch_host(state: State, host: Host, wave: int, overrides: Overrides) -> bool:
    """Switch every service of the host that needs it, one after the other; stop at the first failure."""
    pause_s = PROGRESS.opens(wave, time.monotonic()) - time.monotonic()
    if pause_s > 0:
        logger.info(f"{host.print_prefix}the wave begins in {pause_s:.0f} s")
        time.sleep(pause_s)
    for item in _todo(host):
        outcome = _switch(host, item, overrides)
        PROGRESS.record(outcome)
        if not outcome.good:
            if PROGRESS.settings.on_failure == ROLLBACK_ALL:
                # pyinfra asks nothing more of a host that failed: what else it switched goes back now or
                # never
                take_back(state, host, f"{item.service.name} failed on the same host", overrides)
            return False
    return True


def take_back(state: State, host: Host, reason: str, overrides: Overrides) -> bool:
    """Bring every service that this run switched on the host back to the release that it had before."""
    outcomes = [_take_back(host, item, reason, overrides) for item in PROGRESS.switched(host.name)]
    return all(outcome.status in HARMLESS | {TAKEN_BACK} for outcome in outcomes)


def _take_back(host: Host, item: Wanted, reason: str, overrides: Overrides) -> Outcome:
    service, before = item.service, item.observed.current
    if before is None:
        message = f"stays, though {reason}: it is the first release here, with nothing to go back to"
        outcome = Outcome(host.name, service.name, COMMITTED, message, item.release.id)
    else:
        prepared = orders.rollback(
            service.name, before, overrides, f"rollback_all: {reason}", service.ready_timeout_s
        )
        outcome = Switching(host, item.root, prepared).run()
        if outcome.status == COMMITTED:
            outcome = dataclasses.replace(outcome, status=TAKEN_BACK, message=reason)
    PROGRESS.record(outcome)
    return outcome


def _never(item: Wanted, overrides: Overrides) -> str:
    """Why no window will ever let it begin, by the host's own record; empty also where it is under way."""
    if under_way(item.observed, item.release.id):
        return ""
    return never(item.service, overrides, datetime.now(UTC), item.observed.history)


def _switch(host: Host, item: Wanted, overrides: Overrides) -> Outcome:
    service, release, history = item.service, item.release.id, item.observed.history
    if why := _never(item, overrides):
        return Outcome(host.name, service.name, "refused", f"everything is staged; {why}", release)
    try:
        make = orders.trial if overrides.trial else orders.rollout
        prepared = make(item.root, service, release, overrides, history)
    except HostError as error:
        return Outcome(host.name, service.name, "refused", str(error), release)
    if not prepared.deferred:
        compiled.bring(host, item)
    return Switching(host, item.root, prepared).run()
