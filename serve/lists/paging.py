"""Pages of a list: a cursor names what was listed, and the next page is the list of the same request without that.

The cursor holds the state, so no replica keeps any. It is no secret and needs no signature: whoever writes one of their own only
leaves items out of their own list. Items that are added, changed or taken out between two pages lead to no duplicate, and neither
does a history that grows. Behind `max_paged` items pages go on by popularity, and the cursor counts the items passed, so there it
belongs to one set of items.
"""

import base64
import hashlib
import zlib
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from serve.contract.problems import ProblemError
from serve.contract.schemas import MAX_CURSOR, MAX_K, Contract, ItemId
from serve.items.catalogue import ServedRun


class Page(Contract):
    """What a cursor says: where a page begins."""

    version: Annotated[str, Field(max_length=64)]
    """Digest of the policy and the semantic IDs that made the list."""
    earlier: list[ItemId] = Field([], max_length=2 * MAX_K)
    """Ids of the items of earlier pages, without those by popularity behind `max_paged` items."""
    passed: int = Field(0, ge=0, le=1 << 40)
    """Place in the order of all items by popularity up to which pages behind `max_paged` items went."""
    num_items: int = Field(0, ge=0, le=1 << 40)
    """Items of the catalogue in whose order they were passed."""

    def write(self) -> str:
        """Return the cursor."""
        packed = zlib.compress(self.model_dump_json(exclude_defaults=True).encode())
        return base64.urlsafe_b64encode(packed).decode().rstrip("=")

    def after(self, item_ids: Sequence[str]) -> "Page":
        """Return the page behind further listed items."""
        return self.model_copy(update={"earlier": [*self.earlier, *item_ids]})


def read_page(run: ServedRun, cursor: str) -> Page:
    """Read a cursor; the empty one is the first page.

    Raises:
        ProblemError: it is none, or it belongs to a list of another version, or of other items.
    """
    version = hashlib.sha256(f"{run.tables.policy_digest} {run.tables.sids_digest}".encode()).hexdigest()[:16]
    if not cursor:
        return Page(version=version)
    try:
        unpacker = zlib.decompressobj()
        text = unpacker.decompress(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)), MAX_CURSOR)
        if not unpacker.eof:
            raise ValueError("it is cut off, or unpacks to too much")
        page = Page.model_validate_json(text)
    except (zlib.error, ValueError):
        raise bad_cursor() from None
    if page.version != version:
        raise list_changed("another version answers now, or this one was built again")
    if page.passed and page.num_items != run.trie.num_items:
        raise list_changed(f"the catalogue has {run.trie.num_items} items now, it had {page.num_items}")
    return page


def bad_cursor() -> ProblemError:
    """Say that a cursor was not made by this endpoint."""
    detail = "cursor is not one of this endpoint's; send the cursor of the reply before, or an empty one for the first page"
    return ProblemError("bad-cursor", 422, "Not a cursor", detail, fields=["cursor"])


def list_changed(cause: str) -> ProblemError:
    """Say that a list cannot go on."""
    detail = f"the list to which the cursor belongs cannot go on: {cause}; begin again with an empty cursor"
    return ProblemError("list-changed", 409, "The list has changed", detail, fields=["cursor"])
