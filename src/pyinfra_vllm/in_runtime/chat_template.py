"""The child of `on_host/staging/chat_template.py`: renders a checkpoint's chat template with the
runtime's own transformers.

It gets one line of JSON on standard input, `{"directory", "tokenizer", "template", "kwargs"}`, and prints
one, `{"problems": [...], "notes": [...]}`. It loads a tokenizer and no weights, and reaches no network.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

SYSTEM, QUESTION, ANSWER, SECOND = "Be brief-71.", "Where is it-72?", "It is here-73.", "And then-74?"
THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL)


def check(tokenizer: Any, directory: str, kwargs: dict[str, Any]) -> dict[str, list[str]]:
    """Render a few conversations and return the problems found and other notes.

    + tokenizer: has `apply_chat_template` as transformers' tokenizers have
    + kwargs: what the server gives to the template by default
    """

    def rendered(*contents: str, prompt: bool, **more: Any) -> str:
        roles = ("user", "assistant")
        messages = [{"role": roles[n % 2], "content": content} for n, content in enumerate(contents)]
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=prompt, **{**kwargs, **more}
        )
        return str(text)

    asked = rendered(QUESTION, prompt=True)
    talked = rendered(QUESTION, ANSWER, SECOND, prompt=False)
    answered = rendered(QUESTION, ANSWER, prompt=False)
    problems = [*_order(talked), *_turn(asked, answered), *_end(answered, _end_tokens(tokenizer, directory))]
    thinks = rendered(QUESTION, prompt=True, enable_thinking=True)
    quiet = rendered(QUESTION, prompt=True, enable_thinking=False)
    notes = [] if thinks == quiet else ["thinking can be switched by enable_thinking"]
    if thinks == quiet and "enable_thinking" in kwargs:
        problems.append("the template knows no enable_thinking, which default-chat-template-kwargs sets")
    return {"problems": problems, "notes": notes}


def _order(talked: str) -> list[str]:
    places = [talked.find(content) for content in (QUESTION, ANSWER, SECOND)]
    if -1 in places or places != sorted(places):
        return [f"a conversation is not rendered turn by turn, but as {talked[:200]!r}"]
    return []


def _turn(asked: str, answered: str) -> list[str]:
    """The rendered prompt must end where the answer begins, else the model has to write the start of its own
    turn.
    """
    place = answered.find(ANSWER)
    between = (
        answered[len(asked) : place] if answered.startswith(asked) else answered[:place].split(QUESTION)[-1]
    )
    if answered.startswith(asked) and not THOUGHT.sub("", between).strip():
        return []
    if (
        not answered.startswith(asked)
        and THOUGHT.sub("", asked).split() == THOUGHT.sub("", answered[:place]).split()
    ):
        return []  # thinking that is rendered only into the prompt
    return [
        f"the prompt for an answer does not end where the answer begins: {between.strip()[:80]!r} is missing"
    ]


def _end(answered: str, ends: list[str]) -> list[str]:
    after = answered.split(ANSWER)[-1].strip()
    if not after or not ends or any(after.startswith(end) for end in ends):
        return []
    return [
        (
            f"the template ends an answer with {after[:40]!r}, and the model's end tokens are"
            f" {', '.join(ends)}: answers run on"
        )
    ]


def _end_tokens(tokenizer: Any, directory: str) -> list[str]:
    """Where the server ends an answer: the tokenizer's end token, and those of generation_config.json."""
    path = Path(directory) / "generation_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    numbers = settings.get("eos_token_id", [])
    known = [
        tokenizer.eos_token,
        *tokenizer.convert_ids_to_tokens(numbers if isinstance(numbers, list) else [numbers]),
    ]
    return sorted({str(token) for token in known if token})


def main() -> None:
    order = json.loads(sys.stdin.readline())
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        print(
            json.dumps({"problems": [], "notes": [f"not checked: the runtime has no transformers ({error})"]})
        )
        return
    tokenizer = AutoTokenizer.from_pretrained(
        order["tokenizer"], local_files_only=True, trust_remote_code=False
    )
    if order["template"]:
        path = Path(order["template"])
        tokenizer.chat_template = path.read_text(encoding="utf-8") if path.is_file() else order["template"]
    if not tokenizer.chat_template:
        print(json.dumps({"problems": [], "notes": ["the checkpoint has no chat template: chat is refused"]}))
        return
    try:
        found = check(tokenizer, order["directory"], order["kwargs"])
    except Exception as error:  # whatever a template raises, every request over chat would raise it
        found = {"problems": [f"it can't be rendered: {type(error).__name__}: {error}"[:300]], "notes": []}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
