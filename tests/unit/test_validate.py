"""`pyinfra-vllm validate`: everything wrong with a declaration, each cause once, and nobody is asked."""

from __future__ import annotations

import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import pytest

from pyinfra_vllm.catalog import shapes, table
from pyinfra_vllm.checkpoint import Checkpoint, File, Lock
from pyinfra_vllm.commands.validate import run as examine
from pyinfra_vllm.commands.validate import sentences

FORTY = "h200 = [" + ", ".join(f'"gpu-{number:02d}.invalid"' for number in range(1, 41)) + "]\n"
MODEL = "Qwen/Qwen3-32B-AWQ"
SERVICE: dict[str, Any] = {
    "model": MODEL,
    "runtime": {"version": "0.33.0"},
    "port": 8000,
    "gpu": "NVIDIA H200",
    "gpus": [0],
    "max_model_len": 8192,
}
CONFIG = {
    **table("models.yaml")["models"]["Qwen/Qwen3-32B"]["config"],
    "quantization_config": shapes.AWQ,
    "torch_dtype": "float16",
}
NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of forty hosts that is right, and a network that must not be used."""
    monkeypatch.chdir(tmp_path)
    for folder in ("inventory", "group_data"):
        Path(folder).mkdir()
    Path("inventory/mine.py").write_text(FORTY)
    declare()
    file = File(path="model.safetensors", size=19_300_000_000, sha256="c" * 64)
    Lock([Checkpoint(repo=MODEL, revision="main", commit="a" * 40, files=(file,), config=CONFIG)]).dump()

    def no_network(*words: Any, **more: Any) -> NoReturn:
        raise AssertionError(f"validate must ask nobody: {words}")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    return tmp_path


def declare(place: str = "mine", **settings: Any) -> None:
    Path(f"group_data/{place}.py").write_text(f"services = {{'chat': { ({**SERVICE, **settings})!r}}}\n")


WINDOW = {"cron": "0 2 * * *", "duration": "3h", "timezone": "Europe/Berlin"}
PROBLEMS: dict[str, tuple[dict[str, Any], str, str]] = {
    "form": ({"prot": 1}, "services.chat.prot", 'did you mean "port"?'),
    "a loader of weights that aren't locked": (
        {"flags": {"load-format": "mistral"}},
        f"{MODEL}@main",
        "loads nothing else",
    ),
    "a misspelt flag": (
        {"flags": {"max-num-seq": 8}},
        "services.chat.flags.--max-num-seq",
        "did you mean --max-num-seqs?",
    ),
    "a flag's value": ({"flags": {"max-num-seqs": "many"}}, "services.chat.flags.--max-num-seqs", "must be"),
    "a card that nobody makes": ({"gpu": "NVIDIA H2000"}, "services.chat.gpu", "not in the catalog. Nearest"),
    "a model too large": (
        {"gpu": "NVIDIA GeForce RTX 4090", "max_model_len": 40960},
        "services.chat.model",
        "doesn't fit on 1 x",
    ),
    "a model too large for any number of cards": (
        {"gpu": "NVIDIA GeForce RTX 4090", "gpus": None, "flags": {"gpu-memory-utilization": 0.05}},
        "services.chat.model",
        "doesn't fit",
    ),
    "a window too short": (
        {"window": {**WINDOW, "duration": "10m"}},
        "services.chat.window",
        "is never open for longer than 10m",
    ),
    "a window that a deny window cuts short": (
        {"window": [WINDOW, {**WINDOW, "cron": "30 2 * * *", "deny": True}]},
        "services.chat.window",
        "is never open for longer than 30m",
    ),
    "a window that is denied for ever": (
        {"window": [WINDOW, {**WINDOW, "cron": "0 1 * * *", "duration": "5h", "deny": True}]},
        "services.chat.window",
        "never opens again",
    ),
    "a hook's syntax": (
        {"hooks": {"notify": "notify-me"}},
        "services.chat.hooks.notify",
        "must be an http(s) URL",
    ),
    "a model that is not locked": (
        {"model": "Qwen/Qwen3-32B-AQW"},
        "Qwen/Qwen3-32B-AQW@main",
        f'did you mean "{MODEL}"?',
    ),
}


@pytest.mark.thorough
@pytest.mark.parametrize(("settings", "key", "says"), PROBLEMS.values(), ids=PROBLEMS)
def test_what_is_wrong_is_told_once_for_all_hosts(settings: dict[str, Any], key: str, says: str) -> None:
    assert examine("inventory/mine.py", at=NOW).problems == ()
    declare(**settings)
    (problem,) = examine("inventory/mine.py", at=NOW).problems
    assert problem.key == key and says in problem.fix
    assert len(problem.hosts) == 40


def test_several_mistakes_are_told_together_and_in_few_lines(run: Any) -> None:
    declare(flags={"max-num-seq": 8}, window={**WINDOW, "duration": "10m"}, gpu="NVIDIA H2000")
    told = run("validate", "inventory/mine.py")
    assert told.code == 2
    for says in ("--max-num-seqs", "is never open for longer", "NVIDIA H2000"):
        assert says in told.out
    lines = told.out.splitlines()
    assert lines[0] == "inventory/mine.py has 3 problems (40 hosts):"
    assert lines.count("    on all 40 hosts") == 3 and len(lines) <= 20
    assert max(map(len, lines)) <= 80


def test_a_mistake_of_some_hosts_names_them() -> None:
    Path("inventory/mine.py").write_text(FORTY + 'few = ["gpu-01.invalid", "gpu-07.invalid"]\n')
    declare("few", flags={"max-num-seq": 8})
    result = examine("inventory/mine.py", at=NOW)
    (problem,) = result.problems
    assert problem.source == "group_data/few.py"
    assert "    on gpu-01.invalid, gpu-07.invalid" in sentences(result, "inventory/mine.py", 80)


def test_two_services_on_one_port_are_one_problem_of_forty_hosts() -> None:
    code = {**SERVICE, "gpus": [1]}
    Path("group_data/mine.py").write_text(f"services = {{'chat': {SERVICE!r}, 'code': {code!r}}}\n")
    (problem,) = examine("inventory/mine.py", at=NOW).problems
    assert "already the port of service" in problem.fix and len(problem.hosts) == 40


def test_the_json_is_the_contract_of_the_design(run: Any) -> None:
    declare(flags={"max-num-seq": 8})
    told = run("validate", "inventory/mine.py", "--json")
    (problem,) = told.json["problems"]
    assert told.code == 2 and set(problem) == {"file", "key", "value", "fix", "hosts"}
    assert (problem["file"], problem["value"]) == ("group_data/mine.py", "8")
    assert problem["hosts"][0] == "gpu-01.invalid" and len(problem["hosts"]) == 40
    Path("group_data/mine.py").write_text("services = {")
    told = run("validate", "inventory/mine.py", "--json")
    assert told.code == 2 and "group_data/mine.py, line 1" in told.json["problems"][0]["fix"]


def test_a_file_that_python_can_not_run_is_the_one_that_is_named(run: Any) -> None:
    Path("group_data/mine.py").write_text("services = 1 / 0\n")
    ended = run("validate", "inventory/mine.py", "--json")
    (problem,) = ended.json["problems"]
    assert (ended.code, problem["file"]) == (2, "group_data/mine.py")
    assert problem["fix"].startswith("group_data/mine.py, line 1: ZeroDivisionError")


def test_what_an_inventory_prints_is_not_in_the_answer(run: Any) -> None:
    Path("inventory/mine.py").write_text(f'print("looking hosts up")\n{FORTY}')
    ended = run("validate", "inventory/mine.py", "--json")
    assert ended.json["problems"] == [] and "looking hosts up" in ended.err


def test_a_declaration_that_is_right_says_what_comes_next(run: Any) -> None:
    told = run("validate", "inventory/mine.py")
    assert told.code == 0, told.out
    assert told.out.splitlines()[-1] == "Next: `pyinfra-vllm plan inventory/mine.py`"


def test_what_only_hosts_can_tell_is_said() -> None:
    declare(runtime={"path": "/opt/vllm"}, flags={"max-num-seq": 8})
    result = examine("inventory/mine.py", at=NOW)
    assert result.problems == () and result.unchecked == (
        "the flags of chat: its vLLM is the one at runtime.path",
    )


@pytest.mark.parametrize("text", ["", "not: [a, lock"])
def test_a_missing_or_broken_lock_names_the_command_for_this_inventory(text: str) -> None:
    Path("checkpoints.lock.yaml").unlink()
    if text:
        Path("checkpoints.lock.yaml").write_text(text)
    (problem,) = examine("inventory/mine.py", at=NOW).problems
    assert problem.source == "checkpoints.lock.yaml"
    assert "`pyinfra-vllm lock inventory/mine.py`" in problem.fix


def test_an_entry_of_the_lock_that_is_wrong_is_named(run: Any) -> None:
    file = Path("checkpoints.lock.yaml")
    file.write_text(file.read_text().replace("a" * 40, "main"))
    ended = run("validate", "inventory/mine.py", "--json")
    (problem,) = ended.json["problems"]
    assert (ended.code, problem["file"], problem["key"]) == (2, str(file), f"{MODEL}@main")
    assert problem["fix"].startswith("commit must be 40 lower-case hex digits (found 'main')")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("statsu",), 'statsu: unknown command; did you mean "status"?'),
        (("inventory/mine.py", "status"), "the command comes first: `pyinfra-vllm status inventory/mine.py`"),
        (("validate", "deploy.py"), "comes first: `pyinfra inventory/mine.py deploy.py`"),
        (
            ("validate", "inventory/mnie.py"),
            "no inventory inventory/mnie.py; did you mean inventory/mine.py?",
        ),
        (("validate", "inventory/mine"), "no inventory inventory/mine; did you mean inventory/mine.py?"),
        (
            ("validate", "inventory/mine.yml"),
            "is a Python file with lists of hosts; did you mean inventory/mine.py?",
        ),
        (("validate", "inventory"), "is a folder; name one of its files; did you mean inventory/mine.py?"),
        (
            ("validate", "group_data/mine.py"),
            "is group data, not an inventory; did you mean inventory/mine.py?",
        ),
        (
            ("resolve", "--model", "qwen/qwen3-32b-aqw", "--gpu", "NVIDIA H200", "--runtime", "0.33.0"),
            "model 'qwen/qwen3-32b-aqw' is not in the catalog; did you mean Qwen/Qwen3-32B-AWQ?",
        ),
    ],
)
def test_a_slip_on_the_command_line_gets_the_nearest_right_one(
    run: Any, words: tuple[str, ...], says: str
) -> None:
    told = run(*words)
    assert told.code == 2
    assert says in told.err


def test_standby_is_warned_of_as_untried_and_where_it_cant_be_had() -> None:
    assert not any("standby" in warning for warning in examine("inventory/mine.py", at=NOW).warnings)
    declare(standby=True)
    (untried,) = (text for text in examine("inventory/mine.py", at=NOW).warnings if "standby" in text)
    assert untried.startswith("chat: standby: this project has tried it on one GPU with one model")
    declare(standby=True, flags={"api-server-count": 2})
    warnings = examine("inventory/mine.py", at=NOW).warnings
    assert any("standby: no, because --api-server-count 2" in text for text in warnings)
    declare(standby="yes")
    (problem,) = examine("inventory/mine.py", at=NOW).problems
    assert problem.key == "services.chat.standby"
    assert problem.fix.startswith("must be true or false")
