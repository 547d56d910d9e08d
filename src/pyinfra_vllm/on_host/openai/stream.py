"""Parses a server's answer: a stream of events with tokens in it, or one of several kinds of failure.

Reads bytes that were received; never touches a socket.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..state.values import shown

MOST_TOKENS = 10**9  # where the number asked for is unknown


class ClientError(Exception):
    """A request that did not give what was asked for.

    `kind` is one word for counting, the message is for people.
    """

    kind = "error"


class Refused(ClientError):
    """Nothing listens there (a vLLM that still loads looks like this too)."""

    kind = "refused"


class HttpError(ClientError):
    """The server answered with a status other than 200."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"HTTP {status}: {shortened(text)}")
        self.status = status
        self.kind = f"http_{status}"


class Dropped(ClientError):
    """The connection ended before the answer did."""

    kind = "dropped"


class TimedOut(ClientError):
    """The answer was not complete within the time limit."""

    kind = "timeout"


class Garbage(ClientError):
    """The response is not an answer of an OpenAI-compatible server."""

    kind = "garbage"


class TooLong(Garbage):
    """The answer is longer than any answer to what was asked: it was not read to its end."""


class NoTokens(ClientError):
    """The answer ended well and held no tokens."""

    kind = "no_tokens"


class NoUsage(ClientError):
    """The answer does not say how many tokens it has, so its speed can't be known."""

    kind = "no_usage"


@dataclass
class Streamed:
    """One streamed answer: seconds from sending the request to the first and to the last token."""

    ttft_s: float
    e2e_s: float
    input_tokens: int
    output_tokens: int
    events: int
    text: str
    finish_reason: str | None


@dataclass
class Events:
    """The events of one stream, each with the moment at which its bytes were read."""

    sent: float
    lines: list[tuple[float, bytes]] = field(default_factory=list)
    # What `usage` may claim at most: of what was sent, and of what was asked for.
    most_input: int = MOST_TOKENS
    most_output: int = MOST_TOKENS


def read_stream(events: Events, require_usage: bool) -> Streamed:
    texts: list[str] = []
    moments: list[float] = []
    usage: object = None
    finish: str | None = None
    done = False
    for moment, line in events.lines:
        if line.startswith(b":") or line.startswith((b"event:", b"id:", b"retry:")):
            continue
        if not line.startswith(b"data:"):
            raise Garbage(f"not an event stream: {shortened(line.decode('utf-8', 'replace'), 80)}")
        data = line[len(b"data:") :].strip()
        if data == b"[DONE]":
            done = True
            continue
        event = parsed(data)
        if "error" in event:
            said = shortened(data.decode("utf-8", "replace"))
            raise Dropped(f"the server gave up in the middle of the answer: {said}")
        usage = event.get("usage") or usage
        for choice in choices(event):
            moments.append(moment)
            texts.append(_text(choice))
            finish = _finish(choice) or finish
    if not moments:
        raise NoTokens("the stream ended without a token" if events.lines else "the answer is empty")
    if not done and finish is None:
        raise Dropped("the stream ended in the middle of the answer")
    input_tokens, output_tokens = _counted(usage, len(moments), require_usage, events)
    return Streamed(
        ttft_s=moments[0] - events.sent,
        e2e_s=moments[-1] - events.sent,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        events=len(moments),
        text="".join(texts),
        finish_reason=finish,
    )


def _counted(usage: object, seen: int, required: bool, events: Events) -> tuple[int, int]:
    """Tokens in and out as the server counted them, where that can be true of what was asked."""
    counts = usage if isinstance(usage, dict) else {}
    prompt, completion = counts.get("prompt_tokens"), counts.get("completion_tokens")
    if isinstance(prompt, int) and isinstance(completion, int):
        if completion < 1:
            raise NoTokens("the server counted no tokens in its answer")
        if completion > events.most_output or not 0 <= prompt <= events.most_input:
            raise Garbage(
                f"`usage` claims {shown(prompt)} tokens in and {shown(completion)} out, where"
                f" {events.most_input} and {events.most_output} are the most that was asked for"
            )
        return prompt, completion
    if required:
        raise NoUsage("the server's answer has no `usage`, so its tokens can't be counted")
    return 0, min(seen, events.most_output)


def choices(answer: Mapping[str, object]) -> list[Mapping[str, object]]:
    """The choices of an answer. Raises Garbage where that is no list of objects."""
    found = answer.get("choices") or []
    if not isinstance(found, list) or not all(isinstance(choice, dict) for choice in found):
        raise Garbage(f"`choices` is no list of objects: {shown(found)}")
    return found


def _finish(choice: Mapping[str, object]) -> str | None:
    found = choice.get("finish_reason")
    return found if isinstance(found, str) else None


def _text(choice: Mapping[str, object]) -> str:
    delta = choice.get("delta")
    found = delta.get("content") if isinstance(delta, dict) else choice.get("text")
    return found if isinstance(found, str) else ""


def parsed(data: bytes) -> dict[str, Any]:
    """The object that a server sent. Raises Garbage for whatever is none."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Garbage(f"not JSON: {shortened(data[:400].decode('utf-8', 'replace'), 80)}") from error
    if not isinstance(value, dict):
        raise Garbage(f"not a JSON object: {shown(value)}")
    return value


def words(error: BaseException) -> str:
    return str(error) or type(error).__name__


def shortened(text: str, limit: int = 300) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else flat[: limit - 3] + "..."
