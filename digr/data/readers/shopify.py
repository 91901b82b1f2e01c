"""Shopify's exports of products and orders, as CSV; products also by the names of columns that Shopify uses since 2025.

A product has a row for each variant and further image; only the first has the texts. An order has a row for each item; only
the first has customer, date and currency. An item is a product (Handle) or a variant (SKU), whichever the orders use.
"""

import re

from digr.data.importing.rules import Pick, Reading, Rule

TITLE, SKU, LINE = "Title", "Variant SKU", "Lineitem sku"
CATEGORIES = ("Product Category", "Type", "Tags")


NEW_NAMES = {
    "Handle": "URL handle",
    "Body (HTML)": "Description",
    "Product Category": "Product category",
    SKU: "SKU",
    "Variant Price": "Price",
    "Image Src": "Product image URL",
    "Variant Image": "Variant image URL",
}


def _filled(pick: Pick, *columns: tuple[str, str]) -> str:
    """Return the SQL of columns in which all rows of a product or order have its first value."""
    return ", ".join(f"arg_min(nullif({pick(theirs)}, ''), n) OVER (PARTITION BY owner) AS {ours}" for ours, theirs in columns)


def _numbered(owner: str) -> str:
    return f"SELECT *, {owner} AS owner, row_number() OVER () AS n FROM source"


def _products(pick: Pick) -> str:
    parts = [
        f"string_split({pick(CATEGORIES[0])}, ' > ')",
        f"[{pick(CATEGORIES[1])}]",
        f"string_split({pick(CATEGORIES[2])}, ', ')",
    ]
    listed = " || ".join(f"coalesce({part}, [])" for part in parts)
    texts = _filled(
        pick,
        ("title", TITLE),
        ("description", "Body (HTML)"),
        ("brand", "Vendor"),
        ("image", "Image Src"),
        ("price", "Variant Price"),
    )
    categories = (
        f"arg_min(CASE WHEN {pick(TITLE)} <> '' THEN CAST(to_json({listed}) AS VARCHAR) END, n) OVER (PARTITION BY owner)"
    )
    columns = {"sku": SKU, "own_price": "Variant Price", "own_image": "Variant Image"}
    own = ", ".join(f"nullif({pick(theirs)}, '') AS {name}" for name, theirs in columns.items())
    return f"SELECT owner, n, {texts}, {categories} AS categories, {own} FROM ({_numbered(pick('Handle'))})"


def _by_handle(pick: Pick) -> str:
    first = f"SELECT *, row_number() OVER (PARTITION BY owner ORDER BY n) AS place FROM ({_products(pick)})"
    return (
        f"SELECT owner AS item_id, title, description, brand, categories, price, image FROM ({first}) WHERE place = 1 ORDER BY n"
    )


def _by_sku(pick: Pick) -> str:
    own = "coalesce(own_price, price) AS price, coalesce(own_image, image) AS image"
    return (
        f"SELECT sku AS item_id, title, description, brand, categories, {own} FROM ({_products(pick)}) "
        f"WHERE sku IS NOT NULL OR own_price IS NOT NULL ORDER BY n"
    )


def _orders(pick: Pick) -> str:
    user = f"coalesce(nullif({pick('Email')}, ''), nullif({pick('Customer ID')}, ''))"
    shared = _filled(pick, ("timestamp", "Created at"), ("currency", "Currency"))
    who = f"arg_min({user}, n) OVER (PARTITION BY owner) AS user_id"
    own = f"{pick(LINE)} AS item_id, {pick('Lineitem name')} AS title, {pick('Lineitem price')} AS price"
    named = f"SELECT n, {who}, {shared}, {own} FROM ({_numbered(pick('Name'))})"
    return f"SELECT user_id, item_id, timestamp, title, price, currency FROM ({named}) ORDER BY n"


TEXTS = {
    "title": TITLE,
    "description": "Body (HTML)",
    "brand": "Vendor",
    "categories": ", ".join(CATEGORIES),
    "price": "Variant Price",
    "image": "Image Src",
}
ORDER = {
    "user_id": "Email, else Customer ID",
    "item_id": LINE,
    "timestamp": "Created at",
    "title": "Lineitem name",
    "price": "Lineitem price",
    "currency": "Currency",
}
BY_HANDLE = Reading("shopify", "items", select=_by_handle, shown={"item_id": "Handle"} | TEXTS)
BY_SKU = Reading("shopify", "items", select=_by_sku, shown={"item_id": SKU} | TEXTS | {"image": "Variant Image, else Image Src"})


def _by_new_names(reading: Reading) -> Reading:
    """Return the reading of the same columns under their new names."""
    select = reading.select
    assert select

    def renamed(text: str) -> str:
        return re.sub("|".join(map(re.escape, NEW_NAMES)), lambda old: NEW_NAMES[old[0]], text)

    shown = {ours: renamed(theirs) for ours, theirs in reading.shown.items()}
    return reading._replace(select=lambda pick: select(lambda name: pick(NEW_NAMES.get(name, name))), shown=shown)


RULES = (
    Rule(BY_HANDLE, needs=("Handle", TITLE)),
    Rule(BY_SKU, needs=("Handle", TITLE, SKU)),
    Rule(_by_new_names(BY_HANDLE), needs=(NEW_NAMES["Handle"], TITLE)),
    Rule(_by_new_names(BY_SKU), needs=(NEW_NAMES["Handle"], TITLE, NEW_NAMES[SKU])),
    Rule(Reading("shopify", "interactions", select=_orders, shown=ORDER), needs=("Name", "Created at", LINE)),
)
LAYOUTS = ()
