"""The endpoint's own store of events (`events_dir`), of which each event is brought once."""

from digr.data.importing.rules import Reading, Rule, one

EVENT = one(user_id="user_id", item_id="item_id", timestamp="time", rating="rating", event="type")
RULES = (
    Rule(
        Reading("digr-events", "interactions", EVENT),
        r"events\.parquet",
        ("event_id", "type", "user_id", "item_id", "time", "received"),
    ),
)
