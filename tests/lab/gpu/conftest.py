"""Stories on real GPUs: `make test-gpu`, or a part of them by `-k` in a lab of its own (docs/gpu.md)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import control, gpus


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = gpus.missing()
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            item.add_marker(pytest.mark.timeout(3600))
            if missing:
                item.add_marker(pytest.mark.skip(reason="; ".join(missing)))


@pytest.fixture(autouse=True)
def own_lock_file() -> Iterator[None]:
    with control.own_lock_file():
        yield
