"""Keeps a fixed number of requests under way until a list of prompts is done: one closed-loop round.

Times each request and decides nothing. Ends at its deadline whatever the server does.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from ..openai.client import Client, ClientError
from ..openai.stream import Events, read_stream
from .prompts import Prompt
from .record import Request

ABORT_GRACE_S = 2.0


@dataclass(frozen=True)
class Unfinished:
    """A request that was under way at the deadline: it says nothing about the server."""

    prompt: str
    waited_s: float


@dataclass(frozen=True)
class Round:
    """The result of one round."""

    duration_s: float
    requests: Sequence[Request]
    unfinished: Sequence[Unfinished]
    complete: bool

    @property
    def answered(self) -> list[Request]:
        return [request for request in self.requests if request.ok]

    @property
    def output_tokens(self) -> int:
        return sum(request.output_tokens for request in self.answered)


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
        self.received: list[tuple[str, float, Events]] = []
        self.failed: list[Request] = []
        self.unfinished: list[Unfinished] = []
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
        name, at_s = prompt.name, round(start - self.began, 4)
        salt = f"{self.salt}-{name}"
        try:
            events = self.client.events(prompt.text, self.output_tokens, allowed, salt)
            self.received.append((name, at_s, events))
        except ClientError as error:
            late = time.perf_counter() >= self.limits.deadline - 0.001
            if late and allowed < self.limits.request_s:
                self.unfinished.append(Unfinished(name, time.perf_counter() - start))
            else:
                self.failed.append(failed(name, error, at_s))
        finally:
            self.under_way.pop(name, None)

    def results(self) -> list[Request]:
        """Every request that ended. Answers are parsed here: earlier, that would delay other requests."""
        found = [*self.failed, *(_read(*one) for one in list(self.received))]
        return sorted(found, key=lambda request: request.prompt)


def _read(name: str, at_s: float, events: Events) -> Request:
    try:
        answer = read_stream(events, require_usage=True)
    except ClientError as error:
        return failed(name, error, at_s)
    return Request(
        name,
        ok=True,
        ttft_s=round(answer.ttft_s, 6),
        e2e_s=round(answer.e2e_s, 6),
        input_tokens=answer.input_tokens,
        output_tokens=answer.output_tokens,
        at_s=at_s,
    )


def failed(name: str, error: ClientError, at_s: float | None = None) -> Request:
    return Request(name, ok=False, kind=error.kind, error=str(error), at_s=at_s)


def run(
    client: Client, prompts: Sequence[Prompt], concurrency: int, output_tokens: int, salt: str, limits: Limits
) -> Round:
    """Send all prompts, `concurrency` at a time, until the last is answered or the deadline passes."""
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
    now = time.perf_counter()
    stuck = [Unfinished(name, now - at) for name, at in list(workers.under_way.items())]
    unfinished = workers.unfinished + stuck
    return Round(
        duration_s=duration_s,
        requests=workers.results(),
        unfinished=unfinished,
        complete=not unfinished and not workers.queue,
    )
