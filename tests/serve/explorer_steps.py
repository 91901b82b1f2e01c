"""Steps that the tests of the page share: open it, wait for its list, and ask the endpoint for the list that it should show."""

from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from tests.patience import CEILING_SECONDS
from tests.serve.chromium import Page

SETTLED = "document.querySelector('.card, .columns .problem') && document.getElementById('results').ariaBusy === 'false'"


@contextmanager
def watched(browser: Page, url: str) -> Iterator[Page]:
    """Open the page anew; afterwards nothing went wrong in it, and it spoke to this server alone."""
    browser.open(f"{url}/#")
    browser.wait("document.querySelectorAll('#popular li').length && document.querySelectorAll('#tree li').length")
    browser.events.clear()
    yield browser
    assert [told for told in browser.complaints() if "status of 4" not in told] == []
    assert {address for address in browser.requested() if not address.startswith((url, "blob:"))} == set()


def open_items(page: Page, url: str, *items: str, more: str = "") -> None:
    """Open the page with a history in its address, and wait for the list."""
    page.open(f"{url}/#items={','.join(items)}{more}")
    settled(page)


def settled(page: Page) -> None:
    """Wait until a list or a problem is shown."""
    page.wait(SETTLED)


def listed(url: str, **body) -> list[dict]:
    """Return the items that the endpoint lists."""
    reply = httpx.post(f"{url}/v1/recommend", json={"k": 10, **body}, timeout=CEILING_SECONDS)
    return reply.raise_for_status().json()["items"]


def ids(items: list[dict]) -> list[str]:
    """Return the ids of listed items."""
    return [item["item_id"] for item in items]


def shown(page: Page, column: int = 1) -> list[str]:
    """Return the ids of the items that a column shows."""
    return page.js(f"[...document.querySelectorAll('.column:nth-child({column}) .card')].map((card) => card.dataset.item)")


def wait_for_list(page: Page, expected: list[str]) -> None:
    """Wait until the first column shows these items in this order."""
    cards = "[...document.querySelectorAll('.column:first-child .card')].map((card) => card.dataset.item).join()"
    page.wait(f"{cards} === '{','.join(expected)}'")
