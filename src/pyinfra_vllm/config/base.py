"""The base of every declared object: frozen, strict (text is no number), no unknown keys, numbers end."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Declaration(BaseModel):
    """A field's description says what is allowed; messages quote it."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        arbitrary_types_allowed=True,
        hide_input_in_errors=True,
    )
