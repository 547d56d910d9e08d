"""What a server's answer may be: a stream of events with tokens in it, or one of the ways in which it is none.

Reads bytes that were received; never touches a socket.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any


class ClientError(Exception):
    """A request that did not give what was asked for. `kind` is one word for counting, the message is for people."""

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
    """What came is not an answer of an OpenAI-compatible server."""

    kind = "garbage"


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


def read_stream(events: Events, require_usage: bool) -> Streamed:
    texts: list[str] = []
    moments: list[float] = []
    usage: dict[str, Any] = {}
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
            raise Dropped(f"the server gave up in the middle of the answer: {shortened(str(event['error']))}")
        usage = event.get("usage") or usage
        for choice in event.get("choices") or ():
            moments.append(moment)
            texts.append(_text(choice))
            finish = choice.get("finish_reason") or finish
    if not moments:
        raise NoTokens("the stream ended without a token" if events.lines else "the answer is empty")
    if not done and finish is None:
        raise Dropped("the stream ended in the middle of the answer")
    input_tokens, output_tokens = _counted(usage, len(moments), require_usage)
    return Streamed(
        ttft_s=moments[0] - events.sent,
        e2e_s=moments[-1] - events.sent,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        events=len(moments),
        text="".join(texts),
        finish_reason=finish,
    )


def _counted(usage: Any, events: int, required: bool) -> tuple[int, int]:
    counts = usage if isinstance(usage, dict) else {}
    prompt, completion = counts.get("prompt_tokens"), counts.get("completion_tokens")
    if isinstance(prompt, int) and isinstance(completion, int):
        if completion < 1:
            raise NoTokens("the server counted no tokens in its answer")
        return prompt, completion
    if required:
        raise NoUsage("the server's answer has no `usage`, so its tokens can't be counted")
    return 0, events


def _text(choice: dict[str, Any]) -> str:
    delta = choice.get("delta")
    found = delta.get("content") if isinstance(delta, dict) else choice.get("text")
    return found if isinstance(found, str) else ""


def parsed(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError as error:
        raise Garbage(f"not JSON: {shortened(data.decode('utf-8', 'replace'), 80)}") from error
    if not isinstance(value, dict):
        raise Garbage(f"not a JSON object: {shortened(str(value), 80)}")
    return value


def words(error: BaseException) -> str:
    return str(error) or type(error).__name__


def shortened(text: str, limit: int = 300) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else flat[: limit - 3] + "..."
