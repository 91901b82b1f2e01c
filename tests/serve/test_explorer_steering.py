"""The page of a version with a ranker: interests are wished for by a click, and every item says why it is listed."""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from tests.patience import CEILING_SECONDS
from tests.serve.chromium import Page
from tests.serve.explorer_server import serve_ranked
from tests.serve.explorer_steps import ids, listed, open_items, settled, wait_for_list, watched
from tests.serve.ranked_run import INTERESTS

pytestmark = pytest.mark.browser

HISTORY = ["item05", "item06"]
ESPRESSO = INTERESTS[1]
CHIPS = "#wishes li"


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> Iterator[str]:
    with serve_ranked(tmp_path_factory.mktemp("ranked")) as address:
        yield address


@pytest.fixture
def page(browser, url) -> Iterator[Page]:
    """Open the page anew."""
    with watched(browser, url) as page:
        yield page


def _chips(page: Page) -> list[list[str]]:
    """Weight and name of each wish."""
    parts = "[...chip.querySelectorAll('span')].map((part) => part.textContent)"
    return page.js(f"[...document.querySelectorAll('#wishes li')].map((chip) => {parts})")


def test_an_interest_is_wished_for_turned_to_less_and_taken_away_by_its_button_and_the_focus_stays(page, url):
    open_items(page, url, *HISTORY)
    plain = listed(url, history=HISTORY)
    name = next(item["reasons"][0] for item in plain if item["reasons"])
    button = f".columns button.interest[data-interest='{name}']"
    more, less = (listed(url, history=HISTORY, steer=[{"interest": name, "weight": weight}]) for weight in (1, -1))
    lists = [ids(items) for items in (plain, more, less)]
    assert lists[0] != lists[1] != lists[2], lists
    assert page.js(f'document.querySelector("{button}").textContent') == f"{name}, wish for more+"
    page.js(f'document.querySelector("{button}").focus()')
    for items, chips, told in (
        (more, [["+1", name]], f"{name}, more wished; turn to less+1"),
        (less, [["−1", name]], f"{name}, less wished; take the wish away−1"),
        (plain, [], f"{name}, wish for more+"),
    ):
        page.press("Enter")
        wait_for_list(page, ids(items))
        assert _chips(page) == chips
        settled(page)
        assert page.js("document.activeElement.closest('.columns') !== null")  # kept, or the item that stands there now
        assert set(page.text(button)) <= {told}
        page.js(f'document.querySelector("{button}").focus()')
    assert page.js("location.hash") == "#items=item05,item06"


def test_a_name_that_the_version_does_not_know_is_asked_in_words_and_the_list_says_so(page, url):
    open_items(page, url, *HISTORY, more=f"&wish=interest:1:coffee%20at%20home&wish=interest:2:{quote(ESPRESSO)}")
    wishes = [{"text": "coffee at home", "weight": 1}, {"interest": ESPRESSO, "weight": 2}]
    wait_for_list(page, ids(listed(url, history=HISTORY, steer=wishes)))
    assert page.text(".notice") == ["Taken as words, because this version has no interest of this name: coffee at home"]


def test_a_link_shows_the_same_list(page, url):
    more = f"&wish=interest:2.5:{quote(ESPRESSO)}&wish=text:-0.5:gone%20fishing&k=5&max=40&never=c1&exclude=1&model=ranked"
    open_items(page, url, *HISTORY, more=more)
    wishes = [{"interest": ESPRESSO, "weight": 2.5}, {"text": "gone fishing", "weight": -0.5}]
    fields = {"k": 5, "allow": {"max_price": 40}, "deny": {"categories": ["c1"]}, "exclude_history": True, "model": "ranked"}
    expected = ids(listed(url, history=HISTORY, steer=wishes, **fields))
    wait_for_list(page, expected)
    assert expected != ids(listed(url, history=HISTORY, **fields))
    assert _chips(page) == [["+2.5", ESPRESSO], ["−0.5", "gone fishing"]]
    assert page.text("#filter-count") == ["3 in use"]
    page.click("[aria-label='Less of gone fishing']")
    page.wait("location.hash.includes('wish=text:-1:gone%20fishing')")
    again = page.js("location.href")
    wishes[1]["weight"] = -1
    wait_for_list(page, ids(listed(url, history=HISTORY, steer=wishes, **fields)))
    page.open("about:blank")
    page.open(again)
    wait_for_list(page, ids(listed(url, history=HISTORY, steer=wishes, **fields)))
    assert page.js("location.href") == again


def test_an_address_of_nonsense_wishes_for_nothing(page, url):
    wrong = ["interest:0:a", "interest:x:a", "interest:11:a", "other:1:a", "interest:1:", "interest", "interest:1e9:a", "%zz"]
    open_items(page, url, *HISTORY, more="".join(f"&wish={wish}" for wish in wrong) + "&wish=text:1:tent&k=&min=&nothing&=&")
    assert _chips(page) == [["+1", "tent"]]
    open_items(page, url, *HISTORY, more="".join(f"&wish=text:1:word{number}" for number in range(12)))
    assert len(_chips(page)) == 8


def test_words_are_wished_for_and_weights_stepped_by_keyboard_and_0_is_no_weight(page, url):
    open_items(page, url, *HISTORY)
    page.js("document.getElementById('words').focus()")
    page.type("indoor trees")
    page.press("Enter")
    page.wait(f"document.querySelector('{CHIPS}')")
    assert page.js("document.activeElement.id") == "words"
    page.press("Tab", "Tab", "Tab")  # past the two buttons, to the chip's "less"
    for weight in ("+0.5", "−0.5", "−1"):
        page.press("Enter")
        assert _chips(page) == [[weight, "indoor trees"]]
        assert page.js("document.activeElement.ariaLabel") == "Less of indoor trees"
    wait_for_list(page, ids(listed(url, history=HISTORY, steer=[{"text": "indoor trees", "weight": -1}])))
    page.press("Tab", "Tab")
    assert page.js("document.activeElement.ariaLabel") == "Take away the wish for indoor trees"
    page.press("Enter")
    assert (_chips(page), page.js("document.activeElement.id")) == ([], "words")
    page.type("marathon")
    page.click("#less-words")
    wait_for_list(page, ids(listed(url, history=HISTORY, steer=[{"text": "marathon", "weight": -1}])))


def test_no_more_than_eight_wishes_can_be_made(page, url):
    open_items(page, url, *HISTORY, more="".join(f"&wish=text:1:word{number}" for number in range(8)))
    page.click("#words")
    page.type("one more")
    page.press("Enter")
    page.wait("document.getElementById('status').textContent === 'There are 8 wishes already; take one away first'")
    assert len(_chips(page)) == 8


def test_where_there_is_no_ranker_interests_are_text_and_the_page_says_that_wishes_do_not_count(page, url):
    expected = listed(url, history=HISTORY, model="plain")
    open_items(page, url, *HISTORY, more="&model=plain&wish=text:1:tent")
    wait_for_list(page, ids(expected))
    assert page.text(".notice") == ["This version has no ranker, so the wishes do not count."]
    assert page.js("document.querySelectorAll('.card button.interest, #tree button.interest').length") == 0
    assert page.text(".card .interest") == [name for item in expected for name in item["reasons"]]
    assert page.js("document.getElementById('words').disabled && document.getElementById('less-words').disabled")
    assert page.text("#steer-note") == ["This version has no ranker, so interests cannot be wished for."]


def test_a_code_of_the_tree_is_wished_for_by_the_key_plus(page, url):
    open_items(page, url, *HISTORY)
    page.wait("document.querySelector('#tree [data-wish]')")
    page.js("document.querySelector('#tree .lit[data-wish]').focus()")
    name = page.js("document.activeElement.dataset.wish")
    page.call("Input.dispatchKeyEvent", type="keyDown", key="+", text="+")
    page.wait(f"document.querySelector('{CHIPS}')")
    assert _chips(page) == [["+1", name]]
    wait_for_list(page, ids(listed(url, history=HISTORY, steer=[{"interest": name}])))
    assert page.js("document.activeElement.dataset.wish") == name


def test_every_item_says_why_it_is_listed(page, url):
    open_items(page, url, *HISTORY, more=f"&wish=interest:1:{quote(ESPRESSO)}")
    items = listed(url, history=HISTORY, steer=[{"interest": ESPRESSO}])
    wait_for_list(page, ids(items))
    assert page.js("[...document.querySelectorAll('.why')].map((why) => why.open)") == [True] + [False] * 9
    page.click(".card:nth-child(2) .why summary")
    cells = "[row.cells[0].textContent, row.cells[2].textContent]"
    rows = page.js(f"[...document.querySelectorAll('.card:nth-child(2) .parts tr')].map((row) => {cells})")
    parts = sorted(items[1]["contributions"].items(), key=lambda part: -abs(part[1]))
    assert [value for _, value in rows] == [f"{part:+.2f}".replace("-", "−") for _, part in parts if abs(part) >= 0.005]
    assert ("your wishes", "+3.00") in map(tuple, rows)
    sources = "[...document.querySelectorAll('.card:nth-child(2) .sources li:not(.by)')]"
    assert page.js(f"{sources}.map((source) => source.title)") == items[1]["sources"]
    page.click("#exclude")  # the list is made anew: what was open is open
    settled(page)
    page.wait(f"document.querySelector('[data-item={items[1]['item_id']}] .why')?.open")
    tables = {name for role, name in page.accessible() if role == "table"}
    assert f"What adds to the score of {items[1]['title']}" in tables


def test_a_user_of_an_experiment_is_answered_by_an_arm_which_is_named_unless_a_version_is_chosen(page, url):
    arms = {}
    for user in (f"u{number}" for number in range(40)):
        reply = httpx.post(f"{url}/v1/recommend", json={"user_id": user, "k": 1}, timeout=CEILING_SECONDS).json()
        arms.setdefault(reply["model"], user)
    assert set(arms) == {"ranked", "plain"}
    for arm, user in arms.items():
        page.open("about:blank")
        page.open(f"{url}/#user={user}&wish=text:1:tent")
        settled(page)
        assert page.text(".arm") == [f"arm {arm} of experiment spring"]
        assert page.text(".column h2") == [arm]
        told = "This version has no ranker, so the wishes do not count."
        assert (told in page.text(".notice")) == (arm == "plain")
    page.choose("#model", "plain")
    page.wait("document.querySelector('.column h2')?.textContent === 'plain' && !document.querySelector('.arm')")
    page.choose("#other", "ranked")
    page.wait("document.querySelectorAll('.column').length === 2")
    assert page.text(".column h2") == ["plain", "ranked"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_of_wishes_reasons_and_dialogs_stands_out_and_fits_narrow_screens(page, url, scheme):
    contrast = (Path(__file__).parent / "contrast.js").read_text()
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    open_items(page, url, *HISTORY, more=f"&wish=interest:1:{quote(ESPRESSO)}&wish=interest:-1:{quote(INTERESTS[0])}")
    fits = "document.documentElement.scrollWidth <= window.innerWidth"
    found = {"list": page.js(contrast)}
    page.click(".card .open")
    page.wait("document.querySelector('#card-body dl')")
    found["card"] = page.js(contrast)
    page.press("Escape")
    page.click("#add-item")
    page.wait("document.getElementById('adding').open")
    found["form"] = page.js(contrast)
    page.call("Emulation.setDeviceMetricsOverride", width=360, height=800, deviceScaleFactor=1, mobile=False)
    assert page.js(f"{fits} && document.getElementById('adding').scrollWidth <= document.getElementById('adding').clientWidth")
    page.press("Escape")
    assert page.js(fits)
    page.call("Emulation.clearDeviceMetricsOverride")
    page.call("Emulation.setEmulatedMedia", features=[])
    assert found == {"list": [], "card": [], "form": []}
