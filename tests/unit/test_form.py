"""The form of answers: blank, loops, noise, parts of a chat template."""

from __future__ import annotations

import pytest

from pyinfra_vllm.on_host.bench.form import BLANK, LOOP, NOISE, TEMPLATE, defects


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", [BLANK]),
        (" \n", [BLANK]),
        ("!" * 40, [LOOP]),
        ("the cat the cat the cat the cat the cat the cat the cat", [LOOP]),
        ("はいはいはいはいはいはいはいはいはいはいはいはいはい", [LOOP]),
        ("I see a red door and a red door and " * 8 + "then I stop.", [LOOP]),
        ("\ufffd\ufffdab\ufffd", [NOISE]),
        ("aдע한ไb", [NOISE]),
        ("assistant\nThe answer is 42.", [TEMPLATE]),
        ("assistant", [TEMPLATE]),
        ("Assistant: Tokyo", [TEMPLATE]),
        ("userWhat is this?", [TEMPLATE]),
        ("Tokyo<|im_end|>", [TEMPLATE]),
        ("[INST] Tokyo [/INST]", [TEMPLATE]),
        ("Assistants help people.", []),
        ("An assistant: someone who helps.", []),
        ("User interfaces are for people.", []),
        ("山山山", []),
        ("1 2 3 4 5", []),
        ("xxx", []),
        ("The answer is 42.", []),
        ("東京タワーは333メートルです。", []),
    ],
)
def test_defects(text: str, found: list[str]) -> None:
    assert defects(text) == found
