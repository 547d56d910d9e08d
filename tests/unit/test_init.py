"""`init`: a project that is valid as it is written, of what the package ships; nothing is overwritten."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from pyinfra_vllm import fleet, shipped
from pyinfra_vllm.checkpoint import Checkpoint, File, Lock
from pyinfra_vllm.cli import cli
from pyinfra_vllm.commands import init

REPOSITORY = Path(__file__).parents[2]


def entry(repo: str) -> Checkpoint:
    files = tuple(File(path=path, size=1, sha256="0" * 64) for path in ("config.json", "model.safetensors"))
    return Checkpoint(
        repo=repo, revision="main", commit="0" * 40, files=files, config={"model_type": "qwen3"}
    )


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_project_is_valid_as_it_is_written(run: Any) -> None:
    ended = run("init", "--host", "gpu-1.invalid", "--host", "@local", "--model", "Qwen/Qwen3-8B-AWQ")
    assert ended.code == 0
    found = fleet.load(init.INVENTORY, need_lock=False)
    assert list(found.hosts) == ["gpu-1.invalid", "@local"]
    (service,) = found.hosts["@local"].services
    assert (service.name, service.model, service.port, service.bind) == (
        "chat",
        "Qwen/Qwen3-8B-AWQ",
        8000,
        "127.0.0.1",
    )
    assert service.window and not found.warnings


def test_its_programs_are_the_repositorys_own(run: Any) -> None:
    run("init")
    for name in init.AS_THEY_ARE:
        assert Path(name).read_bytes() == (REPOSITORY / name).read_bytes()


def test_several_models_have_cards_and_ports_of_their_own(run: Any) -> None:
    run("init", "--host", "a.invalid", "--model", "Qwen/Qwen3-8B-AWQ", "--model", "org/Other_Model.v2")
    one, two = fleet.load(init.INVENTORY, need_lock=False).hosts["a.invalid"].services
    assert [(each.name, each.port, each.gpus) for each in (one, two)] == [
        ("qwen3-8b-awq", 8000, (0,)),
        ("other-model-v2", 8001, (1,)),
    ]


def test_it_says_the_next_three_commands(run: Any) -> None:
    ended = run("init", "my fleet")
    commands = [line.strip().split("  ")[0] for line in ended.out.splitlines() if line.startswith("    ")]
    assert commands == ["cd 'my fleet'", *(f"{words}" for words in init.following(Path()))]
    assert len(init.following(Path())) == 3
    assert run("init", "other", "--json").json["next"][0] == "cd other"


def test_nothing_is_overwritten(run: Any, empty: Path) -> None:
    Path("deploy.py").write_text("mine")
    ended = run("init")
    assert ended.code == 2 and "deploy.py in . would be overwritten. Nothing was written" in ended.err
    assert [path.name for path in empty.iterdir()] == ["deploy.py"]


@pytest.mark.parametrize(
    "words",
    [
        ("--host", "a'b"),
        ("--host", "-x"),
        ("--model", "nothing"),
        ("--model", "a/b\nimport os"),
        ("--model", "a/same", "--model", "b/Same"),
    ],
)
def test_a_name_that_can_be_none_is_refused_before_anything_is_written(
    run: Any, empty: Path, words: tuple[str, ...]
) -> None:
    ended = run("init", *words)
    assert ended.code == 2 and "Nothing was written" in ended.err
    assert not list(empty.iterdir())


def test_a_project_that_can_not_be_whole_is_not_begun(run: Any, empty: Path) -> None:
    (empty / "inventory").write_text("")
    ended = run("init")
    assert ended.code == 2 and "inventory can't be written: File exists. Nothing was written." in ended.err
    assert [path.name for path in empty.iterdir()] == ["inventory"]
    (empty / "inventory").unlink()
    assert run("init").code == 0


def test_it_has_about_a_dozen_lines_of_settings(run: Any) -> None:
    run("init")
    settings = [
        line
        for line in Path("group_data/prod.py").read_text().splitlines()
        if line.strip() and not line.strip().startswith("#")
    ]
    assert len(settings) <= 16


def calls(script: str) -> list[list[str]]:
    """The words of each call of our command in a script of the project."""
    return [shlex.split(line)[1:] for line in Path(script).read_text().splitlines() if line[:8] == "pyinfra-"]


def test_ci_checks_the_declaration_and_shows_the_plan(run: Any) -> None:
    run("init")
    assert [words[0] for words in calls(".ci/check")] == ["validate"]
    assert [words[0] for words in calls(".ci/plan")] == ["plan"]
    for name, *words in (*calls(".ci/check"), *calls(".ci/plan")):
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        assert command.make_context(name, words).params["inventory"] == init.INVENTORY


def in_ci(script: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    return subprocess.run(
        ["sh", script], env={"PATH": path, "HOME": "/"}, capture_output=True, text=True, check=False
    )


@pytest.mark.thorough
def test_what_ci_runs_passes_a_new_project_and_stops_a_broken_one(run: Any) -> None:
    run("init", "--host", "gpu-1.invalid", "--model", "Qwen/Qwen3-14B-AWQ")
    missing = in_ci(".ci/check")
    assert missing.returncode == 2 and f"pyinfra-vllm lock {init.INVENTORY}" in missing.stdout
    Lock([entry("Qwen/Qwen3-14B-AWQ")]).dump()
    done = in_ci(".ci/check")
    assert done.returncode == 0 and f"{init.INVENTORY} is valid: 1 host." in done.stdout, done.stderr
    settings = Path("group_data/prod.py")
    settings.write_text(settings.read_text().replace('"port": 8000', '"port": 80000'))
    broken = in_ci(".ci/check")
    assert broken.returncode == 2 and "port" in broken.stdout + broken.stderr
    assert in_ci(".ci/plan").returncode == 2, "no host is asked about an invalid declaration"


def test_a_projects_own_file_counts_first(empty: Path) -> None:
    (empty / "templates").mkdir()
    (empty / "templates" / "vllm.service.j2").write_text("mine")
    assert shipped.text("templates/vllm.service.j2", empty) == "mine"
    assert shipped.text("templates/vllm.service.j2").startswith("# Written by pyinfra-vllm")
    with pytest.raises(FileNotFoundError, match=r"no nothing\.txt in"):
        shipped.text("nothing.txt")


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pyinfra_vllm", "--version"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and done.stdout.startswith("pyinfra-vllm, version ")


@pytest.mark.thorough
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_are_told_how_to_complete(shell: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from pyinfra_vllm.cli import main; main()"],
        env={"PATH": "/usr/bin:/bin", "_PYINFRA_VLLM_COMPLETE": f"{shell}_source"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and "pyinfra-vllm" in done.stdout, done.stderr
