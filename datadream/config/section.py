"""What all groups of knobs share: they are frozen, the text under a knob is its help, and an error is one line."""

from __future__ import annotations

import difflib
from collections.abc import Container, Iterator
from datetime import date
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

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
        # Pydantic tells everything that is wrong at once, over many lines; the first is what people mend first.
        first = error.errors()[0]
        key = ".".join(part for part in first["loc"] if isinstance(part, str))
        if first["type"] == "extra_forbidden":
            raise ValueError(_unknown(key, list(knobs(section)))) from None
        # Of a whole section, all knobs would bury the two that disagree.
        is_section = any(name.startswith(f"{key}.") for name in knobs(section))
        said = key if is_section else f"{key} is {_shown(first['input'])}"
        raise ValueError(f"{said}: {_expected(first).rstrip('.')}.") from None


def knobs(section: type[Section], prefix: str = "") -> dict[str, str]:
    """Every dotted knob with its help text, in the order in which they are declared."""
    return {name: " ".join((field.description or "").split()) for name, field in _fields(section, prefix)}


def takes_text(section: type[Section], key: str) -> bool:
    """Whether a dotted knob holds free text, so that 2024 or "on" is text there as well."""
    types = {name: (field.annotation, *get_args(field.annotation)) for name, field in _fields(section)}
    return str in types.get(key, ())


def flatten(values: dict[str, Any], prefix: str = "", known: Container[str] = ()) -> dict[str, Any]:
    """Dotted form of a nested dict of knobs; raises ValueError where one of the `known` knobs got a mapping, or where
    a knob is there in both forms."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        if not isinstance(value, dict):
            inner = {key: value}
        elif key in known:
            raise ValueError(
                f"{key} is the mapping {value!r}, but takes one value. In YAML, text with a colon or braces is one "
                "only in quotes."
            )
        else:
            inner = flatten(value, f"{key}.", known)
        if twice := next(iter(flat.keys() & inner.keys()), None):
            raise ValueError(f"{twice} is there twice: {flat[twice]!r} and {inner[twice]!r}. Leave one.")
        flat |= inner
    return flat


def replace_dotted(values: dict[str, Any], key: str, value: Any, known: list[str]) -> None:
    """Replace one dotted knob in a nested dict; raises ValueError if it leads to none of the `known`."""
    *sections, last = key.split(".")
    for name in sections:
        if not isinstance(values.get(name), dict):
            raise ValueError(_unknown(key, known))
        values = values[name]
    if isinstance(values.get(last), dict):
        first = next(name for name in known if name.startswith(f"{key}."))
        raise ValueError(f"{key} is {_shown(value)}, but it is a section of knobs. Set one of them, such as {first}.")
    values[last] = value


def nearest(word: str, known: list[str]) -> str:
    """The known word most like `word`, as the end of an error message, and all of them when there are few."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    hint = f"Did you mean {close[0]!r}?" if close else ""
    return " ".join(filter(None, [hint, f"Known: {', '.join(known)}." if len(known) <= 12 else ""]))


def _fields(section: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every knob with its dotted name."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from _fields(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def _unknown(key: str, known: list[str]) -> str:
    return f"unknown config key {key!r}. {nearest(key, known)}".strip()


def _expected(error: ErrorDetails) -> str:
    """What pydantic expected, and the fix where it is more than another value."""
    message, given = error["msg"].removeprefix("Value error, "), error["input"]
    expected = message[0].lower() + message[1:]
    match error["type"]:
        case "literal_error" if isinstance(given, str):
            words = [word.strip("' ") for word in error["ctx"]["expected"].replace(" or ", ", ").split(",")]
            return f"{expected}. {nearest(given, words)}"
        case "tuple_type":
            return f"expected a list, such as [{'' if given is None else given}]"
        case "missing":
            return "the list has too few values"
        case "string_type" if isinstance(given, bool | date):
            return "expected text. YAML takes what was written there for something else: put it in quotes"
        case "string_type" if isinstance(given, int | float):
            return f"expected text: quote it, as in '{given}'"
        case _:
            return expected


def _shown(value: Any) -> str:
    """A value as people write it: what Python calls None is null in YAML and JSON."""
    return "null" if value is None else repr(value)
