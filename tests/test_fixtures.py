"""Each file under facts/ and operations/ is one case, run by pyinfra's own test generator.

A fact's command is a whole program for the host's python3, which tests/unit run for real, so fixtures state
what is made of its output.
"""

from __future__ import annotations

import unittest
from importlib import import_module
from pathlib import Path
from typing import Any

import pyinfra_testing.operations
import pyinfra_testing.util
import pytest
from pyinfra_testing.facts import make_fact_tests
from pyinfra_testing.operations import make_operation_tests

from pyinfra_vllm.answers import typed
from pyinfra_vllm.checkpoint import Checkpoint, File, Lock
from pyinfra_vllm.config import Declared, Service
from pyinfra_vllm.facts.told import Told

HERE = Path(__file__).parent
pytestmark = [
    pytest.mark.filterwarnings("ignore:No command set for test"),
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),  # the generator leaves fixtures open
]


def checkpoint(content: dict[str, Any]) -> Checkpoint:
    return Checkpoint(**{**content, "files": tuple(File(**file) for file in content["files"])})


def service(content: dict[str, Any]) -> Service:
    return Service.model_validate(content)


@pytest.fixture(autouse=True)
def default_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fixtures name the public Hub, whatever the machine that runs them uses."""
    monkeypatch.delenv("HF_ENDPOINT", raising=False)


# Fixtures hold plain data: these make of it what our operations take, by the name of the argument.
ARGUMENTS = {
    "checkpoint": checkpoint,
    "service": service,
    "lock": lambda entries: Lock(checkpoint(entry) for entry in entries),
    "declared": lambda content: Declared(
        host=content["host"], root=content["root"], services=tuple(map(service, content["services"]))
    ),
}


def arguments(operation: Any, args: list[Any], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    return args, {name: ARGUMENTS.get(name, lambda value: value)(value) for name, value in kwargs.items()}


pyinfra_testing.operations.coerce_operation_arguments = arguments

plain_fact = pyinfra_testing.util.FakeHost.get_fact


def fact(host: Any, kind: Any, *args: Any, **kwargs: Any) -> Any:
    """A fixture's fact, as the fact itself makes it of a host's JSON."""
    found = plain_fact(host, kind, *args, **kwargs)
    return typed(found, kind.kind, "the fixture") if found is not None and issubclass(kind, Told) else found


pyinfra_testing.util.FakeHost.get_fact = fact


def folders(kind: str) -> list[Path]:
    """Fixture folders named after something that is there; a folder for nothing is a mistake."""
    found = sorted(path for path in (HERE / kind).iterdir() if path.is_dir())
    for path in found:
        module, name = path.name.rsplit(".", 1)
        assert hasattr(import_module(f"pyinfra_vllm.{kind}.{module}"), name), path
    return found


def cases() -> dict[str, type[unittest.TestCase]]:
    made = {}
    for folder in folders("facts"):
        made[f"Fact_{folder.name}"] = make_fact_tests("pyinfra_vllm.facts", folder.name, folder)
    for folder in folders("operations"):
        made[f"Operation_{folder.name}"] = make_operation_tests(
            "pyinfra_vllm.operations", folder.name, folder
        )
    return {name.replace(".", "_"): case for name, case in made.items()}


globals().update(cases())
