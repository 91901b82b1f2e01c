"""The pages of the reference that are written from the code: the config, the tables and the library."""

import ast
import html
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from digr.artifacts import JOB_OF
from digr.config import Config
from digr.config.base import Section
from digr.config.fields import FieldRow, InnerTable, iter_fields, iter_inner_tables
from digr.tables import TABLES, TableSpec

LIBRARY = Path(__file__).parent.parent / "digr" / "__init__.py"
ABOUT = {
    "item": "One part per range of `item_id`.",
    "user": "One part per range of `user_id`.",
    "both": "One part per range of `owner_id`.",
    "": "",
}


def plain(text: str) -> str:
    """Return text that Markdown shows as it is, in a table too, but for its code in backticks."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return "".join(part if part.startswith("`") else _escaped(part) for part in parts)


def _escaped(text: str) -> str:
    return re.sub(r"[|{}*\[\]$]", lambda match: f"&#{ord(match[0])};", html.escape(text, quote=False))


def code(text: str) -> str:
    """Return text as code; nothing for an empty one."""
    return f"`{text}`" if text else ""


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of cells that are Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def config_page() -> str:
    """Return the page of every section and field of a config."""
    parts = [
        "# Config\n\nEvery section and field, read from `digr/config/`. [The guide](../guide/config.md) says how a config is "
        "written and overridden. A key with a default may be left out; *required* has none, and *unset* cannot be written.\n"
    ]
    inner = list(iter_inner_tables(Config))
    rows = list(iter_fields(Config))
    for key, meaning in _sections(Config, ""):
        parts.append(f"## {key} {{ #{key} }}\n\n{plain(meaning)}\n")
        parts.append(_fields_table([row for row in rows if row.key.rpartition(".")[0] == key]))
        parts += [_inner_part(table) for table in inner if table.key.rpartition(".")[0] == key]
    for table in inner:
        if "." not in table.key:
            meaning = next(row.meaning for row in rows if row.key == table.key)
            parts.append(f"## {table.key} {{ #{table.key} }}\n\n{plain(meaning)}\n\n{_inner_part(table)}")
    return "\n".join(parts)


def _sections(model: type[Section], prefix: str) -> Iterator[tuple[str, str]]:
    """Yield key and meaning of every section, outer ones first."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            key = f"{prefix}{name}"
            yield key, field.description or field.annotation.__doc__ or ""
            yield from _sections(field.annotation, f"{key}.")


def _fields_table(rows: Iterable[FieldRow], has_anchors: bool = True) -> str:
    cells = [
        [
            f"`{row.key.rpartition('.')[2]}`{f'{{ #{row.key} }}' if has_anchors else ''}",
            _type_and_range(row),
            row.default if row.default in ("required", "unset") else code(row.default),
            plain(row.meaning),
        ]
        for row in rows
    ]
    return markdown_table(["key", "type and range", "default", "meaning"], cells)


def _type_and_range(row: FieldRow) -> str:
    words, _, pattern = row.limits.partition("matches ")
    limits = f"matches {code(pattern.strip(chr(34)))}" if pattern else plain(words)
    return ", ".join(filter(None, [plain(row.type), limits]))


def _inner_part(table: InnerTable) -> str:
    """Return the fields of one kind of table that a field holds."""
    head = f"[[{table.key}]]" if table.is_list else f"[{table.key}]"
    kind = f' with `kind = "{table.kind}"`' if table.kind else ""
    anchor = f"{table.key}.{table.kind}" if table.kind else f"{table.key}.fields"
    meaning = plain((table.model.__doc__ or "").split("\n\n")[0])
    return f"### `{head}`{kind} {{ #{anchor} }}\n\n{meaning}\n\n{_fields_table(iter_fields(table.model), has_anchors=False)}"


def tables_page() -> str:
    """Return the page of every table's schema and of who makes it."""
    parts = [
        "# Tables\n\nStages meet in tables: a folder of Parquet files in the run's folder, which any Parquet reader opens, and "
        "`_manifest.json` with its rows, inputs, config and seed. Every table is checked against the schema here (from "
        "`digr/tables.py`) when it is written and when it is read. Times are UTC, rates are between 0 and 1, lists are ordered.\n"
    ]
    parts += [_table_part(name, spec) for name, spec in TABLES.items()]
    others = [[code(name), code(f"jobs.{job}")] for name, job in JOB_OF.items() if name not in TABLES]
    parts.append(f"## Artifacts that are no tables {{ #others }}\n\n{markdown_table(['artifact', 'made by'], others)}")
    return "\n".join(parts)


def _table_part(name: str, spec: TableSpec) -> str:
    rows = [
        [code(column), code(_type_name(kind)), "yes" if may_be_empty else "", "yes" if column in spec.key else ""]
        for column, kind, may_be_empty in _columns(spec.schema)
    ]
    about = f"Made by `jobs.{JOB_OF[name]}`. Version {spec.version} of its schema. {ABOUT[spec.about]}".strip()
    return f"## {name} {{ #{name} }}\n\n{about}\n\n{markdown_table(['column', 'type', 'may be empty', 'key'], rows)}"


def _columns(fields: Iterable[pa.Field], prefix: str = "") -> Iterator[tuple[str, pa.DataType, bool]]:
    """Yield name, type and whether it may be empty; a list of structs is followed by its fields."""
    for field in fields:
        yield prefix + field.name, field.type, field.nullable
        if pa.types.is_list(field.type) and pa.types.is_struct(field.type.value_type):
            yield from _columns(field.type.value_type, f"{prefix}{field.name}[].")


def _type_name(kind: pa.DataType) -> str:
    if pa.types.is_list(kind):
        return f"list<{_type_name(kind.value_type)}>"
    return "struct" if pa.types.is_struct(kind) else str(kind)


def library_page() -> str:
    """Return the page of what `digr` exports; mkdocstrings reads signatures and docstrings from the source."""
    parts = ["# Library\n\nWhat `from digr import ...` gives, by the module where it stands. No part of it needs Ray or vLLM.\n"]
    for module, names in exported_names(LIBRARY.read_text()).items():
        parts.append(f"## {module}\n")
        parts += [f"::: {module}.{name}\n" for name in names]
    return "\n".join(parts)


def exported_names(source: str) -> dict[str, list[str]]:
    """Return the names that the source of `digr` imports from its modules, by module, both in their order."""
    found: dict[str, list[str]] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("digr."):
            found.setdefault(str(node.module), []).extend(alias.name for alias in node.names)
    return found
