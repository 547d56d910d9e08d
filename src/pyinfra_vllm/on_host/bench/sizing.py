"""How long answers are and how many requests a round has, so that enough whole rounds fit the time. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..openai.client import Streamed
from .plan import Plan, Settings, phase_name

OUTPUT_TOKENS = (128, 64, 32, 16, 8)
REQUESTS_AT_ONE_STREAM = 18  # at least so many fit the budget, else answers get shorter
SPEED_SHARE = 0.55  # of the budget
SLACK = 0.9  # of the time for rounds is planned; a round that the deadline cuts is lost
FEWEST_ROUNDS = 6  # that should fit the budget, else answers get shorter
REQUEST_TIMEOUT_S = 10.0


def output_tokens(answer: Streamed, budget_s: float, phases: int) -> int:
    """Tokens of an answer, by the time that one took.

    + budget_s: of all phases together
    """
    share = budget_s * SPEED_SHARE / phases
    per_token = (answer.e2e_s - answer.ttft_s) / max(1, answer.output_tokens - 1)
    for tokens in OUTPUT_TOKENS:
        if (answer.ttft_s + tokens * per_token) * REQUESTS_AT_ONE_STREAM <= share:
            return tokens
    return OUTPUT_TOKENS[-1]


def least_batches(concurrency: Sequence[int], words: Mapping[str, int]) -> dict[str, int]:
    """By phase: how often all of its streams must be asked so that every shape was."""
    return {phase_name(streams): math.ceil(len(words) / streams) for streams in concurrency}


def round_s(batches: Mapping[str, int], typical: Mapping[str, float]) -> float:
    """Seconds of the shortest whole round: each phase with all of its streams, and with every shape.

    + typical: seconds of one request, by phase
    """
    return sum(count * typical.get(name, REQUEST_TIMEOUT_S) for name, count in batches.items())


def shorter(
    batches: Mapping[str, int],
    asked: int,
    typical: Mapping[str, float],
    first_tokens: Mapping[str, float],
    speed_s: float,
) -> tuple[int, dict[str, float]]:
    """The most tokens of an answer, `asked` or fewer, with which enough rounds fit; and what a request takes
    then, in seconds by phase.

    + first_tokens: seconds to the first token, by phase
    """
    for tokens in (item for item in OUTPUT_TOKENS if item <= asked):
        share = (tokens - 1) / (asked - 1)
        took = {name: first + share * (typical[name] - first) for name, first in first_tokens.items()}
        if round_s(batches, took) * FEWEST_ROUNDS <= speed_s * SLACK:
            break
    return tokens, took


def planned(
    settings: Settings, words: dict[str, int], tokens: int, typical: Mapping[str, float], speed_s: float
) -> Plan:
    """As many whole rounds as fit; time that is left over lengthens the rounds of all phases alike."""
    batches = least_batches(settings.concurrency, words)
    rounds = max(1, min(settings.rounds, int(speed_s * SLACK / round_s(batches, typical))))
    longest_s = speed_s * SLACK / rounds if rounds == settings.rounds else 0.0
    requests = _requests(settings.concurrency, batches, typical, longest_s)
    return Plan(words=words, output_tokens=tokens, rounds=rounds, requests=requests)


def in_turns(plan: Plan, concurrency: Sequence[int], typical: Mapping[str, float], longest_s: float) -> Plan:
    """The plan for two servers that take turns: rounds that last so long, or longer where every shape needs
    it.
    """
    batches = least_batches(concurrency, plan.words)
    return replace(plan, requests=_requests(concurrency, batches, typical, longest_s))


def _requests(
    concurrency: Sequence[int], batches: Mapping[str, int], typical: Mapping[str, float], longest_s: float
) -> dict[str, int]:
    """Requests of one round by phase: as many as fit into its share of these seconds, and no fewer than
    `batches`.
    """
    share = longest_s / len(concurrency)
    found = {}
    for streams in concurrency:
        name = phase_name(streams)
        fit = int(share / typical.get(name, REQUEST_TIMEOUT_S))
        found[name] = max(batches[name], fit) * streams
    return found
