"""The columns of the common form, and how the texts of a file become those of items."""

from typing import Any

import pyarrow as pa

from digr.data.importing.rules import ITEM_COLUMNS
from digr.data.importing.values import currency_of, parse_categories, parse_picture, parse_price, parse_text

TYPES = {
    "user_id": pa.string(),
    "item_id": pa.string(),
    "timestamp": pa.timestamp("ms", tz="UTC"),
    "rating": pa.float64(),
    "position": pa.int32(),
    "title": pa.string(),
    "description": pa.string(),
    "brand": pa.string(),
    "categories": pa.list_(pa.string()),
    "price": pa.float64(),
    "currency": pa.string(),
    "image_url": pa.string(),
    "image_file": pa.string(),
    "history": pa.list_(pa.string()),
    "target": pa.string(),
}


def clean_items(batch: pa.RecordBatch, base: str) -> pa.Table:
    """Return items whose prices, categories and images are parsed from texts.

    Args:
        batch: the columns ITEM_COLUMNS, all texts.
        base: folder or address to which paths of images are relative.
    """
    texts = {name: batch.column(name).to_pylist() for name in ITEM_COLUMNS}
    priced = [parse_price(text) for text in texts["price"]]
    pictures = [parse_picture(text) for text in texts["image"]]
    placed = [_placed(picture, base) for picture in pictures]
    columns: dict[str, list[Any]] = {
        "item_id": texts["item_id"],
        "title": [text or None for text in texts["title"]],
        "description": [parse_text(text) for text in texts["description"]],
        "brand": [parse_text(text) for text in texts["brand"]],
        "categories": [parse_categories(text) for text in texts["categories"]],
        "price": [price for price, _ in priced],
        "currency": [
            _currency(own) or (currency if price is not None else None)
            for own, (price, currency) in zip(texts["currency"], priced, strict=True)
        ],
        "image_url": [place if place and "://" in place else None for place in placed],
        "image_file": [place if place and "://" not in place else None for place in placed],
    }
    return pa.table({name: pa.array(values, TYPES[name]) for name, values in columns.items()})


def _currency(text: str | None) -> str | None:
    code = (text or "").strip().upper()
    return code if len(code) == 3 and code.isalpha() and code.isascii() else currency_of(text)


def _placed(picture: str | None, base: str) -> str | None:
    if not picture or "://" in picture or picture.startswith("/"):
        return f"https:{picture}" if picture and picture.startswith("//") else picture
    return f"{base.rstrip('/')}/{picture}"
