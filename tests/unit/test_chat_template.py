"""Chat templates of real models' kinds, rendered, and what is found wrong with damaged ones."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jinja2
import pytest

from pyinfra_vllm.in_runtime import chat_template as child
from pyinfra_vllm.on_host.server.release import NotReady, Release
from pyinfra_vllm.on_host.staging import chat_template

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Qwen3: an empty thought in the prompt where thinking is switched off, none in a rendered conversation
THINKING = CHATML.replace(
    "assistant\n{% endif %}",
    (
        "assistant\n{% if enable_thinking is defined and enable_thinking is false"
        " %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
    ),
)
LLAMA3 = (
    "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content }}<|eot_id|>{%"
    " endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL = (
    "<s>{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)
NO_TURN = CHATML.partition("{% if add_generation_prompt")[0]
FOREIGN = "{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}"
LAST_ONLY = "<|im_start|>user\n{{ messages[-1].content }}<|im_end|>\n<|im_start|>assistant\n"


@dataclass
class Tokenizer:
    """Renders as transformers' tokenizers do."""

    chat_template: str
    eos_token: str

    def apply_chat_template(self, messages: list[dict[str, str]], tokenize: bool, **values: Any) -> str:
        return jinja2.Environment().from_string(self.chat_template).render(messages=messages, **values)

    def convert_ids_to_tokens(self, numbers: list[int]) -> list[str]:
        return [{9: "<|eot_id|>"}[number] for number in numbers]


def check(template: str, end: str, directory: Path, **kwargs: Any) -> dict[str, list[str]]:
    return child.check(Tokenizer(template, end), str(directory), kwargs)


@pytest.mark.parametrize(
    ("template", "end"), [(CHATML, "<|im_end|>"), (THINKING, "<|im_end|>"), (MISTRAL, "</s>")]
)
def test_templates_of_real_models_are_in_order(template: str, end: str, tmp_path: Path) -> None:
    assert check(template, end, tmp_path)["problems"] == []
    assert check(template, end, tmp_path)["notes"] == (
        ["thinking can be switched by enable_thinking"] if template == THINKING else []
    )


@pytest.mark.parametrize("enabled", [True, False])
def test_thinking_on_and_off(enabled: bool, tmp_path: Path) -> None:
    assert check(THINKING, "<|im_end|>", tmp_path, enable_thinking=enabled)["problems"] == []
    (problem,) = check(CHATML, "<|im_end|>", tmp_path, enable_thinking=enabled)["problems"]
    assert "knows no enable_thinking" in problem


def test_end_tokens_of_the_generation_config_count(tmp_path: Path) -> None:
    (problem,) = check(LLAMA3, "<|end_of_text|>", tmp_path)["problems"]
    assert "ends an answer with '<|eot_id|>'" in problem and "answers run on" in problem
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [9]}))
    assert check(LLAMA3, "<|end_of_text|>", tmp_path)["problems"] == []


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (NO_TURN, "'<|im_start|>assistant' is missing"),
        (FOREIGN, "'[INST]' is missing"),
        (LAST_ONLY, "not rendered turn by turn"),
    ],
)
def test_damaged_templates_are_named(template: str, said: str, tmp_path: Path) -> None:
    assert any(said in problem for problem in check(template, "<|im_end|>", tmp_path)["problems"])


# The host's side


def release(*flags: str) -> Release:
    return Release(
        {"id": "0123", "argv": ["/v/bin/vllm", "serve", *flags], "checkpoint": {"directory": "/c"}}
    )


def answering(monkeypatch: pytest.MonkeyPatch, stdout: str, stderr: str = "") -> list[Any]:
    calls: list[Any] = []

    def run(words: list[str], **how: Any) -> Any:
        calls.append((words, json.loads(how["input"])))
        return SimpleNamespace(stdout=stdout, stderr=stderr)

    monkeypatch.setattr(chat_template.subprocess, "run", run)
    return calls


def test_a_broken_template_refuses_the_release(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, json.dumps({"problems": ["no turn"], "notes": []}))
    with pytest.raises(NotReady, match="chat template of release 0123 is broken: no turn"):
        chat_template.check(release())


def test_the_declared_template_and_its_defaults_are_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = answering(monkeypatch, json.dumps({"problems": [], "notes": []}))
    flags = ("--chat-template=/t.jinja", "--default-chat-template-kwargs", '{"enable_thinking": false}')
    assert chat_template.check(release(*flags)) == {"chat_template": ["in order"]}
    (words, order), *_ = calls
    kwargs = {"enable_thinking": False}
    assert order == {"directory": "/c", "tokenizer": "/c", "template": "/t.jinja", "kwargs": kwargs}
    assert "--property=DynamicUser=yes" in words and "/v/bin/python" in words


@pytest.mark.parametrize("answer", ["", "nonsense", "[]", '{"problems": 1}'])
def test_unchecked_template_does_not_stop_the_switch(monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    answering(monkeypatch, answer, "Traceback\nOSError: no tokenizer")
    assert chat_template.check(release()) == {"chat_template": ["not checked: OSError: no tokenizer"]}


def test_a_tokenizer_that_is_not_transformers_own_is_not_looked_at() -> None:
    (note,) = chat_template.check(release("--tokenizer-mode", "mistral"))["chat_template"]
    assert note.startswith("not checked")
