"""The page changes things: the events of a visit, and new items."""

import json
from collections.abc import Iterator

import httpx
import pytest

from serve.keys import make_key
from tests.patience import CEILING_SECONDS
from tests.serve.chromium import Page
from tests.serve.explorer_server import HOSTILE, serve_ranked, serve_two_versions, write_keys
from tests.serve.explorer_steps import ids, listed, open_items, settled, wait_for_list, watched

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> Iterator[str]:
    with serve_ranked(tmp_path_factory.mktemp("ranked")) as address:
        yield address


@pytest.fixture
def page(browser, url) -> Iterator[Page]:
    """Open the page anew."""
    with watched(browser, url) as page:
        yield page


def _bodies(page: Page, path: str) -> list[dict]:
    """What the page sent to a route, oldest first."""
    sent = [event["params"]["request"] for event in page.events if event["method"] == "Network.requestWillBeSent"]
    return [json.loads(request["postData"]) for request in sent if request["url"].endswith(path) and request["method"] == "POST"]


def _last_list(page: Page) -> str:
    """The id of the list that is shown."""
    answers = [event["params"] for event in page.events if event["method"] == "Network.responseReceived"]
    request = [answer["requestId"] for answer in answers if answer["response"]["url"].endswith("/v1/recommend")][-1]
    return json.loads(page.call("Network.getResponseBody", requestId=request)["body"])["recommendation_id"]


def _visit(page: Page) -> list[list[str]]:
    return page.js(
        "[...document.querySelectorAll('#visit li')].map((row) => [row.dataset.event, row.dataset.item, row.className])"
    )


def _open_user(page: Page, url: str, user: str) -> None:
    page.open("about:blank")
    page.open(f"{url}/#user={user}&model=ranked")
    settled(page)


def test_an_event_of_a_known_user_is_sent_if_wanted_and_the_next_list_knows_it(page, url):
    _open_user(page, url, "u1")
    before = ids(listed(url, user_id="u1", model="ranked"))
    wait_for_list(page, before)
    page.click("#send")
    assert page.text("#send-note") == ["What you click is kept as done by u1."]
    shown_list, item = _last_list(page), before[2]
    page.js(f"document.querySelector('[data-item={item}] [data-key$=cart]').focus()")
    page.press("Enter")
    page.wait("document.querySelector('#visit li.sent')")
    after = ids(listed(url, user_id="u1", model="ranked"))
    assert after != before
    wait_for_list(page, after)
    (event,) = _bodies(page, "/v1/events")
    assert len(event.pop("event_id")) == 32
    assert event == {"type": "cart", "user_id": "u1", "item_id": item, "recommendation_id": shown_list}
    assert _visit(page) == [["cart", item, "sent"]]
    assert "seeds" not in _bodies(page, "/v1/recommend")[-1]
    assert page.js("document.activeElement.closest('.card') !== null")
    page.click(".card:nth-child(2) .open")
    page.wait("document.querySelectorAll('#visit li.sent').length === 2")
    assert [event["type"] for event in _bodies(page, "/v1/events")] == ["cart", "view"]
    _open_user(page, url, "u2")
    assert (_visit(page), page.js("document.getElementById('send').checked")) == ([], False)


def test_what_is_not_sent_counts_on_the_page_only(page, url):
    _open_user(page, url, "u2")
    before = ids(listed(url, user_id="u2", model="ranked"))
    assert page.text("#send-note") == ["What you click counts on this page, and is not kept for u2."]
    page.click(f"[data-item={before[3]}] [data-key$=purchase]")
    wait_for_list(page, ids(listed(url, user_id="u2", seeds=[before[3]], model="ranked")))
    assert _visit(page) == [["purchase", before[3], "here"]]
    page.click("#forget")
    wait_for_list(page, before)
    assert (_bodies(page, "/v1/events"), _visit(page)) == ([], [])
    assert ids(listed(url, user_id="u2", model="ranked")) == before


def test_an_event_that_was_not_taken_says_why_and_is_sent_again_with_its_id(page, url):
    _open_user(page, url, "u3")
    page.click("#send")
    page.call("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=-1, uploadThroughput=-1)
    page.click(".card:nth-child(1) [data-key$=cart]")
    page.wait("document.querySelector('#visit li.failed')")
    assert "not sent: the server cannot be reached" in page.text("#visit .note")[0]
    page.call("Network.emulateNetworkConditions", offline=False, latency=0, downloadThroughput=-1, uploadThroughput=-1)
    page.click("#visit .failed button")
    page.wait("document.querySelector('#visit li.sent')")
    settled(page)
    first, second = _bodies(page, "/v1/events")
    assert first == second
    page.events.clear()  # the browser tells of the lost connection


def test_without_a_user_a_click_shows_the_item_and_adds_it_to_the_history_and_no_event_is_sent(page, url):
    open_items(page, url, "item05", "item06")
    before = ids(listed(url, history=["item05", "item06"]))
    item = next(item for item in before if item not in ("item05", "item06"))
    assert page.js("document.getElementById('send').disabled")
    page.js(f"document.querySelector('.card[data-item={item}] .open').focus()")
    page.press("Enter")
    page.wait("document.querySelector('#card-body dl')")
    assert page.text("#card-title") == [f"Title {item}"]
    assert item in page.text("#card-body dd") and page.text("#card-body .reasons .interest")
    after = ids(listed(url, history=["item05", "item06", item]))
    wait_for_list(page, after)
    page.wait(f"location.hash === '#items=item05,item06,{item}&item={item}'")
    page.wait("document.getElementById('card-status').textContent.startsWith('List updated, 10 recommendations of ranked')")
    page.press("Escape")
    page.wait(f"location.hash === '#items=item05,item06,{item}'")
    assert item in after
    page.wait(f"document.activeElement.dataset.key === '0/{item}/open'")
    assert (_bodies(page, "/v1/events"), _visit(page)) == ([], [["view", item, "here"]])


def test_an_item_is_added_by_a_form_that_shows_its_semantic_id_and_leads_to_its_card(browser, tmp_path):
    keys = [make_key("reader", "read"), make_key("owner", "admin")]
    with serve_two_versions(tmp_path, write_keys(tmp_path / "keys.toml", *(record for _, record in keys))) as url:
        browser.open(url)
        browser.wait("document.querySelector('.problem code')?.textContent === 'unauthorised'")
        _use_key(browser, keys[0][0])
        browser.events.clear()
        browser.js("document.getElementById('add-item').focus()")
        browser.press("Enter")
        _fill(
            browser,
            title=HOSTILE,
            item_id="kettle 7",
            price="-3",
            currency="eur",
            categories="kitchen, all",
            interests="tea at home",
        )
        browser.press("Enter")
        browser.wait("document.querySelector('#added .problem code')?.textContent === 'forbidden'")
        browser.click("#added .problem button")  # closes the form, which keeps what was typed
        assert browser.js("document.activeElement.id") == "key"
        _use_key(browser, keys[1][0])
        browser.click("#add-item")
        browser.click("#adding-send")
        browser.wait("!document.getElementById('new-price-error').hidden")
        assert browser.text("#new-price-error") == ["Input should be greater than or equal to 0"]
        assert browser.js("document.activeElement.id") == "new-price"
        assert browser.js("document.activeElement.ariaInvalid") == "true"
        assert ("spinbutton", "Price") in browser.accessible()
        _fill(browser, price="25")
        browser.press("Enter")
        browser.wait("document.querySelector('#added a')")
        assert browser.js("document.activeElement.matches('#added a')")
        headers = {"Authorization": f"Bearer {keys[1][0]}"}
        item = httpx.get(f"{url}/v1/items/kettle%207", headers=headers, timeout=CEILING_SECONDS).json()
        assert (item["title"], item["price"], item["currency"]) == (HOSTILE, 25.0, "EUR")
        assert (item["categories"], item["interests"]) == (["kitchen", "all"], ["tea at home"])
        assert browser.text("#added .sid")[0] == "".join(map(str, item["sid"]))
        browser.press("Enter")
        browser.wait("document.querySelector('#card-body dl') && document.getElementById('card').open")
        assert browser.text("#card-title") == [HOSTILE]
        assert "€25.00" in browser.text("#card-body dd")
        assert not browser.js("document.getElementById('adding').open")
        assert browser.js("document.title") == "DIGR explorer"
        browser.press("Escape")
        assert [told for told in browser.complaints() if "status of 4" not in told] == []


def test_an_item_is_made_unavailable_and_taken_out_by_its_card(browser, tmp_path):
    key, record = make_key("owner", "admin")
    with (
        serve_two_versions(tmp_path, write_keys(tmp_path / "keys.toml", record)) as url,
        httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=CEILING_SECONDS) as client,
    ):
        browser.open(url)
        browser.wait("document.querySelector('.problem code')?.textContent === 'unauthorised'")
        _use_key(browser, key)
        browser.open("about:blank")
        browser.events.clear()
        browser.open(f"{url}/#items=item05,item06&item=item30")
        button = "document.querySelector('.changes button')?.textContent"
        browser.wait(f"{button} === 'Not available'")
        for now, offered, available in ((["no, not available"], "Available again", False), ([], "Not available", True)):
            browser.click(".changes summary")
            browser.click(".changes button")
            browser.wait(f"{button} === '{offered}'")
            assert [word for word in browser.text("#card-body dd") if word.startswith("no, ")] == now
            assert client.get("/v1/items/item30").json()["available"] == available
        browser.click(".changes summary")
        browser.click(".changes .danger")
        browser.wait("!document.getElementById('card').open")
        browser.wait("location.hash === '#items=item05,item06'")
        assert client.get("/v1/items/item30").status_code == 404
        assert browser.complaints() == []


def _use_key(page: Page, key: str) -> None:
    page.js("document.getElementById('key-box').open = true; document.getElementById('key').value = ''")
    page.js("document.getElementById('key').focus()")
    page.type(key)
    page.press("Enter")
    page.wait("!document.getElementById('key-box').open && document.querySelectorAll('#popular li').length > 1")


def _fill(page: Page, **fields: str) -> None:
    for name, value in fields.items():
        page.js(f"document.getElementById('new-{name}').focus(); document.getElementById('new-{name}').select()")
        page.type(value)
