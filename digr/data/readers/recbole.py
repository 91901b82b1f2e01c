"""RecBole's atomic files: tab-separated, with the type of each column in the header (user_id:token, timestamp:float)."""

from digr.data.importing.rules import Reading, one, split_of
from digr.data.importing.sniffing import Layout
from digr.data.importing.tables import Table, stem_of
from digr.data.readers import names

LAYOUTS = ((r".*\.(inter|item|user|link|kg|net)", Layout("\t")),)
TYPES = ("token", "token_seq", "float", "float_seq")


def readings(table: Table) -> list[Reading]:
    """Return how an atomic file is read: .inter by the names of its columns, one with lists of items as a split."""
    parts = [column.rpartition(":") for column in table.columns]
    if not any(kind in TYPES and name for name, _, kind in parts):
        return []
    ending = stem_of(table.name).rpartition(".")[2]
    if ending not in ("inter", "item"):
        return [Reading("recbole", "ignored", note="of RecBole's files only .inter and .item are read")]
    theirs = {name: column for (name, _, _), column in zip(parts, table.columns, strict=True)}
    if {"user_id", "item_id_list", "item_id"} <= set(theirs):
        columns = one(user_id=theirs["user_id"], history=theirs["item_id_list"], target=theirs["item_id"])
        return [Reading("recbole", "splits", columns, split=split_of(table.name))]
    role, found = names.guess(table, list(theirs), {}, "interactions" if ending == "inter" else "items")
    columns = {ours: (theirs[name],) for ours, (name,) in found.items()}
    sequence = columns.get("categories", ("",))[0]
    if not sequence.endswith(":token_seq"):
        return [Reading("recbole", role, columns)]

    def select(pick: names.Pick) -> str:
        listed = f"CAST(to_json(string_split({pick(sequence)}, ' ')) AS VARCHAR)"
        cells = [f"{listed if ours == 'categories' else pick(column)} AS {ours}" for ours, (column,) in columns.items()]
        return f"SELECT {', '.join(cells)} FROM source"

    return [Reading("recbole", role, select=select, shown={ours: column for ours, (column,) in columns.items()})]
