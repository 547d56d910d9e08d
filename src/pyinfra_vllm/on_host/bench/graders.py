"""Checks one answer against what was expected; whether it has the form of an answer is judged in form.py.

Reads text only: code that a model wrote is parsed and never run.
"""

from __future__ import annotations

import ast
import json
import math
import pkgutil
import re
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from typing import Any

THINKING = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL)
FENCE = re.compile(r"```[a-zA-Z]*\n(.*?)(```|\Z)", re.DOTALL)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
LONGEST_CODE = 20_000  # characters: Python's own parser is not made for more of untrusted text


def answer_of(text: str) -> str:
    """The part of the text that answers: without the reasoning that a thinking model writes first."""
    return THINKING.sub("", text).strip()


def unfenced(text: str) -> str:
    """The inside of the first code block, or the text itself."""
    found = FENCE.search(text)
    return (found.group(1) if found else text).strip()


def number(answer: str, expect: Any) -> bool:
    """The last number of the answer is the expected one."""
    plain = unicodedata.normalize("NFKC", answer).replace(",", "")
    found = NUMBER.findall(plain)
    return bool(found) and float(found[-1]) == float(expect)


def contains(answer: str, expect: Any) -> bool:
    """An expected word is in the answer, as a word of its own where it is written in Latin letters."""
    options = [expect] if isinstance(expect, str) else expect
    return any(_has(answer, str(option)) for option in options)


def _has(answer: str, option: str) -> bool:
    if option.isascii():
        return (
            re.search(rf"(?<![A-Za-z0-9]){re.escape(option)}(?![A-Za-z0-9])", answer, re.IGNORECASE)
            is not None
        )
    return option in answer


def exact(answer: str, expect: Any) -> bool:
    """The answer is the expected text, but for spaces, quotes and a full stop around it."""
    return answer.strip(" \t\r\n\"'`.。「」") == str(expect).strip(" \t\r\n\"'`.。「」")


def regex(answer: str, expect: Any) -> bool:
    """The pattern is found in the answer."""
    return re.search(str(expect), unfenced(answer)) is not None


def json_equal(answer: str, expect: Any) -> bool:
    """The answer is JSON and its value is the expected one."""
    try:
        return bool(json.loads(unfenced(answer)) == expect)
    except (ValueError, RecursionError):  # nested deeper than any answer
        return False


def code(answer: str, expect: Any) -> bool:
    """The answer parses as Python and defines the expected function with so many parameters."""
    text = unfenced(answer)
    if len(text) > LONGEST_CODE:
        return False
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last two where it nests too deep
        return False
    return any(
        isinstance(node, ast.FunctionDef)
        and node.name == expect["function"]
        and len(node.args.args) == expect["parameters"]
        for node in ast.walk(tree)
    )


# An operator's pattern can take for ever on a text that was made for it, and can't be ended from inside once
# it has begun.
APART = ("regex",)
APART_S = 5.0
_MOST_MEMORY = 1 << 30
_CHILD = """
import json, resource, sys
resource.setrlimit(resource.RLIMIT_AS, ({memory}, {memory}))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
kind, answer, expect = json.load(sys.stdin)
print(int(GRADERS[kind](answer, expect)))
"""


class Undecided(Exception):
    """The grader did not come to an end: its pattern takes for ever on this answer."""


def grade(kind: str, answer: str, expect: Any) -> bool:
    """Whether the answer is right. Raises Undecided where that can't be found out in `APART_S` seconds."""
    if kind not in APART:
        return GRADERS[kind](answer, expect)
    source = (pkgutil.get_data(__package__ or "", "graders.py") or b"").decode("utf-8")
    program = source + _CHILD.format(memory=_MOST_MEMORY)
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", program],
            input=json.dumps([kind, answer, expect]).encode(),
            capture_output=True,
            timeout=APART_S,
            env={"LANG": "C.UTF-8"},
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise Undecided(f"no end within {APART_S:.0f} s") from error
    if done.returncode or done.stdout.strip() not in (b"0", b"1"):
        words = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or ["without a word"]
        raise Undecided(f"ended with {done.returncode}: {words[0][:200]}")
    return done.stdout.strip() == b"1"


GRADERS: dict[str, Callable[[str, Any], bool]] = {
    "number": number,
    "contains": contains,
    "exact": exact,
    "regex": regex,
    "json": json_equal,
    "code": code,
}


def unfit(kind: str, expect: Any) -> str:
    """Why an answer can't be compared with what is expected; empty where it can.

    A grader itself takes what is fit.
    """
    if kind == "number" and not _is_number(expect):
        return 'must be a number, such as 42 or "42"'
    if kind == "contains" and not _are_words(expect):
        return "must be a word or a list of words"
    if kind in ("exact", "regex") and not isinstance(expect, str):
        return "must be text"
    if kind == "regex":
        try:
            re.compile(expect)
        except (re.error, OverflowError, RecursionError) as error:
            return f"must be a pattern that Python knows ({error})"
    if kind == "code" and not _is_function(expect):
        return 'must be {"function": NAME, "parameters": N}'
    return ""


def _is_number(expect: Any) -> bool:
    try:
        return not isinstance(expect, bool) and math.isfinite(float(expect))
    except (TypeError, ValueError, OverflowError):
        return False


def _are_words(expect: Any) -> bool:
    options = [expect] if isinstance(expect, str) else expect
    return (
        isinstance(options, list) and bool(options) and all(isinstance(one, str) and one for one in options)
    )


def _is_function(expect: Any) -> bool:
    return (
        isinstance(expect, dict)
        and isinstance(expect.get("function"), str)
        and isinstance(expect.get("parameters"), int)
    )
