"""The text of an item, which miners, labelers and encoders read, and the conversion of HTML to plain text."""

import html
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from selectolax.lexbor import LexborHTMLParser as HTMLParser


def item_texts(items: pa.Table, max_chars: int = 1200, captions: Sequence[str | None] = ()) -> list[str]:
    """Return one text per row of `items`: title, brand, categories, caption and description, without missing parts.

    Args:
        items: rows of the `items` table.
        max_chars: characters kept of a text, at least 1.
        captions: a caption of each item's image, or None.
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


_MARKUP = r"<[a-zA-Z/!][^>]*>|&(#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,31});"


def plain_texts(texts: pa.ChunkedArray) -> tuple[pa.ChunkedArray, int]:
    """Turn HTML into the text that a browser shows; return the texts, null if empty, and how many were changed.

    Only texts with a tag or a character reference change. Scripts and styles are removed.

    >>> plain_texts(pa.chunked_array([["Acme&reg; <i>Pro</i>", "a < b", "<style>p{}</style>"]]))[0].to_pylist()
    ['Acme® Pro', 'a < b', None]
    """
    marked = np.flatnonzero(pc.fill_null(pc.match_substring_regex(texts, _MARKUP), False).to_numpy())
    if not len(marked):
        return texts, 0
    shown = pa.array([_plain(text) or None for text in texts.take(pa.array(marked)).to_pylist()], pa.string())
    place = np.full(len(texts), -1, np.int64)
    place[marked] = np.arange(len(marked))
    return pc.if_else(pa.array(place >= 0), shown.take(pa.array(place, mask=place < 0)), texts), len(marked)


_BLOCKS = "address,article,blockquote,br,dd,div,dl,dt,figure,h1,h2,h3,h4,h5,h6,hr,li,ol,p,pre,section,table,td,th,tr,ul"
"""Elements that begin and end a line, so that words on both sides are separated."""


def _plain(text: str) -> str:
    tree = HTMLParser(text)
    tree.strip_tags(["script", "style"])
    for block in tree.css(_BLOCKS):
        block.insert_before(" ")
        block.insert_after(" ")
    words = tree.body.text() if tree.body else ""
    # exports of shops may be escaped twice
    return " ".join(html.unescape(words).split())
