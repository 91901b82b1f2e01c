"""The page in a real Chromium, over a real server with a tiny run; the ids and titles are those of tests/serve/tiny_run.py."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve.keys import make_key
from tests.serve.chromium import Page
from tests.serve.explorer_server import HOSTILE, serve_two_versions, write_keys
from tests.serve.explorer_steps import ids, listed, open_items, settled, shown, wait_for_list, watched

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> Iterator[str]:
    with serve_two_versions(tmp_path_factory.mktemp("runs")) as address:
        yield address


@pytest.fixture
def page(browser, url) -> Iterator[Page]:
    """Open the page anew."""
    with watched(browser, url) as page:
        yield page


def test_a_history_is_searched_chosen_and_answered_by_keyboard_alone(page, url):
    page.press(*["Tab"] * 7)  # skip link, model, other model, add an item, key, the switch, the search
    assert page.js("document.activeElement.id") == "search"
    page.type("title item05")
    page.wait("document.querySelectorAll('#found [role=option]').length === 1")
    page.press("ArrowDown")
    active = page.js("document.getElementById(document.activeElement.getAttribute('aria-activedescendant')).textContent")
    assert active == "Title item05item05"
    page.press("Enter")
    page.wait("document.querySelectorAll('#history li').length === 1")
    page.type("title item06")
    page.press("Enter")  # at once: looks, and chooses nothing that does not answer what was typed
    page.wait("document.activeElement.ariaExpanded === 'true'")
    page.press("Enter")
    page.wait("document.querySelectorAll('#history li').length === 2 && document.querySelectorAll('.card').length === 10")
    settled(page)
    expected = listed(url, history=["item05", "item06"])
    page.wait(f"document.querySelector('.card').dataset.item === '{expected[0]['item_id']}'")
    assert shown(page) == [item["item_id"] for item in expected]
    assert page.text(".card:first-child .reasons li") == expected[0]["reasons"]
    page.press("Tab", "Tab")  # past the first item's "later", to its "remove"
    page.press("Enter")
    page.wait("document.querySelectorAll('#history li').length === 1")
    assert page.js("document.querySelector('#history li').dataset.item") == "item06"
    assert page.js("document.activeElement.getAttribute('aria-label')") == "Remove Title item06"
    shorter = ids(listed(url, history=["item06"]))
    wait_for_list(page, shorter)
    new = len(set(shorter) - set(ids(expected)))
    assert new and page.text("#status") == [f"List updated, 10 recommendations of one, {new} new"]


def test_items_are_found_by_what_they_are_for(page):
    page.click("#search")
    page.type("weekend hik")
    page.wait("document.querySelectorAll('#found [role=option] .interest').length === 8")
    assert set(page.text("#found .interest")) == {", for weekend hikes"}
    page.press("ArrowDown")
    active = page.js("document.getElementById(document.activeElement.getAttribute('aria-activedescendant')).textContent")
    assert active == "Title item06, for weekend hikesitem06"  # the most popular of them
    page.press("Enter")
    page.wait("document.querySelector('#history li')?.dataset.item === 'item06'")
    page.type("no such words")
    page.wait("document.querySelector('#found .nothing')?.textContent === 'No title or interest has all these words'")


def test_the_history_can_be_put_in_another_order(page, url):
    open_items(page, url, "item01", "item02", "item03")
    page.click("#history li:nth-child(3) [data-tool=earlier]")
    page.wait("location.hash === '#items=item01,item03,item02'")
    order = ["item01", "item03", "item02"]
    expected = ids(listed(url, history=order))
    wait_for_list(page, expected)


def test_titles_are_text_and_images_come_from_this_server(page, url):
    open_items(page, url, "item07", "item05")
    assert page.text("#history .title")[0] == HOSTILE
    assert page.js("document.title") == "DIGR explorer"
    page.wait("document.querySelector('[data-item=item05] img').naturalWidth === 40")


def test_filters_narrow_the_list_and_a_filter_that_leaves_nothing_says_so(page, url):
    open_items(page, url, "item05", "item06")
    page.click("#max")
    page.type("30")
    page.click("#category")
    page.type("c1")
    page.click("#only")
    page.click("#exclude")
    only = {"categories": ["c1"], "max_price": 30}
    expected = ids(listed(url, history=["item05", "item06"], allow=only, exclude_history=True))
    assert expected and "item05" not in expected
    wait_for_list(page, expected)
    assert page.text("#filter-count") == ["3 in use"]
    page.click("#min")
    page.type("29.5")
    page.wait("document.querySelector('.columns .problem')")
    assert page.text(".columns .problem code") == ["no-items-left"]
    assert "allow, deny and exclude_history leave none of the 60 items; loosen them" in page.text(".columns .problem")[0]
    page.click("#reset")
    page.wait("document.querySelectorAll('.card').length === 10")


def test_a_price_is_shown_in_its_currency_and_one_is_chosen_only_where_there_are_several(browser, page, url, tmp_path):
    open_items(page, url, "item05", "item06")
    told = dict(zip(shown(page), page.js("[...document.querySelectorAll('.card')].map((card) => card.innerText)"), strict=True))
    priced = [item for item in told if int(item[4:]) % 7]
    assert priced and all(f"€{int(item[4:])}.00" in told[item] for item in priced)
    assert page.js("document.getElementById('currency-box').hidden")
    with serve_two_versions(tmp_path, currencies=("EUR", "JPY", None)) as several:
        open_items(page, several, "item05", "item06")
        page.click("#max")
        page.type("30")
        page.choose("#currency", "JPY")
        only = {"max_price": 30, "currency": "JPY"}
        expected = ids(listed(several, history=["item05", "item06"], allow=only))
        wait_for_list(page, expected)
        assert page.text(".card .price") == [f"¥{int(item[4:])}" for item in expected]
        page.choose("#currency", "EUR")
        page.wait("document.querySelector('.card .price')?.textContent.startsWith('€')")
        page.click("#reset")
        page.wait("[...document.querySelectorAll('.card .price')].some((price) => /^[0-9]+$/.test(price.textContent))")
        page.events.clear()  # of the other server
    page.open(f"{url}/#")


def test_the_path_of_a_listed_item_is_lit_and_the_tree_is_walked_by_keyboard(page, url):
    open_items(page, url, "item05")
    item = listed(url, history=["item05"])[1]
    path = [".".join(map(str, item["sid"][: level + 1])) for level in range(3)]
    page.click(".card:nth-child(2) .path")
    page.wait(f"document.activeElement.dataset.prefix === '{path[2]}'")
    assert [
        prefix for prefix in path if page.js(f"document.querySelector('[data-prefix=\"{prefix}\"]').matches('.lit.on-path')")
    ] == path
    assert page.js("document.activeElement.getAttribute('aria-level')") == "3"
    page.press("ArrowLeft", "ArrowLeft")  # to the parent, then close it
    page.wait(f"document.activeElement.dataset.prefix === '{path[1]}' && document.activeElement.ariaExpanded === 'false'")
    page.press("ArrowRight", "ArrowRight")  # open it again, then in
    page.wait(f"document.activeElement.dataset.prefix?.startsWith('{path[1]}.')")
    added = page.js("document.activeElement.dataset.item")
    page.press("Enter")
    page.wait(f"document.querySelector('#history li:nth-child(2)')?.dataset.item === '{added}'")


def test_two_versions_stand_side_by_side_with_their_differences_marked(page, url):
    open_items(page, url, "item05", "item06")
    page.choose("#other", "two")
    page.wait("document.querySelectorAll('.column').length === 2")
    lists = {name: ids(listed(url, history=["item05", "item06"], model=name)) for name in ("one", "two")}
    assert [shown(page, 1), shown(page, 2)] == [lists["one"], lists["two"]]
    marks = page.text(".column:nth-child(2) .move .hidden")
    for place, item in enumerate(lists["two"]):
        if item not in lists["one"]:
            assert marks[place] == "not in the list of one"
        else:
            by = lists["one"].index(item) - place
            word = "higher" if by > 0 else "lower"
            assert marks[place] == (f"{abs(by)} {word} than in one" if by else "same place as in one")
    both = len(set(lists["one"]) & set(lists["two"]))
    assert page.text("#overlap")[0].startswith(f"{both} item")


def test_an_address_may_name_anything_and_what_is_unknown_is_left_out(page, url):
    page.open("about:blank")
    open_items(page, url, "item05", "%zz", "a%2Cb")
    assert page.js("[...document.querySelectorAll('#history li')].map((row) => row.dataset.item)") == ["item05", "%zz", "a,b"]
    assert page.text(".notice") == ["Left out, not in the catalogue: %zz, a,b"]
    assert shown(page) == ids(listed(url, history=["item05"]))
    page.choose("#model", "two")
    expected = ids(listed(url, history=["item05"], model="two"))
    wait_for_list(page, expected)


def test_users_and_the_unknown_get_lists_that_say_where_they_come_from(page, url):
    page.click("[name=mode][value=user]")
    page.click("#user")
    page.type("u1")
    page.press("Enter")
    expected = ids(listed(url, user_id="u1"))
    wait_for_list(page, expected)
    page.js("document.getElementById('user').value = 'nobody'")
    page.click("#by-user button")
    page.wait("document.querySelector('.badge')?.textContent === 'by popularity'")
    assert shown(page)[:3] == ["item05", "item06", "item07"]
    assert "most popular" in page.text(".notice")[0]


def test_a_deployment_with_keys_asks_for_one_which_stays_in_this_tab(browser, tmp_path):
    key, record = make_key("shop", "read")
    with serve_two_versions(tmp_path, write_keys(tmp_path / "keys.toml", record)) as url:
        browser.open(url)
        browser.wait("document.querySelector('.problem code')?.textContent === 'unauthorised'")
        browser.click(".problem button")
        assert browser.js("document.activeElement.id") == "key"
        browser.type(key)
        browser.press("Enter")
        browser.wait("!document.getElementById('key-box').open && document.querySelectorAll('#popular li').length")
        browser.events.clear()
        browser.click("#popular button")
        browser.wait("document.querySelectorAll('.card').length === 10")
        # an <img> sends no key: the page reads the image itself
        browser.wait("document.querySelector('#history img')?.src.startsWith('blob:')")
        asked = [request for request in browser.requested() if "/v1/" in request]
        assert len(asked) >= 3 and not any(key in request for request in asked)
        kept = browser.js("[Object.values(sessionStorage), localStorage.length, document.cookie, location.href]")
        assert kept == [[key], 0, "", f"{url}/#items=item05"]
        assert browser.complaints() == []


def test_the_routes_are_shown_without_another_host_and_asked_with_the_key_that_is_typed_in(browser, tmp_path):
    key, record = make_key("shop", "read")
    with serve_two_versions(tmp_path, write_keys(tmp_path / "keys.toml", record)) as url:
        browser.open("about:blank")  # what the page before asked of its own server ends here
        browser.events.clear()
        browser.open(f"{url}/docs")
        browser.wait("document.querySelector('#operations-default-get_models_v1_models_get')")
        browser.click(".btn.authorize")
        browser.wait("document.querySelector('.auth-container input')")
        browser.click(".auth-container input")
        browser.type(key)
        browser.click(".auth-btn-wrapper .authorize")
        browser.click(".auth-btn-wrapper .btn-done")
        browser.wait("!document.querySelector('.dialog-ux')")
        browser.click("#operations-default-get_models_v1_models_get .opblock-summary-control")
        browser.wait("document.querySelector('.try-out__btn')")
        browser.click(".try-out__btn")
        browser.wait("document.querySelector('.execute')")
        browser.click(".execute")
        browser.wait("document.querySelector('.live-responses-table tbody .response-col_status')?.textContent.startsWith('200')")
        assert browser.complaints() == []
        assert {address for address in browser.requested() if not address.startswith((url, "data:", "blob:"))} == set()


def test_a_server_that_is_gone_is_a_problem_with_a_way_to_try_again(page, url):
    open_items(page, url, "item05")
    page.call("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=-1, uploadThroughput=-1)
    page.click("#exclude")
    page.wait("document.querySelector('.columns .problem code')?.textContent === 'no-connection'")
    page.call("Network.emulateNetworkConditions", offline=False, latency=0, downloadThroughput=-1, uploadThroughput=-1)
    page.click(".columns .problem button")
    page.wait("document.querySelectorAll('.card').length === 10")
    page.events.clear()  # the browser tells of the lost connection


def test_every_control_has_a_name_and_the_page_fits_narrow_screens(page, url, tmp_path):
    open_items(page, url, "item05", "item06")
    controls = {
        "button",
        "textbox",
        "combobox",
        "checkbox",
        "radio",
        "spinbutton",
        "treeitem",
        "option",
        "link",
        "DisclosureTriangle",
    }
    found = [(role, name) for role, name in page.accessible() if role in controls]
    assert len(found) > 40
    assert [role for role, name in found if not name.strip()] == []
    roles = {role for role, _ in page.accessible()}
    assert {"tree", "treeitem", "combobox", "status", "main", "region", "list"} <= roles
    shots = Path(os.environ.get("DIGR_SCREENSHOTS", tmp_path))
    for name, width, scheme in (("light", 1500, "light"), ("dark", 1500, "dark"), ("narrow", 360, "light")):
        page.screenshot(shots / f"explorer_{name}.png", width, 900, scheme)
        assert page.js("document.documentElement.scrollWidth <= window.innerWidth"), f"{name}: the page is wider than the screen"
    page.js("document.getElementById('key-box').open = true")
    assert page.js("document.getElementById('key-form').getBoundingClientRect().left") >= 0
    page.call("Emulation.clearDeviceMetricsOverride")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(page, url, scheme):
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    open_items(page, url, "item05", "item06")
    contrast = (Path(__file__).parent / "contrast.js").read_text()
    weak = page.js(contrast)
    page.js("document.documentElement.style.setProperty('--muted', '#888')")
    assert page.js(contrast) != []  # the check itself can fail
    page.call("Emulation.setEmulatedMedia", features=[])
    assert weak == []
