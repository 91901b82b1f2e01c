"""The committed figure is what its script draws from the result files, and it loads nothing from another host."""

import re
import xml.etree.ElementTree as ET

from docs.plots import PANELS, POLICY, RANKED, SYSTEMS, TOWERS, Row, measured, number, systems

SVG = "{http://www.w3.org/2000/svg}"


def test_the_committed_figure_is_what_the_script_draws():
    assert SYSTEMS.read_text() == systems(), "run python docs/plots.py and commit what it writes"


def test_a_metric_is_read_with_its_interval_from_the_test_rows_of_all_users():
    assert [round(found, 4) for found in measured(Row("", RANKED, "ranked"), "ndcg")] == [0.1412, 0.1295, 0.1526]
    assert [round(found, 4) for found in measured(Row("", TOWERS, "sasrec"), "hr")] == [0.1346, 0.1221, 0.1473]
    assert measured(Row("", POLICY, "sid_sft[without_interests]"), "ndcg") == (0.10339, 0.09273, 0.11321)


def test_values_stand_in_the_order_of_the_rows_and_the_served_system_is_marked():
    labels, served, values = [], [], []
    for one in ET.fromstring(systems()).iter(f"{SVG}text"):
        kinds = one.get("class").split()
        if "label" in kinds:
            labels.append(one.text)
        if "value" in kinds:
            values.append(one.text)
        if {"label", "served"} <= set(kinds):
            served.append(one.text)
    assert sorted(labels) == sorted(
        [
            "popularity",
            "transition counts, last item",
            "transition counts, whole history",
            "SASRec",
            "two towers (item ids and text)",
            "semantic IDs of text, TIGER-style",
            "policy alone",
            "ranked lists, without interests",
            "ranked lists (served)",
            "MiniOneRec",
            "V-STAR",
        ]
    )
    assert served == ["ranked lists (served)"]
    shown = dict(zip(labels, zip(values[::2], values[1::2], strict=True), strict=True))
    assert shown["ranked lists (served)"] == (".141", ".200")
    assert shown["popularity"] == (".042", ".054")
    assert (shown["MiniOneRec"], shown["V-STAR"]) == ((".117", ".159"), (".122", "–"))


def test_every_interval_lies_within_its_panel():
    bars = [one for one in ET.fromstring(systems()).iter(f"{SVG}line") if "bar" in one.get("class").split()]
    assert len(bars) == 18
    for i, bar in enumerate(bars):
        panel = PANELS[i % 2]
        assert panel.x(0) < float(bar.get("x1")) < float(bar.get("x2")) < panel.x(panel.largest)


def test_the_figure_loads_nothing_and_follows_the_reader_s_choice_of_dark():
    figure = systems()
    assert re.findall(r"https?://[^\"]*", figure) == ["http://www.w3.org/2000/svg"]
    assert "url(" not in figure
    assert "@media (prefers-color-scheme: dark)" in figure


def test_rates_are_written_as_papers_do():
    assert [number(0.1412), number(0.2), number(0), number(0.04, 2)] == [".141", ".200", "0", ".04"]
