"""Reads declared windows: maps with `cron`, `duration`, `timezone`, and maybe `except` and `deny`.

An `except` item is a date, a range of dates, or the path of an `.ics` file (read here and now).
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from ..ics import closed
from ..window import Window, check_cron, parse_duration, timezone_names, zone
from .base import Declaration
from .fields import as_tuple
from .problems import nearest


def _cron(line: str) -> str:
    check_cron(line)
    return line


def _timezone(name: str) -> str:
    try:
        zone(name)
    except ValueError as error:
        meant = nearest(name, timezone_names())
        hint = f'; did you mean "{meant}"?' if meant else "; an IANA name is like Europe/Berlin"
        raise ValueError(f"unknown timezone{hint}") from error
    return name


def as_list(value: object) -> object:
    """One thing or a list of things: always a tuple."""
    return as_tuple(value) if isinstance(value, (list, tuple)) else (value,)


class DeclaredWindow(Declaration):
    """A window as it is written down."""

    cron: Annotated[str, AfterValidator(_cron)] = Field(description='a cron line like "0 2 * * *"')
    duration: Annotated[timedelta, BeforeValidator(parse_duration)] = Field(
        description='a duration like "3h", "90m" or seconds'
    )
    timezone: Annotated[str, AfterValidator(_timezone)] = Field(description="an IANA name like Europe/Berlin")
    except_: Annotated[
        tuple[Annotated[tuple[Any, ...], BeforeValidator(closed)], ...], BeforeValidator(as_list)
    ] = Field(default=(), alias="except", description="dates, ranges of dates, and paths of .ics files")
    deny: bool = Field(default=False, description="true or false")

    @model_validator(mode="after")
    def _usable(self) -> Self:
        self.window()
        return self

    def window(self) -> Window:
        """The same for `window.state`."""
        exceptions = tuple(part for parts in self.except_ for part in parts)
        return Window(self.cron, self.duration, self.timezone, exceptions, self.deny)


if TYPE_CHECKING:
    WindowField = Window
else:  # written as a DeclaredWindow, kept as a window.Window
    WindowField = Annotated[DeclaredWindow, AfterValidator(DeclaredWindow.window)]


def check_opens(windows: tuple[Window, ...]) -> tuple[Window, ...]:
    """Raises ValueError when windows only deny."""
    if windows and all(window.deny for window in windows):
        raise ValueError("has only deny windows, so it would never open; add a window without `deny`")
    return windows
