"""The question put to a release's own vLLM: the unit that it runs in, and the answer that is believed."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from resolving import resolve

from pyinfra_vllm import release as rendered
from pyinfra_vllm.on_host.server.release import Release
from pyinfra_vllm.on_host.staging import rehearsal
from pyinfra_vllm.on_host.staging.rehearsal import Answer, NotAsked

ACCEPTS = {
    "asked": True,
    "reason": "",
    "error": None,
    "derived": {"dtype": "torch.float16", "max_model_len": 512, "max_num_seqs": 128},
    "warnings": ["Unknown vLLM environment variable detected: VLLM_FOO", "slow"],
    "seconds": 12.5,
    "memory_bytes": 640_000_000,
}


def made(**changes: Any) -> rendered.Release:
    values: dict[str, Any] = {
        "service": "chat",
        "root": "/srv/pyinfra-vllm",
        "user": "vllm",
        "bind": "127.0.0.1",
        "port": 8000,
        "served_model_name": "org/model",
        "argv": ("/opt/v/bin/vllm", "serve", "/srv/x", "--hf-overrides", '{"a": "50 % of $x"}'),
        "environment": {"HOME": "/srv/pyinfra-vllm/chat/cache"},
        "checkpoint": {"repo": "org/model", "revision": "main", "commit": "a" * 40, "directory": "/srv/x"},
        "runtime": {"version": "0.33.0", "path": "/opt/v"},
        "stop_limit_s": 60,
        "gpu_count": 1,
        "secrets": {"VLLM_API_KEY": "s3cret"},
    }
    return rendered.Release(**{**values, **changes})


def question(release: rendered.Release, text: str | None = None) -> dict[str, list[str]]:
    """The [Service] settings of the question's unit by key."""
    files = release.files()
    run = Path("/run/pyinfra-vllm")
    unit = rehearsal.unit_text(
        text or files["vllm.service"],
        Release(json.loads(files["release.json"])),
        run / "p.py",
        run / "p.answer",
        run / "p.env",
    )
    found: dict[str, list[str]] = {}
    for section, key, value in rehearsal.settings(unit):
        assert section in ("Unit", "Service")
        found.setdefault(key, []).append(value)
    return found


def test_the_question_has_the_servers_command_line_user_and_sandbox() -> None:
    release = made()
    asked = question(release)
    server = dict.fromkeys(key for _, key, _ in rehearsal.settings(release.files()["vllm.service"]))
    (words,) = asked["ExecStart"]
    (served,) = [
        value for _, key, value in rehearsal.settings(release.files()["vllm.service"]) if key == "ExecStart"
    ]
    assert words == served.replace('"/opt/v/bin/vllm"', '"/opt/v/bin/python" -')
    assert asked["User"] == ["vllm"] and asked["DevicePolicy"] == ["closed"]
    sandbox = [
        key for key in server if re.match("Protect|Restrict|Private|System|Capability|NoNew|Device", key)
    ]
    assert len(sandbox) > 15 and set(sandbox) <= set(asked)


def test_the_question_has_no_secret_and_touches_nothing_of_the_server() -> None:
    asked = question(made())
    assert asked["EnvironmentFile"] == ["/run/pyinfra-vllm/p.env"]
    assert not {
        "Restart",
        "BindPaths",
        "ExecStartPre",
        "WantedBy",
        "OOMScoreAdjust",
        "UnsetEnvironment",
    } & set(asked)
    assert asked["Type"] == ["oneshot"] and asked["Nice"] == ["10"]
    assert asked["StandardError"] == ["journal"]


def test_a_template_that_starts_something_else_is_not_asked() -> None:
    release = made()
    text = release.files()["vllm.service"].replace("/opt/v/bin/vllm", "/usr/local/bin/wrapper")
    with pytest.raises(NotAsked, match="does not start /opt/v/bin/vllm"):
        question(release, text)


def test_a_template_with_a_wrapper_before_vllm_is_asked_through_it() -> None:
    release = made()
    text = release.files()["vllm.service"].replace('ExecStart="', 'ExecStart=/usr/bin/numactl -N 0 "')
    assert question(release, text)["ExecStart"][0].startswith(
        '/usr/bin/numactl -N 0 "/opt/v/bin/python" - "serve"'
    )


def answered(folder: Path, content: Any) -> Answer | None:
    path = folder / "answer"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return rehearsal.read_answer(path)


def test_an_answer_is_read(tmp_path: Path) -> None:
    accepted = answered(tmp_path, ACCEPTS)
    assert accepted is not None and accepted.outcome == "accepted" and accepted.memory_bytes == 640_000_000
    refused = answered(tmp_path, {**ACCEPTS, "error": "max_num_seqs: too small"})
    assert refused is not None and (refused.outcome, refused.reason) == ("refused", "max_num_seqs: too small")
    unasked = answered(tmp_path, {**ACCEPTS, "asked": False, "reason": "another version"})
    assert unasked is not None and (unasked.outcome, unasked.reason) == ("not asked", "another version")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "null",
        "[" * 60_000,
        '{"asked": true}',
        {**ACCEPTS, "derived": []},
        {**ACCEPTS, "seconds": None},
        {**ACCEPTS, "warnings": 3},
        {**ACCEPTS, "reason": "x" * 100_000, "asked": False},
    ],
)
def test_invalid_answer_counts_as_not_asked(tmp_path: Path, content: Any) -> None:
    assert answered(tmp_path, content) is None


def test_what_is_kept_of_an_answer_is_bounded(tmp_path: Path) -> None:
    much = {**ACCEPTS, "derived": {str(n): ["x" * 700] for n in range(60)}, "warnings": ["y" * 5000] * 3}
    kept = answered(tmp_path, much)
    assert kept is not None and kept.derived is not None and len(kept.derived) == 50
    assert all(len(line) <= 600 for line in [*kept.warnings, *map(str, kept.derived.values())])


@pytest.mark.thorough
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(),
        lambda v: st.lists(v) | st.dictionaries(st.text(), v),
    )
)
def test_any_value_is_an_answer_or_none(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    told = {**ACCEPTS, "derived": value, "warnings": value, "error": value}
    found = answered(tmp_path_factory.mktemp("any"), told)
    assert found is None or (found.outcome in ("accepted", "refused") and json.dumps(found.document()))


def test_the_operator_is_told() -> None:
    release = Release(json.loads(made().files()["release.json"]))
    line = rehearsal.told(
        Answer(
            "accepted",
            "",
            {"dtype": "torch.float16", "max_model_len": 512},
            ("Unknown vLLM environment variable detected: VLLM_FOO",),
            12.4,
            640_000_000,
        ),
        release,
    )
    assert line == (
        f"vLLM 0.33.0 accepts release {release.id}: dtype torch.float16, max_model_len 512"
        "; it ignores VLLM_FOO (12 s, 0.6 GB of host memory)"
    )
    unasked = rehearsal.told(dataclasses.replace(Answer("not asked", "no module vllm.x")), release)
    assert unasked.endswith(
        f"was not asked (no module vllm.x): only the catalog checked release {release.id}"
    )


PREDICTED = {
    "dtype": "half",
    "quantization": "awq",
    "max_model_len": 2048,
    "kv_cache_dtype": "fp8",
    "tensor_parallel_size": 1,
}


@pytest.mark.parametrize(
    ("derived", "disagreements"),
    [
        ({"dtype": "torch.float16", "quantization": "awq_marlin", "kv_cache_dtype": "fp8_e4m3"}, ()),
        ({"quantization": "auto_awq", "max_model_len": 2048, "tensor_parallel_size": 1}, ()),
        (
            {"dtype": "torch.bfloat16", "max_model_len": 1024, "quantization": "awq"},
            ("dtype torch.bfloat16 (predicted: half)", "max_model_len 1024 (predicted: 2048)"),
        ),
        ({"dtype": "torch.float16"}, ("quantization none (predicted: awq)",)),
    ],
)
def test_a_disagreement_with_the_prediction_is_named(
    derived: dict[str, Any], disagreements: tuple[str, ...]
) -> None:
    answer = Answer("accepted", derived=derived)
    assert rehearsal.disagreements(answer, PREDICTED) == disagreements
    assert rehearsal.disagreements(Answer("refused", derived=derived), PREDICTED) == ()


def test_no_prediction_is_no_disagreement() -> None:
    """A release that was staged before there were any."""
    answer = Answer("accepted", derived={"dtype": "torch.float16", "quantization": "awq"})
    assert rehearsal.disagreements(answer, {}) == ()


def test_a_disagreement_is_told_and_kept() -> None:
    release = Release(json.loads(made(predicted=PREDICTED).files()["release.json"]))
    assert release.predicted == PREDICTED
    differs = "max_model_len 1024 (predicted: 2048)"
    answer = Answer("accepted", derived={"max_model_len": 1024}, disagreements=(differs,))
    assert rehearsal.told(answer, release).endswith(f"; not as the catalog predicted: {differs}")
    assert answer.document()["disagreements"] == [differs]


def test_the_prediction_is_the_resolver_s() -> None:
    found = resolve(gpu="L40S", max_model_len=4096, variants=["fp8_kv_cache"])
    assert found.predicted == {
        "dtype": "float16",
        "quantization": "awq",
        "max_model_len": 4096,
        "kv_cache_dtype": "fp8",
        "max_num_seqs": 256,
        "max_num_batched_tokens": 2048,
        "tensor_parallel_size": 1,
        "pipeline_parallel_size": 1,
    }
