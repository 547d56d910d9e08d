"""Files that come with the package: beside its modules where it is installed, else in the checkout."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).resolve()
# In a wheel (pyproject.toml puts them there), then in a checkout.
PLACES = (_HERE.parent / "shipped_files", _HERE.parents[2])


def text(name: str, *first: Path) -> str:
    """The text of a file by its name in the repository, such as `deploy.py` or `templates/vllm.service.j2`.

    + first: folders of a project, whose own file counts
    """
    places = (*first, *PLACES)
    for place in places:
        if (place / name).is_file():
            return (place / name).read_text(encoding="utf-8")
    raise FileNotFoundError(f"no {name} in {', '.join(map(str, places))}")
