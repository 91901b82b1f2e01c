"""The one text of an item that miners, labelers and encoders read."""

from collections.abc import Sequence

import pyarrow as pa


def item_texts(items: pa.Table, max_chars: int = 1200, captions: Sequence[str | None] = ()) -> list[str]:
    """Return one text per row of `items`: title, brand, categories, caption, description, in that order, absent parts left out.

    Args:
        items: rows of the `items` table.
        max_chars: characters kept of a text, at least 1.
        captions: what each item's image shows, in words.
    """
    texts = []
    rows = items.select(["title", "brand", "categories", "description"]).to_pylist()
    for row, caption in zip(rows, captions or [None] * len(rows), strict=True):
        parts = [row["title"].strip()]
        parts += [f"Brand: {row['brand'].strip()}"] if (row["brand"] or "").strip() else []
        parts += [f"Category: {' > '.join(row['categories'])}"] if row["categories"] else []
        parts += [f"Image: {caption}"] if caption else []
        parts += [row["description"].strip()] if (row["description"] or "").strip() else []
        texts.append(". ".join(part.rstrip(".") for part in parts)[:max_chars])
    return texts
