"""Waves within one run: no wave begins before every host of the earlier ones has a good verdict."""

from __future__ import annotations

from typing import Any

import pytest
from test_release import make

from pyinfra_vllm.config import Rollout, Runtime, Service
from pyinfra_vllm.operations._rollout import COMMITTED, DEFERRED, HELD, Outcome, Progress, Wanted


def wanted(host: str, **observed: Any) -> Wanted:
    service = Service(name="chat", model="org/model", runtime=Runtime(version="0.33.0"), port=8000)
    found = {"current": None, "running": None, "rejected": {}, "release": None, **observed}
    return Wanted(host, "/srv/pyinfra-vllm", service, make(), found, "cpu")


def progress(*hosts: str, **settings: Any) -> Progress:
    made = Progress()
    made.settings = Rollout(**settings)
    for host in hosts:
        made.want(wanted(host))
    return made


def end(made: Progress, host: str, status: str) -> None:
    made.record(Outcome(host, "chat", status, ""))


def test_the_canary_is_alone_and_first() -> None:
    made = progress("c", "a", "b")
    assert made.plan("abc") == (("a",), ("b", "c"))
    assert made.obstacle(1) is None
    assert made.obstacle(2) == (HELD, "an earlier wave has no verdict from a")


def test_a_good_canary_opens_the_next_wave() -> None:
    made = progress("a", "b")
    made.plan("ab")
    end(made, "a", COMMITTED)
    assert made.obstacle(2) is None


@pytest.mark.parametrize(
    "status", ["rolled_back", "failed", "refused", "rejected", "restore_failed", "unknown", HELD]
)
def test_a_canary_that_is_not_good_holds_the_rest(status: str) -> None:
    made = progress("a", "b")
    made.plan("ab")
    end(made, "a", status)
    assert made.obstacle(2) == (HELD, "the rollout stopped at a")


def test_failures_up_to_the_limit_do_not_stop() -> None:
    made = progress("a", "b", "c", canary=0, waves=(1,), max_failures=1)
    assert made.plan("abc") == (("a",), ("b", "c"))
    end(made, "a", "rolled_back")
    assert made.obstacle(2) is None


def test_a_deferred_canary_defers_the_rest_without_failing_them() -> None:
    made = progress("a", "b")
    made.plan("ab")
    end(made, "a", DEFERRED)
    assert made.obstacle(2) == (DEFERRED, "an earlier wave was deferred on a")


def test_hosts_that_run_the_release_or_failed_before_are_in_no_wave() -> None:
    made = progress("a", "b", "c")
    release = make().id
    made.want(wanted("a", current=release, running=release))
    assert made.plan({"a", "b"}) == (("b",),)


def test_a_host_whose_process_was_started_from_another_release_needs_a_switch() -> None:
    release = make().id
    assert not wanted("a", current=release, running="other").runs
    assert not wanted("a", current=release, running=None).runs
    assert wanted("a", current=release, running=release).runs


def test_the_plan_is_fixed_once_the_first_wave_began() -> None:
    made = progress("a", "b")
    first = made.plan("ab")
    made.want(wanted("b", current=make().id, running=make().id))
    assert made.plan("a") == first
