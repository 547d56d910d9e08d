"""Questions and graders: what counts as right, what as sane, and how a server is asked."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from bench_records import judge, phase, record
from hypothesis import given
from hypothesis import strategies as st
from openai_server import serving

from pyinfra_vllm.on_host.bench import form, graders, quality
from pyinfra_vllm.on_host.bench.criteria import Criteria
from pyinfra_vllm.on_host.bench.questions import (
    FURTHER,
    FURTHER_SETS,
    Question,
    QuestionsError,
    Text,
    builtin,
    further,
    load,
)
from pyinfra_vllm.on_host.bench.record import AskedOver, Record
from pyinfra_vllm.on_host.gate import ladder
from pyinfra_vllm.on_host.openai.client import Client

pytestmark = pytest.mark.alone  # it has a time limit against a live server


def model_answer(question: Question) -> str:
    """An answer of a model that knows everything."""
    if question.kind == "json":
        return "```json\n" + json.dumps(question.expect, ensure_ascii=False) + "\n```"
    if question.kind == "code":
        names = ", ".join("abc"[: question.expect["parameters"]])
        return f"```python\ndef {question.expect['function']}({names}):\n    return None\n```"
    return question.expect if isinstance(question.expect, str) else question.expect[0]


REGEX_ANSWERS = {
    "en-format-1": "YES", "en-format-2": "cat, cat, cat", "en-format-3": "1 2 3 4 5", "en-format-4": "[DONE]",
    "en-format-5": "2024-03-05", "en-format-6": "HELLO", "en-format-7": "a\nb\nc", "en-format-8": "d-o-g",
    "en-format-9": "[box]", "en-format-10": "15:30", "en-format-11": "zx-81-qw", "en-format-12": "B",
    "ja-format-1": "はい", "ja-format-2": "ネコ", "ja-format-3": "1,2,3,4,5", "ja-format-4": "2024-03-05",
    "ja-format-5": "とうきょう", "ja-format-6": "山山山", "ja-format-7": "ab-77-yz", "ja-format-8": "[完了]",
}  # fmt: skip


def right_answer(question: Question) -> str:
    return REGEX_ANSWERS.get(question.id) or model_answer(question)


def test_there_are_enough_questions_in_both_languages_and_of_every_kind() -> None:
    questions = builtin()
    assert len(questions) >= 150
    languages = Counter(question.id[:2] for question in questions)
    assert set(languages) == {"en", "ja"} and min(languages.values()) >= 50
    kinds = Counter(question.kind for question in questions)
    assert {"number", "contains", "regex", "json", "code"} <= set(kinds) <= set(graders.GRADERS)
    assert (
        len({question.id for question in questions}) == len({q.prompt for q in questions}) == len(questions)
    )


@pytest.mark.parametrize("question", builtin(), ids=lambda question: question.id)
def test_every_question_accepts_its_answer_and_refuses_another(question: Question) -> None:
    grade = graders.GRADERS[question.kind]
    assert grade(right_answer(question), question.expect)
    assert not form.defects(right_answer(question))
    assert not grade("I am not sure about that.", question.expect)


@pytest.mark.parametrize(
    ("kind", "answer", "expect", "right"),
    [
        ("number", "17 + 25 = 42.", "42", True),
        ("number", "The result is 1,024", "1024", True),
        ("number", "答えは４２です", "42", True),
        ("number", "42 or 43", "42", False),
        ("contains", "It is ice cream", ["ice"], True),
        ("contains", "twice", ["ice"], False),
        ("contains", "東京です。", ["東京"], True),
        ("exact", ' "Tokyo." ', "Tokyo", True),
        ("exact", "Tokyo, Japan", "Tokyo", False),
        ("json", '{"a": 1, "b": [true]}', {"b": [True], "a": 1}, True),
        ("json", 'Here it is: {"a": 1}', {"a": 1}, False),
        ("code", "def f(a, b): return a", {"function": "f", "parameters": 2}, True),
        ("code", "def f(a): return a", {"function": "f", "parameters": 2}, False),
        ("code", "def f(a, b) return a", {"function": "f", "parameters": 2}, False),
        ("code", "-" * 200_000 + "1", {"function": "f", "parameters": 2}, False),
        ("json", "[" * 200_000, [], False),
    ],
)
def test_graders(kind: str, answer: str, expect: Any, right: bool) -> None:
    assert graders.GRADERS[kind](answer, expect) is right


@given(st.text(), st.sampled_from(sorted(graders.GRADERS)))
def test_no_answer_breaks_a_grader(answer: str, kind: str) -> None:
    expect = {"number": "1", "code": {"function": "f", "parameters": 1}, "json": {}}.get(kind, "x")
    assert graders.GRADERS[kind](answer, expect) in (True, False)
    assert set(form.defects(answer)) <= {form.BLANK, form.LOOP, form.NOISE, form.TEMPLATE}


def test_what_a_thinking_model_thought_is_not_graded() -> None:
    assert graders.answer_of("<think>maybe 41?</think>\n42") == "42"
    assert graders.answer_of("<think>I never stop") == ""


# Asking


def asked(questions: list[Question], keep: bool = False, **behaviour: Any) -> list[dict[str, Any]]:
    with serving(**behaviour) as server:
        found = quality.ask_all(Client(server.url, "m"), questions, time.perf_counter() + 10, keep)
        return [item.as_dict() for item in found]


CAPITAL = Question("q1", "What is the capital of Japan?", "contains", ["Tokyo"])
KNOWS = {CAPITAL.prompt: "Tokyo."}


def test_answers_are_graded_and_their_text_stays_out() -> None:
    (entry,) = asked([CAPITAL], answers=KNOWS)
    assert entry == {
        "prompt": "q1",
        "kind": "contains",
        "passed": True,
        "sane": True,
        "form": [],
        "ended": True,
    }


def test_the_text_is_kept_when_asked() -> None:
    (entry,) = asked([CAPITAL], keep=True)
    assert entry["passed"] is False and entry["answer"] == "I do not know."


def test_thinking_is_switched_off_where_the_server_knows_how() -> None:
    with serving() as server:
        quality.ask_all(Client(server.url, "m"), [CAPITAL], time.perf_counter() + 5)
        assert server.requests[-1]["chat_template_kwargs"] == {"enable_thinking": False}


def test_a_server_that_refuses_the_switch_is_asked_without_it() -> None:
    (entry,) = asked([CAPITAL], answers=KNOWS, refuses=("chat_template_kwargs",))
    assert entry["passed"]


def test_a_server_without_chat_is_asked_plainly() -> None:
    (entry,) = asked([CAPITAL], answers=KNOWS, refuses=("messages",))
    assert entry["passed"]


def asked_over(**behaviour: Any) -> AskedOver:
    with serving(**behaviour) as server:
        return quality.negotiated(Client(server.url, "m"), [CAPITAL], time.perf_counter() + 5).way()


def test_the_way_of_asking_and_the_refusal_of_chat_are_told() -> None:
    assert asked_over() == asked_over(refuses=("chat_template_kwargs",)) == AskedOver("chat")
    assert asked_over(status=500) == AskedOver("chat"), "a server that fails refuses nothing"
    assert asked_over(chat=False) == AskedOver("completions", "HTTP 404: no chat here")
    refused = asked_over(refuses=("messages",))
    assert refused.endpoint == "completions" and "unknown field messages" in str(refused.refusal)


def test_one_question_that_is_refused_changes_how_no_other_is_asked() -> None:
    odd = Question("q0", "Odd.", "exact", "yes")
    with serving(answers=KNOWS) as server:
        client = Client(server.url, "m")
        speaker = quality.negotiated(client, [odd, CAPITAL], time.perf_counter() + 5)
        server.behaviour.refuses = ("messages",)
        (refused,) = quality.ask_all(client, [odd], time.perf_counter() + 5, speaker=speaker)
        server.behaviour.refuses = ()
        (entry,) = quality.ask_all(client, [CAPITAL], time.perf_counter() + 5, speaker=speaker)
        assert {request["path"] for request in server.requests} == {"/v1/chat/completions"}
    assert refused.error_kind == "http_400" and entry.passed


def test_a_grader_that_raises_is_an_entry_and_stops_no_question(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(answer: str, expect: Any) -> bool:
        raise RuntimeError("no such thing")

    monkeypatch.setitem(graders.GRADERS, "exact", broken)
    questions = [Question(f"q{number:02d}", "Say yes.", "exact", "yes") for number in range(20)]
    entries = asked([*questions, Question("z", CAPITAL.prompt, "contains", "Tokyo")], answers=KNOWS)
    assert len(entries) == 21 and entries[-1]["passed"]
    assert {entry["error_kind"] for entry in entries[:-1]} == {"grader"}
    assert "the grader of exact failed: RuntimeError('no such thing')" in entries[0]["error"]
    assert judge(None, record(phase(1), quality=entries))["verdict"] == "inconclusive"


def test_a_grader_that_raises_is_found_while_the_file_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(graders.GRADERS, "exact", lambda answer, expect: bool(1 / 0))
    (tmp_path / "own.jsonl").write_text(LINE)
    with pytest.raises(
        QuestionsError, match=r"own\.jsonl:1: the grader of exact fails on expect: ZeroDivision"
    ):
        load(tmp_path / "own.jsonl")


def test_a_model_that_thinks_all_the_same_gets_room_to_end() -> None:
    (entry,) = asked([CAPITAL], answers=KNOWS, thinking="Japan, Japan, where is it")
    assert entry["passed"]


def test_an_error_is_an_entry_with_its_kind() -> None:
    (entry,) = asked([CAPITAL], status=500)
    assert entry["passed"] is False and entry["error_kind"] == "http_500"
    row = judge(None, record(phase(1), quality=[entry]))["metrics"][0]
    assert row["name"] == "error_rate" and row["verdict"] == "fail"


def test_the_deadline_ends_it() -> None:
    began = time.monotonic()
    with serving(wedged=True) as server:
        assert quality.ask_all(Client(server.url, "m"), builtin(), time.perf_counter() + 0.3) == []
    assert time.monotonic() - began < 4


def test_an_unchanged_model_never_fails_and_a_broken_one_does() -> None:
    knows = {question.prompt: right_answer(question) for question in builtin()}
    before = record(phase(1), quality=asked(builtin(), answers=knows))
    assert sum(item["passed"] for item in before["quality"]) == len(builtin())
    for _ in range(3):
        after = record(phase(1), quality=asked(builtin(), answers=knows))
        assert {
            row.verdict
            for row in ladder.rows(Record.read(before, "before"), Record.read(after, "after"), Criteria())
        } == {"pass"}
    broken = record(phase(1), quality=asked(builtin(), default_answer="!!!!!" * 20))
    assert judge(before, broken)["verdict"] == "fail"


# The operator's own prompts

LINE = '{"id": "own-1", "prompt": "Say yes.", "kind": "exact", "expect": "yes"}'


def test_a_file_of_own_prompts(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    text = '{"id": "own-3", "text": "Ein Satz. Und noch einer.", "language": "de"}'
    path.write_text(LINE + "\n\n" + LINE.replace("own-1", "own-2") + "\n" + text + "\n")
    questions, texts = load(path)
    assert [question.id for question in questions] == ["own-1", "own-2"]
    assert texts == [Text("own-3", "de", ("Ein Satz. Und noch einer.",))]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no prompts"),
        ("{", "own.jsonl:1: not JSON"),
        ("[]", "own.jsonl:1: not an object"),
        (LINE.replace('"expect"', '"expected"'), "the key 'expect' is missing"),
        (LINE.replace("}", ', "answer": 1}'), "unknown key 'answer'"),
        (LINE.replace("exact", "exactly"), "kind 'exactly' is not one of number"),
        (LINE.replace("}", ', "endpoint": "x"}'), "endpoint 'x' is not chat or completions"),
        (LINE.replace('"exact"', "[]"), "kind [] is not one of number"),
        (LINE.replace('"own-1"', "1"), "id 1 is not text"),
        (LINE.replace('"Say yes."', '""'), "prompt '' is not text"),
        (LINE.replace("}", ', "max_tokens": "8"}'), "max_tokens '8' is not a whole number"),
        (LINE.replace("exact", "number"), "expect 'yes' of kind number must be a number"),
        (LINE.replace("exact", "regex").replace('"yes"', '"("'), "must be a pattern that Python knows"),
        (LINE.replace("exact", "code"), 'must be {"function": NAME, "parameters": N}'),
        (LINE.replace("exact", "contains").replace('"yes"', "[1]"), "must be a word or a list of words"),
        ("[" * 100_000, "own.jsonl:1: not JSON"),
        (LINE + "\n" + LINE, "the id 'own-1' is there twice"),
        ('{"id": "t", "text": " "}', "own.jsonl:1: text ' ' is not text"),
        ('{"text": "Hello."}', "own.jsonl:1: id None is not text"),
        ('{"id": "t", "text": "Hello.", "lang": "en"}', "unknown key 'lang'; a text has id, text, language"),
    ],
)
def test_what_is_wrong_with_own_prompts_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(text)
    with pytest.raises(QuestionsError) as error:
        load(path)
    assert said in str(error.value)


def test_what_the_built_in_questions_expect_can_be_graded() -> None:
    questions = builtin() + further()
    assert not any(graders.unfit(question.kind, question.expect) for question in questions)
    assert all(graders.GRADERS[item.kind](str(item.expect), item.expect) for item in further())


def test_further_questions_are_always_the_same_and_each_is_there_once() -> None:
    found = further()
    assert found == further() and len(found) == 6 * FURTHER_SETS
    assert len({item.id for item in found}) == len(found)
    assert all(item.id.startswith(FURTHER) for item in found)
    assert not {item.id for item in found} & {item.id for item in builtin()}


@pytest.mark.parametrize("language", ["en", "ja"])
def test_questions_of_one_language_alone(language: str) -> None:
    questions = builtin((language,)) + further((language,))
    assert {item.id.removeprefix(FURTHER)[:2] for item in questions} == {language}


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(QuestionsError, match=r"nowhere\.jsonl"):
        load(tmp_path / "nowhere.jsonl")
