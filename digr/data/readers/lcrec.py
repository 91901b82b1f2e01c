"""The files of LC-Rec and LETTER, which MiniOneRec uses too: NAME.inter.json, NAME.item.json, and the tables of original ids.

Users and items are numbers. If NAME.user2id and NAME.item2id are given, the original ids are written instead.
"""

from digr.data.importing.converting import KEY, VALUES
from digr.data.importing.rules import Pick, Reading, Rule
from digr.data.importing.sniffing import Layout

LAYOUTS = ((r".*\.(user2id|item2id)", Layout("\t", ("original", "id"))),)
ITEM_FIELDS = ("title", "description", "brand", "categories", "price")
COMMA = ",(\\S)"
"""Separates categories in a text; a comma inside a category's name is followed by a space."""


def _interactions(pick: Pick) -> str:
    items = f"from_json({pick(VALUES)}, '[\"VARCHAR\"]')"
    listed = f"SELECT {pick(KEY)} AS user_id, unnest({items}) AS item_id, unnest(range(len({items}))) AS position FROM source"
    return f"SELECT user_id, item_id, CAST(position AS VARCHAR) AS position FROM ({listed})"


def _items(pick: Pick) -> str:
    fields = ", ".join(f"{pick(field)} AS {field}" for field in ITEM_FIELDS if field != "categories")
    categories = pick("categories")
    parts = f"CAST(to_json(string_split(regexp_replace({categories}, '{COMMA}', '\x1f\\1', 'g'), '\x1f')) AS VARCHAR)"
    listed = f"CASE WHEN {categories} LIKE '[%' THEN {categories} WHEN {categories} <> '' THEN {parts} END"
    return f"SELECT {pick(KEY)} AS item_id, {fields}, {listed} AS categories FROM source"


RULES = (
    Rule(Reading("lc-rec", "ignored", note="semantic IDs, embeddings and reviews of others are not read"),
         r".*\.(index|index_.*|user|review|train|valid|test)\.json"),
    Rule(Reading("lc-rec", "interactions", select=_interactions,
                 shown={"user_id": "keys", "item_id": "values", "position": "place in the list"}), r".*\.json", (KEY, VALUES)),
    Rule(Reading("lc-rec", "items", select=_items, shown={"item_id": "keys"} | {field: field for field in ITEM_FIELDS}),
         r".*\.json", (KEY, "title")),
    Rule(Reading("lc-rec", "original_ids", split="user_id"), r".*\.user2id", ("original", "id")),
    Rule(Reading("lc-rec", "original_ids", split="item_id"), r".*\.item2id", ("original", "id")),
)  # fmt: skip
