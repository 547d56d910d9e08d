"""Keeps a fixed number of requests under way until a list of prompts is done: one closed-loop round.

Times each request and decides nothing. Ends at its deadline whatever the server does.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..openai.client import Client, ClientError
from ..openai.stream import Events, read_stream
from .prompts import Prompt

ABORT_GRACE_S = 2.0


@dataclass
class Round:
    """The result of one round.

    `unfinished` requests were under way at the deadline and say nothing about the server.
    """

    duration_s: float
    requests: list[dict[str, Any]] = field(default_factory=list)
    unfinished: list[dict[str, Any]] = field(default_factory=list)
    complete: bool = True

    @property
    def answered(self) -> list[dict[str, Any]]:
        return [request for request in self.requests if request["ok"]]

    @property
    def output_tokens(self) -> int:
        return sum(int(request["output_tokens"]) for request in self.answered)


@dataclass(frozen=True)
class Limits:
    """When a request or a round is over, whatever the server does.

    deadline: on time.perf_counter()'s clock
    request_s: one request may take this long; longer is an error of the server's
    """

    deadline: float
    request_s: float


class _Workers:
    """The workers of one round and what they share."""

    def __init__(
        self, client: Client, prompts: Sequence[Prompt], output_tokens: int, salt: str, limits: Limits
    ):
        self.client = client
        self.queue = deque(prompts)
        self.output_tokens = output_tokens
        self.salt = salt
        self.limits = limits
        self.began = time.perf_counter()
        self.received: list[tuple[dict[str, Any], Events]] = []
        self.failed: list[dict[str, Any]] = []
        self.unfinished: list[dict[str, Any]] = []
        self.under_way: dict[str, float] = {}

    def work(self) -> None:
        while time.perf_counter() < self.limits.deadline:
            try:
                prompt = self.queue.popleft()
            except IndexError:
                return
            self.one(prompt)

    def one(self, prompt: Prompt) -> None:
        start = time.perf_counter()
        self.under_way[prompt.name] = start
        allowed = min(self.limits.request_s, self.limits.deadline - start)
        result: dict[str, Any] = {"prompt": prompt.name, "at_s": round(start - self.began, 4)}
        salt = f"{self.salt}-{prompt.name}"
        try:
            self.received.append((result, self.client.events(prompt.text, self.output_tokens, allowed, salt)))
        except ClientError as error:
            late = time.perf_counter() >= self.limits.deadline - 0.001
            if late and allowed < self.limits.request_s:
                self.unfinished.append({**result, "waited_s": time.perf_counter() - start})
            else:
                self.failed.append(_failed(result, error))
        finally:
            self.under_way.pop(prompt.name, None)

    def results(self) -> list[dict[str, Any]]:
        """Every request that ended.

        Answers are read only now: between requests, reading would hold the others up.
        """
        found = [*self.failed, *(_read(result, events) for result, events in list(self.received))]
        return sorted(found, key=lambda result: str(result["prompt"]))


def _read(result: dict[str, Any], events: Events) -> dict[str, Any]:
    try:
        answer = read_stream(events, require_usage=True)
    except ClientError as error:
        return _failed(result, error)
    return {
        **result,
        "ok": True,
        "ttft_s": round(answer.ttft_s, 6),
        "e2e_s": round(answer.e2e_s, 6),
        "input_tokens": answer.input_tokens,
        "output_tokens": answer.output_tokens,
    }


def _failed(result: dict[str, Any], error: ClientError) -> dict[str, Any]:
    return {**result, "ok": False, "kind": error.kind, "error": str(error)}


def run(
    client: Client, prompts: Sequence[Prompt], concurrency: int, output_tokens: int, salt: str, limits: Limits
) -> Round:
    """Send all prompts, `concurrency` at a time, and wait until the last is answered or the
    deadline passes.
    """
    workers = _Workers(client, prompts, output_tokens, salt, limits)
    threads = [
        threading.Thread(target=workers.work, daemon=True) for _ in range(min(concurrency, len(prompts)))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, limits.deadline - time.perf_counter()) + ABORT_GRACE_S / 2)
    duration_s = time.perf_counter() - workers.began
    if any(thread.is_alive() for thread in threads):
        client.abort()
        for thread in threads:
            thread.join(ABORT_GRACE_S)
    stuck = [
        {"prompt": name, "waited_s": time.perf_counter() - at} for name, at in list(workers.under_way.items())
    ]
    unfinished = workers.unfinished + stuck
    return Round(
        duration_s=duration_s,
        requests=workers.results(),
        unfinished=unfinished,
        complete=not unfinished and not workers.queue,
    )
