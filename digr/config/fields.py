"""The fields of a config as rows of text: what `--help` and the documentation show of each.

Everything is read from the models, so each field is described once, where it is defined.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from digr.config.base import Section


class FieldRow(NamedTuple):
    """One field, in words."""

    key: str
    """Dotted, as an override names it."""
    type: str
    """Type in plain words, or the values to choose from."""
    default: str
    """As TOML; or the bare word required (there is no default) or unset (leave the key out of the file)."""
    limits: str
    """Range or pattern; empty without one."""
    meaning: str
    """Docstring of the field."""


class InnerTable(NamedTuple):
    """A TOML table that is the value of a field, such as a miner; its fields have no dotted keys."""

    key: str
    """Dotted key of the field that holds such tables."""
    is_list: bool
    """Whether it holds a list of them: `[[key]]` in TOML, else `[key]`."""
    kind: str
    """The `kind` that chooses these fields; empty where there is one kind only."""
    model: type[Section]


def iter_fields(model: type[Section], prefix: str = "") -> Iterator[FieldRow]:
    """Yield a row per field of `model` and its sections, in their order.

    A field that holds tables, such as `interests.miners`, is one row; `iter_inner_tables` yields those tables.

    Args:
        model: a section, or the whole `Config`.
        prefix: key of the section, such as "sft" or "grpo.reward"; "" for `Config`.
    """
    return _rows(model, prefix, None)


def iter_inner_tables(model: type[Section], prefix: str = "") -> Iterator[InnerTable]:
    """Yield the tables that fields of `model` hold, one per kind."""
    for name, field in model.model_fields.items():
        key = _joined(prefix, name)
        if section := _section(field.annotation):
            yield from iter_inner_tables(section, key)
            continue
        for inner in models_inside(field.annotation):
            yield InnerTable(key, get_origin(field.annotation) is tuple, _kind(inner), inner)


def models_inside(annotation: Any) -> list[type[Section]]:
    """Return the sections that an annotation names, also in lists and unions."""
    if section := _section(annotation):
        return [section]
    return [model for inner in get_args(annotation) for model in models_inside(inner)]


def _rows(model: type[Section], prefix: str, defaults: BaseModel | None) -> Iterator[FieldRow]:
    """Yield the rows of a section; `defaults` is its default value in the section around it."""
    for name, field in model.model_fields.items():
        key = _joined(prefix, name)
        value = field.get_default(call_default_factory=True) if defaults is None else getattr(defaults, name)
        if section := _section(field.annotation):
            yield from _rows(section, key, value if isinstance(value, BaseModel) else None)
        else:
            meaning = " ".join((field.description or "").split())
            yield FieldRow(key, _type_words(field.annotation), _toml(value), _limits(field), meaning)


def _joined(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _section(annotation: Any) -> type[Section] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def _kind(model: type[Section]) -> str:
    return str(model.model_fields["kind"].default) if "kind" in model.model_fields else ""


_WORDS = {str: ("text", "texts"), int: ("whole number", "whole numbers"), float: ("number", "numbers")}
_WORDS |= {bool: ("true or false", "true or false"), Any: ("any value", "any values"), list: ("list", "lists")}


def _type_words(annotation: Any, plural: bool = False) -> str:
    """Return a type in plain words, without None, which TOML cannot write."""
    if annotation in _WORDS:
        return _WORDS[annotation][plural]
    origin, inner = get_origin(annotation), [item for item in get_args(annotation) if item is not NoneType]
    if models := models_inside(annotation):
        tables = "list of tables" if origin is tuple else "table"
        kinds = [json.dumps(_kind(model)) for model in models if _kind(model)]
        return f"{tables} of kind {_either(kinds)}" if kinds else tables
    if origin is Literal:
        return _either([json.dumps(item) for item in inner])
    if origin in (UnionType, Union, Annotated):
        several = {str, int, float, bool} <= set(inner)
        return _type_words(Any, plural) if several else _either([_type_words(item, plural) for item in inner])
    if origin in (tuple, list):
        each = _type_words(inner[0], plural=True)
        return f"{_WORDS[list][plural]} of {f'({each})' if get_origin(inner[0]) in (UnionType, Union) else each}"
    assert origin in (dict, Mapping), f"no words for the type {annotation}"
    return f"table of {_type_words(inner[1], plural=True)}"


def _either(words: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _toml(value: Any) -> str:
    """Write a default as TOML."""
    if value is PydanticUndefined:
        return "required"
    if value is None:
        return "unset"
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        changed = {name: item for name, item in value if name == "kind" or item != fields[name].default}
        return _toml(changed)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_toml_key(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Iterable) and not isinstance(value, str):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:_}" if abs(value) >= 10_000 else str(value)
    return json.dumps(value, ensure_ascii=False)


def _toml_key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() else json.dumps(key)


def _limits(field: FieldInfo) -> str:
    """Return range, length and pattern in words."""
    found = {name: getattr(item, name) for item in field.metadata for name in _BOUNDS if getattr(item, name, None) is not None}
    unit = "" if not {"min_length", "max_length"} & set(found) else " characters" if field.annotation is str else " entries"
    low, high = found.get("ge", found.get("min_length")), found.get("le", found.get("max_length"))
    if low is not None and high is not None:
        return f"{_toml(low)} to {_toml(high)}{unit}"
    if unit and low == 1:
        return "not empty"
    return ", ".join(f"{words} {_toml(found[name])}{unit}" for name, words in _BOUNDS.items() if name in found)


_BOUNDS = {"ge": "at least", "min_length": "at least", "gt": "more than", "le": "at most", "max_length": "at most"}
_BOUNDS |= {"lt": "less than", "pattern": "matches"}
