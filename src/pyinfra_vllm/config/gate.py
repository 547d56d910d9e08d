"""The settings of a service's gate, as declared: names, types and defaults are those of the host."""

from __future__ import annotations

import dataclasses
import typing
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, create_model, model_validator

from ..on_host.bench.criteria import Criteria
from ..on_host.bench.questions import QuestionsError, load
from .base import Declaration
from .fields import Text, as_tuple
from .problems import ItemError

_WORDS = {
    "bool": "true or false",
    "dict[str, float]": 'a map of names to finite numbers, like {"c1": 30}',
    "float": "a finite number",
    "int": "a whole number",
    "str": "text",
    "tuple[int, ...]": "a list of whole numbers",
    "tuple[int | str, ...]": 'a list of whole numbers and "max"',
    "dict[str, dict[str, float | None]]": (
        'a map of phases to metrics and shares, like {"c1": {"ttft_s": 0.8}}'
    ),
}


def _words(kind: str) -> str:
    base = kind.removesuffix(" | None")
    return _WORDS.get(base, f"of type {base}") + (" or None" if base != kind else "")


def _gate_fields() -> dict[str, Any]:
    """`Criteria`, field by field: the host owns the names, types and defaults; this only reads them."""
    hints = typing.get_type_hints(Criteria)
    checked = {str: Text, str | None: Text | None}
    made: dict[str, Any] = {}
    for item in dataclasses.fields(Criteria):
        hint = checked.get(hints[item.name], hints[item.name])
        if any(typing.get_origin(each) is tuple for each in (hint, *typing.get_args(hint))):
            hint = Annotated[hint, BeforeValidator(as_tuple)]
        default = item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
        made[item.name] = (hint, Field(default, description=_words(str(item.type))))
    return made


class _Gate(Declaration):
    def criteria(self) -> Criteria:
        """The criteria of the host's gate."""
        return Criteria(**{name: getattr(self, name) for name in type(self).model_fields})

    @model_validator(mode="before")
    @classmethod
    def _none_where_it_means_nothing(cls, values: Any) -> Any:
        """`None` removes a setting that cannot be None itself."""
        if not isinstance(values, dict):
            return values
        nullable = {
            name
            for name, hint in typing.get_type_hints(Criteria).items()
            if type(None) in typing.get_args(hint)
        }
        return {key: value for key, value in values.items() if value is not None or key in nullable}

    @model_validator(mode="after")
    def _usable(self) -> Self:
        criteria = self.criteria()
        if criteria.quality_prompts is not None:  # read here and now: a wave must not stumble over it
            try:
                load(criteria.quality_prompts)
            except QuestionsError as error:
                raise ItemError("quality_prompts", str(error)) from error
        return self


if typing.TYPE_CHECKING:
    Gate = _Gate
else:
    Gate = create_model("Gate", __base__=_Gate, **_gate_fields())
