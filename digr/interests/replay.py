"""Answer requests with earlier, recorded responses, in the columns of `interest_responses`."""

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from digr.artifacts import common_schema, open_parts
from digr.interests.ledger import RAW_SCHEMA, raw_responses
from digr.tables import STATUSES

REQUIRED = ("owner", "owner_id", "miner", "prompt_version", "modality", "response", "status")
OPTIONAL = ("reason", "input_tokens", "output_tokens", "cost_usd")
IGNORED = ("request_digest",)


def open_recording(path: str) -> pads.Dataset:
    """Open a recording, a Parquet file or a folder of them, and check its columns.

    Raises:
        ValueError: there is no Parquet file, or a column is missing, unknown or of a wrong type.
    """
    recording = open_parts(path, common_schema(path))
    names = recording.schema.names
    if not names:
        raise ValueError(f"recording {path}: no Parquet file found")
    missing = [name for name in REQUIRED if name not in names]
    unknown = [name for name in names if name not in REQUIRED + OPTIONAL + IGNORED]
    problems = [f"lacks column {', '.join(missing)}"] if missing else []
    problems += [f"has unknown column {', '.join(unknown)}"] if unknown else []
    if problems:
        known = f"{', '.join(REQUIRED)} and optionally {', '.join(OPTIONAL)}"
        raise ValueError(f"recording {path}: {' and '.join(problems)}; expected {known}")
    for name in REQUIRED:
        kind = recording.schema.field(name).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind)):
            raise ValueError(f"recording {path}: column {name}: expected string, found {kind}")
    return recording


def replay(requests: pa.Table, path: str, miner: str, recorded_miner: str = "") -> pa.Table:
    """Return the recorded answers to requests, in order; an owner without one gets a row of status "empty".

    A recorded failure keeps its status; a recorded "ok" is parsed again, like a new answer. Of several rows that a
    miner has of one owner, as a ledger holds after retries, the last "ok" counts, or the last failure.

    Args:
        miner: name of the miner in the ledger.
        recorded_miner: take only the recorded rows of this miner; empty takes all.

    Raises:
        ValueError: as `open_recording`, several recorded miners answered for one owner, or a status is unknown.
    """
    recording = open_recording(path)
    wanted = pads.field("owner_id").isin(requests["owner_id"].combine_chunks()) & pads.field("owner").isin(
        pc.unique(requests["owner"].combine_chunks())
    )
    if recorded_miner:
        wanted &= pads.field("miner") == recorded_miner
    columns = [name for name in REQUIRED + OPTIONAL if name in recording.schema.names]
    rows: dict[tuple[str, str], dict] = {}
    for row in recording.to_table(columns=columns, filter=wanted).to_pylist():
        key = (row["owner"], row["owner_id"])
        earlier = rows.get(key)
        if earlier and earlier["miner"] != row["miner"]:
            raise ValueError(
                f"recording {path}: {key[0]} {key[1]!r} has several rows (miners {earlier['miner']!r}, {row['miner']!r}); "
                f"choose one with recorded_miner"
            )
        if row["status"] not in STATUSES:
            raise ValueError(f"recording {path}: {key[0]} {key[1]!r}: status {row['status']!r} is none of {', '.join(STATUSES)}")
        if not (earlier and earlier["status"] == "ok" and row["status"] != "ok"):
            rows[key] = row
    none = {"modality": "text", "prompt_version": "", "status": "empty", "reason": "not in the recording"}
    found = [rows.get(key, none) for key in zip(requests["owner"].to_pylist(), requests["owner_id"].to_pylist(), strict=True)]
    table = raw_responses(
        requests,
        miner,
        "",
        [row["modality"] for row in found],
        response=[row.get("response") for row in found],
        status=[None if row["status"] in ("ok", None) else row["status"] for row in found],
        reason=[row.get("reason") for row in found],
        input_tokens=[row.get("input_tokens") or 0 for row in found],
        output_tokens=[row.get("output_tokens") or 0 for row in found],
        cost_usd=[row.get("cost_usd") or 0.0 for row in found],
    )
    versions = pa.array([row["prompt_version"] for row in found], pa.string())
    return table.set_column(table.column_names.index("prompt_version"), RAW_SCHEMA.field("prompt_version"), versions)
