"""The documentation's site builds, its links lead somewhere, and it loads nothing from another host."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import pytest

from digr.config import Config
from digr.config.fields import iter_fields
from digr.tables import TABLES

ROOT = Path(__file__).resolve().parent.parent.parent
LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src", "link": "href"}
"""Tags that fetch what an attribute names when the page opens."""


class Built(HTMLParser):
    """What a page loads, where it leads, its anchors, and its text outside code."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.classes: set[str] = set()
        self._not_text = 0
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        values = {name: value or "" for name, value in attrs}
        self.ids += [values[name] for name in ("id", "name") if name in values and (name == "id" or tag == "a")]
        self.classes |= set(values.get("class", "").split())
        if LOADS.get(tag) in values:
            self.loads.append(values[LOADS[tag]])
        self.loads += re.findall(r"url\((.*?)\)", values.get("style", ""))
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        self._not_text += tag in ("code", "pre", "script", "style")

    def handle_endtag(self, tag):
        self._not_text -= tag in ("code", "pre", "script", "style")

    def handle_data(self, data):
        self.text += "" if self._not_text else data


class Site(NamedTuple):
    folder: Path
    pages: dict[str, Built]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Site:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-5000:]
    pages = {path.relative_to(folder).as_posix(): Built(path.read_text()) for path in folder.rglob("*.html")}
    return Site(folder, pages)


def test_the_site_has_the_pages_of_its_contents_and_no_source(site):
    nav = re.findall(r"^\s*- (?:\w+: )?([\w/]+)\.md$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert len(nav) > 25 and set(site.pages) == {f"{page}.html" for page in nav} | {"404.html"}
    assert [path.name for path in site.folder.rglob("*.py")] == []


def test_no_page_loads_anything_from_another_host(site):
    """`mermaid` blocks are not used, since the theme fetches what draws them."""
    for name, page in site.pages.items():
        assert [url for url in page.loads if urlsplit(url).netloc or urlsplit(url).scheme not in ("", "data")] == [], name
        assert page.loads and "mermaid" not in page.classes, name
    for path in site.folder.rglob("*.css"):
        assert re.findall(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//[^)'\"]*", path.read_text()) == [], path.name


def test_every_link_and_anchor_inside_the_site_exists(site):
    broken, checked = [], 0
    for name, page in site.pages.items():
        for link in [*page.links, *page.loads]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or name == "404.html":  # whose links are those of a site at the host's root
                continue
            target = (site.folder / name).parent / unquote(parts.path) if parts.path else site.folder / name
            target = Path(os.path.normpath(target))
            known = site.pages.get(target.relative_to(site.folder).as_posix())
            checked += 1
            if not target.is_file() or (known and parts.fragment and unquote(parts.fragment) not in known.ids):
                broken.append(f"{name}: {link}")
    assert broken == [] and checked > 1000


def test_no_anchor_occurs_twice_on_a_page(site):
    for name, page in site.pages.items():
        anchors = [anchor for anchor in page.ids if not anchor.startswith("__")]
        assert len(anchors) == len(set(anchors)), (name, sorted({item for item in anchors if anchors.count(item) > 1}))


def test_no_equation_stays_latex(site):
    """In a table a `|` inside an equation would split it; \\mid and \\lvert do not."""
    for name, page in site.pages.items():
        assert re.findall(r"\$(?!\d).{0,40}", page.text) == [], name


def test_the_reference_has_every_field_of_a_config_and_every_column_of_the_tables(site):
    fields = {row.key for row in iter_fields(Config)}
    assert fields <= set(site.pages["reference/config.html"].ids)
    assert {"interests.miners.vllm", "interests.miners.extractive", "labels.judge.openai", "ablations.fields"} <= set(
        site.pages["reference/config.html"].ids
    )
    assert set(TABLES) <= set(site.pages["reference/tables.html"].ids)
    page = (site.folder / "reference" / "tables.html").read_text()
    assert [column for spec in TABLES.values() for column in spec.schema.names if f"<code>{column}</code>" not in page] == []


def test_the_text_of_the_reference_is_not_taken_for_markup(site):
    text = " ".join(site.pages["reference/config.html"].text.split())
    assert "its artifacts are in <run.dir>/variants/<name>." in text
    assert "Further fields of the request's body, such as {top_p = 0.9}." in text
    assert "ours = theirs, or ours = [theirs in one file, theirs in another]." in text
