"""Asks questions with checkable answers and records what came back.

Grades answers one by one; whether a model got worse is judged in ladder.py. The text of answers leaves this
module only when it is asked to keep them.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ..openai.client import CHAT, COMPLETIONS, Client, ClientError, Garbage, HttpError, TooLong
from ..openai.stream import choices
from ..state.values import shown
from .form import TEMPLATE, defects
from .graders import answer_of, grade
from .questions import Question
from .record import AskedOver, Graded

THINKING_TOKENS = 2048  # room for a model whose thinking can't be switched off
WORKERS = 8
ANSWER_S = 60.0
LONGEST_ANSWER = 1 << 18  # characters; 2048 tokens have about 8,000
TRIES = 3  # of the request that shows how questions can be asked


def ask_all(
    client: Client,
    questions: list[Question],
    deadline: float,
    keep_answers: bool = False,
    say: Callable[[str], None] = lambda line: None,
    speaker: Speaker | None = None,
) -> list[Graded]:
    """Ask as many as the deadline (time.perf_counter) allows, in order; one graded entry for each answer.

    What has no entry was not answered in time, asked or not: whoever keeps the entries counts it too.

    + speaker: one that has negotiated; a new one without it
    """
    workers = _Workers(speaker or negotiated(client, questions, deadline), questions, deadline, keep_answers)
    threads = [
        threading.Thread(target=workers.work, daemon=True) for _ in range(min(WORKERS, len(questions)))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.perf_counter()) + 1.0)
    if any(thread.is_alive() for thread in threads):
        client.abort()
    graded = sorted(workers.graded, key=lambda item: item.prompt)
    right = sum(1 for item in graded if item.passed)
    late = len(questions) - len(graded)
    say(f"quality: {right} of {len(graded)} right" + (f", {late} not answered in time" if late else ""))
    return graded


class _Workers:
    """The workers and what they share."""

    def __init__(
        self, speaker: Speaker, questions: list[Question], deadline: float, keep_answers: bool
    ) -> None:
        self.speaker = speaker
        self.queue = deque(questions)
        self.deadline = deadline
        self.keep_answers = keep_answers
        self.graded: list[Graded] = []

    def work(self) -> None:
        while time.perf_counter() < self.deadline:
            try:
                question = self.queue.popleft()
            except IndexError:
                return
            self.one(question)

    def one(self, question: Question) -> None:
        allowed = min(ANSWER_S, self.deadline - time.perf_counter())
        entry = Graded(question.id, passed=False, kind=question.kind)
        try:
            text, finish = self.speaker.ask(question, allowed)
        except ClientError as error:
            if time.perf_counter() < self.deadline - 0.01:
                self.graded.append(replace(entry, sane=False, error=str(error), error_kind=error.kind))
            return
        if self.keep_answers:
            entry = replace(entry, answer=text)
        try:
            entry = _graded(entry, question, text, finish)
        except Exception as error:  # whatever it is: the questions after it are asked, and the record says so
            why = f"the grader of {question.kind} failed: {error!r}"
            entry = replace(entry, error=why, error_kind="grader")
        self.graded.append(entry)


def _graded(entry: Graded, question: Question, text: str, finish: str | None) -> Graded:
    answer = answer_of(text)
    wrong = defects(answer)
    sane = not set(wrong) - {TEMPLATE}
    passed = sane and grade(question.kind, answer, question.expect)
    return replace(entry, passed=passed, sane=sane, form=tuple(wrong), ended=finish == "stop")


def negotiated(client: Client, questions: list[Question], deadline: float) -> Speaker:
    """A speaker that knows how this server can be asked, where a question needs to know."""
    speaker = Speaker(client)
    if any(question.endpoint == "chat" for question in questions):
        speaker.negotiate(deadline)
    return speaker


class Speaker:
    """Asks one question as this server can be asked: chat with thinking off, chat, or a plain prompt.

    Which way that is, is found out once and by one request. Were it found out while eight questions are under
    way, one that the server refuses for itself would change how the others are asked, and not the same ones
    on both sides.
    """

    def __init__(self, client: Client) -> None:
        self.client = client
        self.chat = True
        self.refusal = ""  # of chat, in the server's words
        self.thinking_switch = True
        self.thinks = False

    def negotiate(self, deadline: float) -> None:
        """Give up what the server refuses.

        One that fails in another way is asked over chat: its answers tell how.
        """
        hello = Question("hello", "Hello", "exact", "Hello", max_tokens=1)
        tries = 0
        while tries < TRIES and self.chat:
            body = self._body(hello)
            try:
                self.client.ask(CHAT, body, min(ANSWER_S, (deadline - time.perf_counter()) / 4))
                return
            except ClientError as error:
                if not (isinstance(error, HttpError) and self._can_ask_otherwise(error, body)):
                    tries += 1

    def way(self) -> AskedOver:
        """How the questions were asked, for the record."""
        return AskedOver("chat") if self.chat else AskedOver("completions", self.refusal)

    def ask(self, question: Question, timeout_s: float) -> tuple[str, str | None]:
        """The answer's text and why it ended. Raises ClientError."""
        until = time.perf_counter() + timeout_s
        while True:
            body = self._body(question)
            path = CHAT if "messages" in body else COMPLETIONS
            text, finish, thought = _read(self.client.ask(path, body, until - time.perf_counter()))
            unfinished_thought = (thought or "<think>" in text) and not answer_of(text) and finish == "length"
            if unfinished_thought and not self.thinks:
                self.thinks = True
                continue
            return text, finish

    def _body(self, question: Question) -> dict[str, object]:
        tokens = max(question.max_tokens, THINKING_TOKENS) if self.thinks else question.max_tokens
        body: dict[str, object] = {"max_tokens": tokens, "temperature": 0, "seed": 0}
        if not self.chat or question.endpoint == "completions":
            return {**body, "prompt": question.prompt}
        body["messages"] = [{"role": "user", "content": question.prompt}]
        if self.thinking_switch:
            body["chat_template_kwargs"] = {"enable_thinking": False}
        return body

    def _can_ask_otherwise(self, error: HttpError, body: Mapping[str, object]) -> bool:
        """Give up the extension, then chat itself, where the server refuses them."""
        if error.status not in (400, 404, 422):
            return False
        if "chat_template_kwargs" in body and error.status != 404:
            self.thinking_switch = False
        else:
            self.chat = False
            self.refusal = str(error)
        return True


def _read(answer: Mapping[str, object]) -> tuple[str, str | None, bool]:
    """Text, reason of its end, and whether the server kept a reasoning part apart."""
    offered = choices(answer)
    if not offered:
        raise Garbage("the answer has no choices")
    choice = offered[0]
    message = choice.get("message")
    finish = choice.get("finish_reason")
    ended = finish if isinstance(finish, str) else None
    if isinstance(message, dict):
        thought = bool(message.get("reasoning_content") or message.get("reasoning"))
        return _words(message.get("content")), ended, thought
    return _words(choice.get("text")), ended, False


def _words(value: Any) -> str:
    if not isinstance(value, (str, type(None))):
        raise Garbage(f"the answer is no text: {shown(value)}")
    text = (value or "").encode("utf-8", "replace").decode()  # halves of surrogate pairs are no text
    if len(text) > LONGEST_ANSWER:
        raise TooLong(f"the answer has {len(text)} characters, more than {LONGEST_ANSWER}")
    return text
