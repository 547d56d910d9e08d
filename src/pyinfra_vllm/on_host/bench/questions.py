"""The questions and texts that a model is asked: the built-in ones, and those of an operator's own file."""

from __future__ import annotations

import json
import pkgutil
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .criteria import LANGUAGES
from .graders import GRADERS, grade, unfit

ANSWER_TOKENS = 128
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
PIECE_BYTES = 600  # of an operator's text; a longer one is cut at the ends of its sentences
SENTENCE_ENDS = ".!?。！？\n"


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


@dataclass(frozen=True)
class Text:
    """A text in one language, cut into pieces of a few sentences; each piece is asked by itself."""

    id: str
    language: str
    pieces: tuple[str, ...]


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


def cut(text: str) -> tuple[str, ...]:
    """The text in pieces of about PIECE_BYTES, cut after a sentence where there is one."""
    pieces, piece = [], ""
    for character in text.strip():
        piece += character
        size = len(piece.encode())
        if (character in SENTENCE_ENDS and size >= PIECE_BYTES / 2) or size >= PIECE_BYTES * 2:
            pieces.append(piece)
            piece = ""
    if piece.strip():
        pieces.append(piece)
    return tuple(pieces)
