"""The Arrow schema of every table that passes between stages, and the checks of these tables.

Ids are strings, times are milliseconds in UTC, rates are fractions in [0, 1], lists are ordered. A column is nullable
only where the schema says so.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int

_TIME = pa.timestamp("ms", tz="UTC")
_STRINGS = pa.list_(pa.string())
Owner = Literal["item", "user"]


class TableSpec(NamedTuple):
    """Schema and key columns of a table, its subject (items or users), and the version of its schema."""

    schema: pa.Schema
    key: tuple[str, ...]
    about: Literal["item", "user", "both", ""]
    """Tables about items share one partitioning, and so do tables about users; "" means not partitioned."""
    version: int

    @property
    def range_column(self) -> str:
        """Return the column of ids by which the table is split into parts."""
        return {"item": "item_id", "user": "user_id", "both": "owner_id"}.get(self.about, "")


_Kind: TypeAlias = pa.DataType | tuple[pa.DataType, str]


def _fields(columns: Mapping[str, _Kind]) -> list[pa.Field]:
    """Make fields; `(type, "?")` marks a nullable one."""
    return [
        pa.field(name, kind[0], nullable=True) if isinstance(kind, tuple) else pa.field(name, kind, nullable=False)
        for name, kind in columns.items()
    ]


def _spec(
    key: Sequence[str], about: Literal["item", "user", "both", ""] = "", version: int = 1, /, **columns: _Kind
) -> TableSpec:
    return TableSpec(pa.schema(_fields(columns)), tuple(key), about, version)


def _structs(**fields: _Kind) -> pa.DataType:
    return pa.list_(pa.struct(_fields(fields)))


_ANSWER: dict[str, _Kind] = {
    "owner": pa.string(),
    "owner_id": pa.string(),
    "miner": pa.string(),
    "request_digest": pa.string(),
    "prompt_version": pa.string(),
    "modality": pa.string(),
    "response": (pa.string(), "?"),
    "status": pa.string(),
    "reason": (pa.string(), "?"),
    "input_tokens": pa.int64(),
    "output_tokens": pa.int64(),
    "cost_usd": pa.float64(),
}
"""Columns of a language model's answer in a ledger."""
TABLES: dict[str, TableSpec] = {
    "items": _spec(
        ["item_id"],
        "item",
        2,
        item_id=pa.string(),
        title=pa.string(),
        description=(pa.string(), "?"),
        brand=(pa.string(), "?"),
        categories=(_STRINGS, "?"),
        price=(pa.float64(), "?"),
        currency=(pa.string(), "?"),  # ISO 4217 code
        image_uri=(pa.string(), "?"),
    ),
    "interactions": _spec(
        ["user_id", "position"],
        "user",
        user_id=pa.string(),
        position=pa.int32(),
        item_id=pa.string(),
        timestamp=(_TIME, "?"),
        rating=(pa.float64(), "?"),
    ),
    "histories": _spec(
        ["example_id"],
        "user",
        example_id=pa.string(),
        user_id=pa.string(),
        split=pa.string(),
        history=_STRINGS,
        target=pa.string(),
        target_timestamp=(_TIME, "?"),
        last_timestamp=(_TIME, "?"),  # of the newest item of the history
    ),
    "interest_responses": _spec(["request_digest"], **_ANSWER),
    "interest_verdicts": _spec(["request_digest"], **_ANSWER, interest=pa.string(), probability=(pa.float64(), "?")),
    "interests": _spec(
        ["owner", "owner_id"],
        "both",
        2,
        owner=pa.string(),
        owner_id=pa.string(),
        interests=_structs(interest=pa.string(), confidence=(pa.float64(), "?"), miners=_STRINGS, consensus=pa.float64()),
        caption=(pa.string(), "?"),
    ),
    "interest_labels": _spec(
        ["owner", "owner_id"],
        "both",
        2,
        owner=pa.string(),
        owner_id=pa.string(),
        interests=_structs(
            interest=pa.string(),
            probability=pa.float64(),
            label=pa.int8(),
            labelers=_STRINGS,
            classifier_probability=(pa.float64(), "?"),
            judge_probability=(pa.float64(), "?"),
            behavioural_probability=(pa.float64(), "?"),
        ),
        quality=pa.float64(),
    ),
    "item_embeddings": _spec(
        ["item_id"],
        "item",
        item_id=pa.string(),
        embedding=pa.list_(pa.float32()),
        interest_embedding=(pa.list_(pa.float32()), "?"),
        text_only=(pa.bool_(), "?"),
        image_embedding=(pa.list_(pa.float32()), "?"),
        text_embedding=(pa.list_(pa.float32()), "?"),
    ),
    "canonical_interests": _spec(
        ["interest"],
        interest=pa.string(),
        num_items=pa.int64(),
        groups=pa.list_(pa.int32()),
        names=_STRINGS,
    ),
    "item_neighbours": _spec(
        ["item_id", "source"],
        "item",
        item_id=pa.string(),
        source=pa.string(),
        neighbours=_structs(place=pa.int32(), weight=pa.float32()),
    ),
    "ranking_examples": _spec(
        ["example_id", "item"],
        example_id=pa.string(),
        fold=pa.string(),
        item=pa.int32(),
        is_target=pa.bool_(),
        ranks=pa.list_(pa.uint8()),
        features=pa.list_(pa.float32()),
    ),
    "item_sids": _spec(["item_id"], "item", item_id=pa.string(), codes=pa.list_(pa.int32())),
    "codebook_sweep": _spec(
        ["trial"],
        trial=pa.string(),
        quantiser=pa.string(),
        level_sizes=pa.list_(pa.int32()),
        latent_dim=(pa.int32(), "?"),
        status=pa.string(),
        error=(pa.string(), "?"),
        usage_rate=(pa.list_(pa.float64()), "?"),
        perplexity=(pa.list_(pa.float64()), "?"),
        raw_collision_rate=(pa.float64(), "?"),
        collision_rate=(pa.float64(), "?"),
        suffix_rate=(pa.float64(), "?"),
        reconstruction_r2=(pa.float64(), "?"),
        neighbour_prefix_share=(pa.list_(pa.float64()), "?"),
        cointeraction_prefix_share=(pa.list_(pa.float64()), "?"),
        chance_prefix_share=(pa.list_(pa.float64()), "?"),
        epoch=(pa.int32(), "?"),
        score=(pa.float64(), "?"),
        seconds=(pa.float64(), "?"),
        **{"valid_ndcg@10": (pa.float64(), "?")},
    ),
    "policy_examples": _spec(
        ["example_id"],
        "both",
        example_id=pa.string(),
        user_id=(pa.string(), "?"),
        task=pa.string(),
        split=pa.string(),
        prompt=pa.string(),
        completion=pa.string(),
        target=(pa.string(), "?"),
    ),
    "recommendations": _spec(
        ["example_id"],
        example_id=pa.string(),
        item_ids=_STRINGS,
        scores=pa.list_(pa.float64()),
        reasons=(pa.list_(_STRINGS), "?"),
        sources=(pa.list_(_STRINGS), "?"),
        is_proven=(pa.bool_(), "?"),
    ),
    "metrics": _spec(
        ["system", "split", "slice", "name", "k"],
        system=pa.string(),
        split=pa.string(),
        slice=pa.string(),
        name=pa.string(),
        k=pa.int32(),
        value=pa.float64(),
        low=pa.float64(),
        high=pa.float64(),
        num_examples=pa.int64(),
    ),
}

SPLITS = ("train", "valid", "test")
HELD_OUT = SPLITS[1:]
"""Splits on which systems are evaluated."""
STATUSES = ("ok", "unparsable", "truncated", "refused", "empty", "error")


def table_spec(name: str) -> TableSpec:
    """Return the spec of a table; artifact names such as `recommendations/sft_test` use the first part."""
    return TABLES[name.split("/")[0]]


FILE_VERSIONS = {"ranking_index": 2}
"""Schema versions above 1 of artifacts that are not tables."""


def schema_version(name: str) -> int:
    """Return the schema version of an artifact."""
    kind = name.split("/")[0]
    return TABLES[kind].version if kind in TABLES else FILE_VERSIONS.get(kind, 1)


def conform(name: str, table: pa.Table, where: str) -> pa.Table:
    """Return `table` with exactly the columns and types of `name`, in order.

    Types that hold the same values (large_string, fixed-size lists, integers of another width that fit, null columns)
    are cast; any other difference is an error.

    Raises:
        ValueError: a column is missing, has another type, or has nulls although the schema forbids them.
    """
    schema = table_spec(name).schema
    missing = [field.name for field in schema if field.name not in table.column_names and not field.nullable]
    if missing:
        raise ValueError(f"{where}: table {name} lacks column {', '.join(missing)}; found {', '.join(table.column_names)}")
    columns = []
    for field in schema:
        if field.name not in table.column_names:
            columns.append(pa.nulls(len(table), field.type))
            continue
        column = table[field.name]
        if not _same_kind(column.type, field.type):
            raise ValueError(f"{where}: table {name}, column {field.name}: expected {field.type}, found {column.type}")
        try:
            column = column if column.type.equals(field.type) else column.cast(field.type)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{where}: table {name}, column {field.name}: {error}") from error
        for inner, values in _required(field, column):
            if values.null_count:
                raise ValueError(f"{where}: table {name}, column {inner}: {values.null_count} empty values, none allowed")
        columns.append(column)
    return pa.table(columns, schema=schema)


def _required(field: pa.Field, column: pa.ChunkedArray) -> list[tuple[str, Any]]:
    """Return the column, and the fields of its structs, that may not be null."""
    found = [] if field.nullable else [(field.name, column)]
    if pa.types.is_list(field.type) and pa.types.is_struct(field.type.value_type):
        structs = [chunk.flatten() for chunk in column.chunks]
        found += [
            (f"{field.name}.{inner.name}", values.field(place))
            for values in structs
            for place, inner in enumerate(field.type.value_type)
            if not inner.nullable
        ]
    return found


def flat_interests(nested: pa.Table | pa.RecordBatch) -> pa.Table:
    """Return one row per interest of rows of `interests` or `interest_labels`, in their order.

    Its columns are `row` (the owner's row in `nested`), owner and owner_id if `nested` has them, `rank` (position in the
    owner's list, from 0) and the fields of an interest. `nest_interests` is the inverse.
    """
    kind, parts, before = nested.schema.field("interests").type.value_type, [], 0
    for batch in nested.to_batches() if isinstance(nested, pa.Table) else [nested]:
        lists = batch["interests"]
        lengths = lists.value_lengths().to_numpy(zero_copy_only=False)
        row = np.repeat(np.arange(len(batch)), lengths)
        rank = np.arange(len(row)) - np.repeat(lengths.cumsum() - lengths, lengths)
        owners = {name: batch[name].take(pa.array(row)) for name in ("owner", "owner_id") if name in batch.schema.names}
        fields = dict(zip((field.name for field in kind), lists.flatten().flatten(), strict=True))
        parts.append(pa.table({"row": row + before, **owners, "rank": rank.astype(np.int32), **fields}))
        before += len(batch)
    return pa.concat_tables(parts) if parts else flat_interests(pa.RecordBatch.from_pylist([], nested.schema))


def nest_interests(
    name: Literal["interests", "interest_labels"],
    owners: Mapping[str, Any],
    row: Int[np.ndarray, " P"],
    fields: Mapping[str, Any],
) -> pa.Table:
    """Return rows of `interests` or `interest_labels`, one per owner, from P interests in flat form.

    Args:
        owners: the columns of the N owners: owner, owner_id, and the quality for `interest_labels`.
        row: owner of each interest, ascending, in [0, N).
        fields: the fields of an interest, P values each; nullable fields may be left out.
    """
    schema = TABLES[name].schema
    kind = schema.field("interests").type
    num_owners = len(owners["owner_id"])
    arrays = [
        _array(fields[field.name], field.type) if field.name in fields else pa.nulls(len(row), field.type)
        for field in kind.value_type
    ]
    structs = pa.StructArray.from_arrays(arrays, fields=list(kind.value_type))
    offsets = np.concatenate([[0], np.bincount(row, minlength=num_owners).cumsum()]).astype(np.int32)
    lists = pa.ListArray.from_arrays(pa.array(offsets), structs, type=kind)
    return conform(name, pa.table({**owners, "interests": lists}), name)


def _array(values: Any, kind: pa.DataType) -> pa.Array:
    values = values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values, kind)
    values = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    return values if values.type.equals(kind) else values.cast(kind)


def check_table(name: str, table: pa.Table, where: str) -> pa.Table:
    """Conform a whole table and check that its key is unique.

    Raises:
        ValueError: as in `conform`; or a key occurs twice (names the first).
    """
    table = conform(name, table, where)
    key = list(table_spec(name).key)
    counts = table.select(key).group_by(key).aggregate([([], "count_all")])
    doubled = counts.filter(pc.greater(counts["count_all"], 1))
    if len(doubled):
        first = ", ".join(f"{column}={doubled[column][0].as_py()!r}" for column in key)
        raise ValueError(f"{where}: table {name}: duplicate key {first} ({len(doubled)} keys occur more than once)")
    return table


def _same_kind(found: pa.DataType, expected: pa.DataType) -> bool:
    """Whether a cast keeps the meaning."""
    if found.equals(expected) or pa.types.is_null(found):
        return True
    kinds = (
        (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, _is_string_dictionary),
        (pa.types.is_integer,),
        (pa.types.is_floating,),
        (pa.types.is_timestamp,),
    )
    for kind in kinds:
        if any(test(expected) for test in kind):
            widened = pa.types.is_floating(expected) and pa.types.is_integer(found)
            return widened or any(test(found) for test in kind)
    if _is_list(expected):
        return _is_list(found) and _same_kind(found.value_type, expected.value_type)
    return False


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _is_string_dictionary(kind: pa.DataType) -> bool:
    return pa.types.is_dictionary(kind) and pa.types.is_string(kind.value_type)
