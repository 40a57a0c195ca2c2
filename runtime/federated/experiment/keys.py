"""What sections of an experiment file are made of, and what they say of themselves. Reads no file.

A section is a frozen struct: a key is a field with its type, its bounds, its default and what it means, and
that one place is all that the reader, the errors and docs/experiments.md know of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from inspect import cleandoc
from typing import Annotated, Any, ClassVar

import msgspec
from msgspec import Meta, inspect

from runtime.toml_places import At, shown


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the file. Its docstring is what the page says of it, and of its keys."""


class Makes(Section, frozen=True):
    """A table whose keys are the arguments of what it makes, under the same names."""

    makes: ClassVar[Callable[..., Any]]

    def make(self) -> Any:
        """What `runtime.federated` has for it.

        Raises:
            InputError: the values do not fit together.
        """
        return self.makes(**msgspec.structs.asdict(self))


Count = Annotated[int, Meta(ge=1)]
Natural = Annotated[int, Meta(ge=0)]
Positive = Annotated[float, Meta(gt=0)]
NonNegative = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(gt=0, le=1)]
Decay = Annotated[float, Meta(ge=0, lt=1)]
Half = Annotated[float, Meta(ge=0, lt=0.5)]
Text = Annotated[str, Meta(min_length=1)]


@dataclass(frozen=True, slots=True)
class Key:
    """One key, for people: its type, its default (None where it has to be given) and its meaning."""

    name: str
    type: str
    default: str | None
    meaning: str


@dataclass(frozen=True, slots=True)
class Table:
    """One table, or one of the forms that it has: then ``choice`` is the key and value that say which."""

    at: At
    choice: tuple[str, str] | None
    is_default: bool
    about: str
    keys: tuple[Key, ...]


def tables(root: type[Section], at: At = ()) -> Iterator[Table]:
    """All tables below a section, in order, each with its keys."""
    for field in msgspec.structs.fields(root):
        forms = forms_of(field.type)
        default = default_of(field)
        for form in forms:
            place = (*at, field.encode_name)
            choice = choice_of(form)
            is_default = default is not None and type(default) is form
            yield Table(place, choice, is_default, about(form), tuple(_keys(form)))
            yield from tables(form, place)


def forms_of(type: Any) -> list[type[Section]]:
    """The structs that a field may hold: several where a key says which; none where it is no table."""
    found = inspect.type_info(type)
    if isinstance(found, inspect.Metadata):
        found = found.type
    parts = found.types if isinstance(found, inspect.UnionType) else (found,)
    structs = [part.cls for part in parts if isinstance(part, inspect.StructType)]
    return [cls for cls in structs if issubclass(cls, Section)]


def choice_of(form: type[Section]) -> tuple[str, str] | None:
    """The key and the value that say that a table is of this form."""
    config = form.__struct_config__
    return (config.tag_field, str(config.tag)) if config.tag_field is not None else None


def default_of(field: msgspec.structs.FieldInfo) -> Any:
    """What a key is that is not given; None where it has to be."""
    if field.default is not msgspec.NODEFAULT:
        return field.default
    return None if field.default_factory is msgspec.NODEFAULT else field.default_factory()


def plain(section: Section) -> dict[str, Any]:
    """A section as plain data, every key of it, as the file would have it; what is absent is left out."""
    return _without_none(msgspec.to_builtins(section))


def flat(data: Mapping[str, Any], at: At = ()) -> dict[str, Any]:
    """Nested tables as one, with dotted keys."""
    out: dict[str, Any] = {}
    for key, value in data.items():
        place = (*at, key)
        out |= flat(value, place) if isinstance(value, dict) else {".".join(place): value}
    return out


def _without_none(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _without_none(value) for key, value in data.items() if value is not None}
    return data


def meanings(form: type) -> dict[str, str]:
    """What a section's docstring, and those of what it is made from, say of its keys."""
    out: dict[str, str] = {}
    for cls in reversed(form.__mro__):
        _, _, attributes = cleandoc(cls.__doc__ or "").partition("Attributes:\n")
        for entry in re.split(r"\n    (?! )", f"\n{attributes.rstrip()}")[1:]:
            name, _, meaning = entry.partition(":")
            out[name] = " ".join(meaning.split()).removesuffix(".")
    return out


def about(form: type) -> str:
    """What a section's docstring says of it as a whole."""
    return " ".join(cleandoc(form.__doc__ or "").partition("Attributes:\n")[0].split())


def _keys(form: type[Section]) -> Iterator[Key]:
    said = meanings(form)
    for field in msgspec.structs.fields(form):
        if not forms_of(field.type):  # a table of its own
            default = None if field.required else _default(default_of(field))
            yield Key(field.encode_name, _type(inspect.type_info(field.type)), default, said[field.name])


def _default(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return f"[{', '.join(_default(item) for item in value)}]"
    return f'"{value}"' if isinstance(value, str) else shown(value)


def _type(info: inspect.Type) -> str:
    """A type in words."""
    match info:
        case inspect.Metadata():
            return _type(info.type)
        case inspect.UnionType():
            return " or ".join(_type(part) for part in info.types if not isinstance(part, inspect.NoneType))
        case inspect.LiteralType():
            return " or ".join(f'"{value}"' for value in info.values)
        case inspect.VarTupleType():
            return f"list of {_type(info.item_type)}"
        case inspect.BoolType():
            return "true or false"
        case inspect.StrType():
            return "text"
        case inspect.IntType() | inspect.FloatType():
            return _number(info)
        case _:
            return type(info).__name__.removesuffix("Type").lower()


def _number(info: inspect.IntType | inspect.FloatType) -> str:
    kind = "whole number" if isinstance(info, inspect.IntType) else "number"
    bounds = ((info.gt, "above"), (info.ge, "from"), (info.lt, "below"), (info.le, "to"))
    said = [f"{word} {bound:g}" for bound, word in bounds if bound is not None]
    return " ".join([kind, *said])


__all__ = [
    "Count",
    "Decay",
    "Half",
    "Key",
    "Makes",
    "Natural",
    "NonNegative",
    "Positive",
    "Section",
    "Share",
    "Table",
    "Text",
    "about",
    "choice_of",
    "default_of",
    "flat",
    "forms_of",
    "meanings",
    "plain",
    "tables",
]
