"""As how many requests at once saturation is measured."""

from __future__ import annotations

from typing import Any

import pytest
from simulated import NEW, OLD, SimulatedHost

from pyinfra_vllm.on_host.bench import probe
from pyinfra_vllm.on_host.bench.criteria import Criteria
from pyinfra_vllm.on_host.bench.record import Record
from pyinfra_vllm.on_host.server.release import Release
from pyinfra_vllm.on_host.switch import saturation
from pyinfra_vllm.on_host.switch.order import ROLLOUT, TRIAL


def release(*argv: str, kv_tokens: int = 0, max_concurrency: float = 0) -> Release:
    fit = {"kv_tokens": kv_tokens, "max_concurrency": max_concurrency} if kv_tokens else None
    return Release({"argv": ["vllm", "serve", "/model", *argv], "fit": fit})


@pytest.mark.parametrize(
    ("release", "expected"),
    [
        (release(), 64),
        (release("--max-num-seqs", "256"), 64),
        (release("--max-num-seqs", "16"), 16),
        (release("--max-num-seqs=16", "--port", "8000"), 16),
        (release("--max-num-seqs", "16", "--max-num-seqs", "32"), 32),  # argparse takes the last
        (release(kv_tokens=9488, max_concurrency=2.32), 15),  # an RTX 4090 with a 32B model
        (release(kv_tokens=9488, max_concurrency=37), 37),  # a context of 256 tokens shortens the prompts
        (release(kv_tokens=300, max_concurrency=0.1), 1),
        (release("--max-num-seqs", "8", kv_tokens=434_480, max_concurrency=106), 8),
        (Release({"argv": ["vllm"]}), 64),  # staged before its fit was written down
    ],
)
def test_what_a_release_admits(release: Release, expected: int) -> None:
    assert saturation.admitted(release) == expected


@pytest.mark.parametrize("purpose", [ROLLOUT, TRIAL])
@pytest.mark.parametrize(
    ("old", "new", "streams"),
    [
        (None, "32", (1, 8, 64)),  # what the new one makes wait is measured, as its clients would see it
        ("32", None, (1, 8, 32)),
        ("16", "32", (1, 8, 16)),
    ],
)
def test_both_sides_meet_what_the_release_that_serves_admits(
    host: SimulatedHost,
    monkeypatch: pytest.MonkeyPatch,
    purpose: str,
    old: str | None,
    new: str | None,
    streams: tuple[int, ...],
) -> None:
    measured = seen_by_the_probe(host, monkeypatch)
    host.stage(OLD, argv=capped(OLD, old))
    host.install(OLD)
    host.stage(NEW, argv=capped(NEW, new))
    assert host.switch(purpose=purpose) == {ROLLOUT: "committed", TRIAL: "tried"}[purpose]
    assert measured == [(OLD, streams), (NEW, streams)]


@pytest.mark.parametrize("down", [False, True])
def test_where_nothing_serves_it_is_what_the_new_one_admits(
    host: SimulatedHost, monkeypatch: pytest.MonkeyPatch, down: bool
) -> None:
    """As its limits would else be asked of requests that wait, and nothing would serve."""
    measured = seen_by_the_probe(host, monkeypatch)
    if down:
        host.install(OLD)
        host.running = None
    host.stage(NEW, argv=capped(NEW, "32"))
    assert host.switch() == "committed"
    assert measured == [(NEW, (1, 8, 32))]


def capped(release_id: str, limit: str | None) -> list[str]:
    return ["/bin/sh", release_id, *(["--max-num-seqs", limit] if limit else [])]


def seen_by_the_probe(
    host: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[str | None, tuple[int, ...]]]:
    """Whom the probe measures, at how many requests at once."""
    seen: list[tuple[str | None, tuple[int, ...]]] = []
    measure = probe.measure

    def watched(client: Any, settings: Any, **how: Any) -> Record:
        seen.append((host.running, settings.concurrency))
        return measure(client, settings, **how)

    monkeypatch.setattr(probe, "measure", watched)
    return seen


@pytest.mark.parametrize(
    ("declared", "admitted", "phases"),
    [
        ((1, 8, "max"), 64, (1, 8, 64)),
        ((1, 8, "max"), 500, (1, 8, 64)),
        ((1, 8, "max"), 9, (1, 8, 9)),
        ((1, 8, "max"), 8, (1, 8)),
        ((1, 8, "max"), 3, (1, 8)),  # eight are saturation already
        (("max",), 3, (3,)),
        ((1, 128, "max"), 64, (1, 128)),
        ((1, 8), 64, (1, 8)),
    ],
)
def test_saturation_has_a_phase_of_its_own_where_no_declared_one_reaches_it(
    declared: tuple[Any, ...], admitted: int, phases: tuple[int, ...]
) -> None:
    assert Criteria(concurrency=declared).streams(admitted) == phases
