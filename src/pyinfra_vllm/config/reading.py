"""Turns pydantic's complaints about a model into problems that name file, key, value and what is allowed."""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from .base import Declaration
from .layers import ABSENT, Path, lookup
from .problems import MISSING, ItemError, Problems, unknown

Model = TypeVar("Model", bound=BaseModel)
Locate = Callable[[Path], tuple[str, str]]


def read(model: type[Model], values: Mapping[str, Any], problems: Problems, locate: Locate) -> Model | None:
    """The model, or None with every problem added. `locate` gives the file and dotted key of a path."""
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        seen: set[Path] = set()
        for complaint in error.errors(include_url=False, include_context=True):
            path = _declared_path(complaint["loc"], values)
            cause = complaint.get("ctx", {}).get("error")
            if isinstance(cause, ItemError):
                path = (*path, cause.item)
            if path in seen:
                continue  # one line for a value, however many of its allowed types it misses
            seen.add(path)
            source, key = locate(path)
            value = lookup(values, path)
            message = _message(model, complaint, path)
            problems.add(source, key, message, MISSING if value is ABSENT or path == ("name",) else value)
        return None


def _declared_path(loc: Path, values: Mapping[str, Any]) -> Path:
    """Pydantic's location without steps that the operator never wrote (a union's member, a list of one)."""
    path: list[int | str] = []
    at: Any = values
    for index, step in enumerate(loc):
        below = lookup(at, (step,))
        if below is not ABSENT:
            path.append(step)
            at = below
        elif index == len(loc) - 1 and isinstance(step, str) and isinstance(at, Mapping):
            path.append(step)  # a key that is missing
    return tuple(path)


def _message(model: type[BaseModel], complaint: Mapping[str, Any], path: Path) -> str:
    kind = complaint["type"]
    owner = _owner(model, path)
    if kind == "extra_forbidden":
        return unknown("key", str(path[-1]), _keys(owner))
    field = _field(owner, path)
    if kind == "missing":
        return f"missing; must be {field.description if field else 'given'}"
    if kind == "value_error":
        return str(complaint["ctx"]["error"])
    if field is not None and field.description:
        return f"must be {field.description}"
    if kind == "model_type":
        return f"must be a map of {', '.join(_keys(owner))}"
    return str(complaint["msg"]).lower()


def _owner(model: type[BaseModel], path: Path) -> type[BaseModel]:
    """The model that the last step of the path is a key of."""
    for step in path[:-1]:
        field = _by_key(model).get(step)
        model = (_model_in(field.annotation) if field else None) or model
    return model


def _model_in(hint: Any) -> type[BaseModel] | None:
    """The declaration that a type is, or has as its items or as one of its choices."""
    if isinstance(hint, type) and issubclass(hint, Declaration):
        return hint
    return next(filter(None, map(_model_in, typing.get_args(hint))), None)


def _by_key(model: type[BaseModel]) -> dict[int | str, FieldInfo]:
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _keys(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items() if name != "name"]


def _field(owner: type[BaseModel], path: Path) -> FieldInfo | None:
    """The field of `owner` that the path goes through last."""
    by_key = _by_key(owner)
    for step in reversed(path):
        if isinstance(step, str) and step in by_key:
            return by_key[step]
    return None
