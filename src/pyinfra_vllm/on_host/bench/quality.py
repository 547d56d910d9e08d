"""Asks questions with checkable answers and records what came back.

Grades answers one by one; whether a model got worse is judged in ladder.py. The text of answers leaves this
module only when it is asked to keep them.
"""

from __future__ import annotations

import json
import pkgutil
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..openai.client import CHAT, COMPLETIONS, Client, ClientError, Garbage, HttpError, TooLong
from ..openai.stream import choices
from ..state.values import shown
from .criteria import LANGUAGES
from .form import TEMPLATE, defects
from .graders import GRADERS, answer_of, grade, unfit
from .likelihood import Text, cut
from .record import AskedOver, Graded

ANSWER_TOKENS = 128
THINKING_TOKENS = 2048  # room for a model whose thinking can't be switched off
WORKERS = 8
ANSWER_S = 60.0
LONGEST_ANSWER = 1 << 18  # characters; 2048 tokens have about 8,000
TRIES = 3  # of the request that shows how questions can be asked
FURTHER = "further-"  # begins the id of a question that is asked only where there is time
FURTHER_SETS = 40
SHORT_TOKENS = 32
NAMES = (
    "Anna",
    "Brian",
    "Carla",
    "David",
    "Emma",
    "Frank",
    "Grace",
    "Henry",
    "Irene",
    "Jack",
    "Karen",
    "Liam",
)
CITIES = ("Paris", "London", "Berlin", "Madrid", "Rome", "Vienna", "Oslo", "Dublin", "Lisbon", "Athens")
THINGS = ("shoes", "books", "flowers", "lamps", "bread", "clocks", "boats", "coats")
KEYS = ("id", "prompt", "kind", "expect", "max_tokens", "endpoint")
TEXT_KEYS = ("id", "text", "language")


class QuestionsError(ValueError):
    """A file of the operator's prompts that can't be used: names the file, the line and what is wrong."""


@dataclass(frozen=True)
class Question:
    """A question whose answer is graded, by the id under which records have it."""

    id: str
    prompt: str
    kind: str
    expect: Any
    max_tokens: int = ANSWER_TOKENS
    endpoint: str = "chat"


def builtin(languages: tuple[str, ...] = LANGUAGES) -> list[Question]:
    """The built-in questions in these languages: an id begins with its language."""
    return [Question(**item) for item in _data()["questions"] if item["id"].partition("-")[0] in languages]


def further(languages: tuple[str, ...] = LANGUAGES) -> list[Question]:
    """More questions of the same kinds, always the same ones, asked where the time for quality allows: with
    more of them a smaller drop is seen. Sums, extraction and order, made by rule, with short answers.
    """
    draw = random.Random(161)
    found = []
    for number in range(FURTHER_SETS):
        a, b, c = draw.randint(11, 99), draw.randint(11, 99), draw.randint(2, 9)
        name, city, thing = (draw.choice(words) for words in (NAMES, CITIES, THINGS))
        first, last = sorted(draw.sample(NAMES, 2))
        asked = {
            "en-sum": ("number", f"What is {a} + {b}? Answer with the number only.", a + b),
            "en-times": ("number", f"What is {c} times {a}? Answer with the number only.", c * a),
            "en-order": (
                "contains",
                f"Which comes first in the alphabet, {last} or {first}? One word.",
                first,
            ),
            "en-who": (
                "contains",
                f"{name} lives in {city} and sells {thing}. Where does {name} live? One word.",
                city,
            ),
            "ja-sum": ("number", f"{a} + {b} はいくつですか。数字だけで答えてください。", a + b),
            "ja-price": (
                "number",
                f"りんごは一個{a}円です。{c}個買うと何円ですか。数字だけで答えてください。",
                c * a,
            ),
        }
        found += [
            Question(f"{FURTHER}{key}-{number}", prompt, kind, str(expect), SHORT_TOKENS)
            for key, (kind, prompt, expect) in asked.items()
            if key.partition("-")[0] in languages
        ]
    return found


def _data() -> Mapping[str, Any]:
    """Read through the package's loader: inside a zipapp there is no file to open."""
    found = pkgutil.get_data(__package__ or "", "quality.json")
    if found is None:
        raise QuestionsError("quality.json is missing from this program")
    data: Mapping[str, Any] = json.loads(found.decode("utf-8"))
    return data


def load(path: str | Path) -> tuple[list[Question], list[Text]]:
    """The operator's own file, JSONL. A line is a question, `{"id", "prompt", "kind", "expect"}`, where
    `kind` is one of graders.GRADERS, and `max_tokens` and `endpoint` (`chat` or `completions`) may be added;
    or a text whose likelihood is measured, `{"id", "text"}`, where `language` may be added.

    Raises QuestionsError.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:  # not there, not UTF-8, no name that a file can have
        remedy = "put the file there and run again, or name another"
        raise QuestionsError(f"the prompts in {path} can't be read: {error}; {remedy}") from error
    found = [_line(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise QuestionsError(f"{path} holds no prompts")
    names = [item.id for item in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise QuestionsError(f"{path}: the id {twice[0]!r} is there twice")
    questions = [item for item in found if isinstance(item, Question)]
    return questions, [item for item in found if isinstance(item, Text)]


def _line(line: str, where: str) -> Question | Text:
    try:
        item = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise QuestionsError(f"{where}: not JSON ({error})") from error
    if isinstance(item, dict) and "text" in item:
        return _text(item, where)
    return _question(item, where)


def _text(item: Mapping[str, Any], where: str) -> Text:
    unknown = sorted(set(item) - set(TEXT_KEYS))
    if unknown:
        raise QuestionsError(f"{where}: unknown key {unknown[0]!r}; a text has {', '.join(TEXT_KEYS)}")
    for key in TEXT_KEYS:
        value = item.get(key, "own" if key == "language" else None)
        if not isinstance(value, str) or not value.strip():
            raise QuestionsError(f"{where}: {key} {value!r} is not text")
    return Text(item["id"], item.get("language", "own"), cut(item["text"]))


def _question(item: Any, where: str) -> Question:
    if not isinstance(item, dict):
        raise QuestionsError(f"{where}: not an object with the keys {', '.join(KEYS[:4])}")
    missing = [key for key in KEYS[:4] if key not in item]
    unknown = [key for key in item if key not in KEYS]
    if missing or unknown:
        problem = f"the key {missing[0]!r} is missing" if missing else f"unknown key {unknown[0]!r}"
        raise QuestionsError(f"{where}: {problem}; known keys are {', '.join(KEYS)}")
    if not isinstance(item["kind"], str) or item["kind"] not in GRADERS:
        raise QuestionsError(f"{where}: kind {item['kind']!r} is not one of {', '.join(GRADERS)}")
    if item.get("endpoint", "chat") not in ("chat", "completions"):
        raise QuestionsError(f"{where}: endpoint {item['endpoint']!r} is not chat or completions")
    for key in ("id", "prompt"):
        if not isinstance(item[key], str) or not item[key]:
            raise QuestionsError(f"{where}: {key} {item[key]!r} is not text")
    tokens = item.get("max_tokens", ANSWER_TOKENS)
    if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1:
        raise QuestionsError(f"{where}: max_tokens {tokens!r} is not a whole number of at least 1")
    if why := unfit(item["kind"], item["expect"]):
        raise QuestionsError(f"{where}: expect {item['expect']!r} of kind {item['kind']} {why}")
    question = Question(**item)
    try:
        grade(question.kind, "", question.expect)
    except Exception as error:  # whatever it is, it would be the same in the middle of a switch
        raise QuestionsError(f"{where}: the grader of {question.kind} fails on expect: {error!r}") from error
    return question


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
