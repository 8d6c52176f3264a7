"""What all groups of knobs share: they are frozen, the text under a knob is its help, and an error is one line."""

from __future__ import annotations

import difflib
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A frozen group of knobs; unknown names are errors, and the text under a knob is its help."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


AnySection = TypeVar("AnySection", bound=Section)


def parse(section: type[AnySection], values: dict[str, Any]) -> AnySection:
    """Validate a nested dict of knobs; raises ValueError with one line for the first thing that is wrong."""
    try:
        return section.model_validate(values)
    except ValidationError as error:
        raise ValueError(_one_line(error, list(knobs(section)))) from None


def knobs(section: type[Section], prefix: str = "") -> dict[str, str]:
    """Every dotted knob with its help text, in the order in which they are declared."""
    found: dict[str, str] = {}
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            found |= knobs(field.annotation, f"{prefix}{name}.")
        else:
            found[prefix + name] = " ".join((field.description or "").split())
    return found


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted form of a nested dict of knobs."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def replace_dotted(values: dict[str, Any], key: str, value: Any, known: list[str]) -> None:
    """Replace one dotted knob in a nested dict; raises ValueError if it leads to none of the `known`."""
    *sections, last = key.split(".")
    for name in sections:
        if not isinstance(values.get(name), dict):
            raise ValueError(_unknown(key, known))
        values = values[name]
    values[last] = value


def nearest(word: str, known: list[str]) -> str:
    """The known word most like `word`, as the end of an error message, and all of them when there are few."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    hint = f"Did you mean {close[0]!r}?" if close else ""
    return " ".join(filter(None, [hint, f"Known: {', '.join(known)}." if len(known) <= 12 else ""]))


def _unknown(key: str, known: list[str]) -> str:
    return f"unknown config key {key!r}. {nearest(key, known)}".strip()


def _one_line(error: ValidationError, known: list[str]) -> str:
    first = error.errors()[0]
    key = ".".join(part for part in first["loc"] if isinstance(part, str))
    if first["type"] == "extra_forbidden":
        return _unknown(key, known)
    message = first["msg"].removeprefix("Value error, ")
    expected = message[0].lower() + message[1:]
    if first["type"] == "literal_error" and isinstance(first["input"], str):
        expected += ". " + nearest(
            first["input"], [word.strip("' ") for word in first["ctx"]["expected"].replace(" or ", ", ").split(",")]
        )
    return f"{key} is {first['input']!r}: {expected.rstrip('.')}."
