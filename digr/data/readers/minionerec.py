"""MiniOneRec's files: splits as CSV (train/, valid/, test/), info/NAME.txt with titles, and beside them LC-Rec's item.json.

Interactions come from NAME.inter.json if it is given, otherwise from the splits: a user's first history, then the targets in
order.
"""

from digr.data.importing.rules import Pick, Reading, Rule, one, split_of
from digr.data.importing.sniffing import Layout
from digr.data.importing.tables import Table

NAME = r".*_\d+_\d{4}-\d+-\d{4}-\d+"
LAYOUTS = ((NAME + r"\.txt", Layout("\t", ("sid", "title", "item_id"))),)
NEEDS = ("user_id", "history_item_id", "item_id")
SPLIT = one(user_id="user_id", history="history_item_id", target="item_id")


def readings(table: Table) -> list[Reading]:
    """Return the reading of a split, which is named after its folder."""
    split = split_of(table.name) or split_of(table.files[0].given.address)
    if not set(NEEDS) <= set(table.columns) or not split:
        return []
    return [Reading("minionerec", "splits", SPLIT, split=split)]


def _info(pick: Pick) -> str:
    return f"SELECT {pick('item_id')} AS item_id, {pick('title')} AS title FROM source"


RULES = (
    Rule(Reading("minionerec", "items", select=_info, shown={"item_id": "item_id", "title": "title"}, standby=True),
         NAME + r"\.txt", ("sid", "title", "item_id")),
)  # fmt: skip
