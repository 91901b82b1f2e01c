"""Times of files in any usual form become moments; what can be read in two ways is said."""

from datetime import UTC, datetime

import pytest

from tests.data.readers.importing import ITEMS, all_rows, imported, write_files


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("881250949", "1997-12-04T15:55:49+00:00"),
        ("1547589356557", "2019-01-15T21:55:56.557000+00:00"),
        ("1547589356557123", "2019-01-15T21:55:56.557000+00:00"),
        ("1547589356557123456", "2019-01-15T21:55:56.557000+00:00"),
        ("2014-01-15 10:35:04 -0500", "2014-01-15T15:35:04+00:00"),
        ("2014-01-15T10:35:04Z", "2014-01-15T10:35:04+00:00"),
        ("20140115", "2014-01-15T00:00:00+00:00"),
        ("20140115103504", "2014-01-15T10:35:04+00:00"),
        ("12/1/2010 8:26", "2010-12-01T08:26:00+00:00"),
        ("12/1/10 8:26", "2010-12-01T08:26:00+00:00"),
        ("13/1/2010", "2010-01-13T00:00:00+00:00"),
        ("14.10.2011 05:06", "2011-10-14T05:06:00+00:00"),
        ("09 13, 2009", "2009-09-13T00:00:00+00:00"),
        ("Sat Aug 01 12:00:00 +0000 2009", "2009-08-01T12:00:00+00:00"),
        ("Jan 5, 2015", "2015-01-05T00:00:00+00:00"),
    ],
)
def test_usual_ways_to_write_a_time_are_read(tmp_path, text, expected):
    files = write_files(tmp_path, log__csv=f'user_id,item_id,timestamp\nu,a,"{text}"\n', items__csv=ITEMS)
    imported(tmp_path / "out", *files)
    assert all_rows(tmp_path / "out", "interactions")[0]["timestamp"] == datetime.fromisoformat(expected)


def test_a_text_without_a_zone_does_not_get_the_zone_of_the_row_before(tmp_path):
    log = "user_id,item_id,timestamp\nu,a,2014-01-15 10:35:04 -0500\nu,b,13/1/2010\n"
    imported(tmp_path / "out", *write_files(tmp_path, log__csv=log, items__csv=ITEMS))
    assert all_rows(tmp_path / "out", "interactions")[1]["timestamp"] == datetime(2010, 1, 13, tzinfo=UTC)


def test_one_day_above_twelve_decides_that_days_come_first_for_the_whole_file(tmp_path):
    log = "user_id,item_id,timestamp\n" + "u,a,2/1/2020\n" * 20_000 + "u,b,13/1/2020\n"
    imported(tmp_path / "out", *write_files(tmp_path, log__csv=log, items__csv=ITEMS))
    assert all_rows(tmp_path / "out", "interactions")[0]["timestamp"] == datetime(2020, 1, 2, tzinfo=UTC)


@pytest.mark.parametrize(
    ("texts", "dates", "expected", "said"),
    [
        (["03/04/2021", "1/2/2021"], "", ["2021-03-04", "2021-01-02"], "note: {log}: days or months may come first, as in "
         "'03/04/2021': read as month/day/year; --dates day-first reads day/month/year"),
        (["03/04/2021", "1-2-21 8:30"], "day-first", ["2021-04-03", "2021-02-01"], ""),
        (["03/04/2021", "1/2/2021"], "month-first", ["2021-03-04", "2021-01-02"], ""),
        (["3/4/2021", "13/4/2021", "4/13/2021"], "", ["2021-03-04", "2021-04-13"], "note: {log}: days come first in "
         "'13/4/2021' and months in '4/13/2021': read as month/day/year; --dates day-first reads day/month/year"),
        (["3/4/2021", "13/4/2021", "4/13/2021"], "day-first", ["2021-04-03", "2021-04-13"], ""),
        (["2021-04-13"] * 12_000 + ["3/4/2021", "14/4/2021"], "", ["2021-04-13"] * 12_000 + ["2021-04-03", "2021-04-14"], ""),
        (["20210413", "2021-04-14", "20210415 "], "", ["2021-04-13", "2021-04-14", "2021-04-15"], ""),
        (["20210413", "1618358400"], "", ["1970-08-22", "2021-04-14"], "note: {log}: 1 of 2 numbers look like dates, "
         "such as 20101201; all are read as times since 1970"),
    ],
)  # fmt: skip
def test_dates_that_may_be_read_in_two_ways_are_said_and_a_choice_decides(tmp_path, texts, dates, expected, said):
    log = "user_id,item_id,timestamp\n" + "".join(f"u{at % 9},a,{text}\n" for at, text in enumerate(texts))
    files = write_files(tmp_path, log__csv=log, items__csv=ITEMS)
    facts, lines = imported(tmp_path / "out", *files, dates=dates)
    found = [f"{row['timestamp']:%Y-%m-%d}" for row in all_rows(tmp_path / "out", "interactions")]
    assert found == expected
    assert facts["dropped"]["interactions"].get("unreadable time", 0) == len(texts) - len(expected)
    assert [line for line in lines if line.startswith("note: ")] == ([said.format(log=files[0])] if said else [])


def test_an_unknown_order_of_dates_is_refused(tmp_path):
    files = write_files(tmp_path, log__csv="user_id,item_id\nu,a\n", items__csv=ITEMS)
    with pytest.raises(ValueError, match="--dates dmy: unknown; expected one of day-first, month-first"):
        imported(tmp_path / "out", *files, dates="dmy")


def test_a_column_named_as_a_time_that_holds_none_is_an_error(tmp_path):
    files = write_files(tmp_path, log__csv="user_id,item_id,when\nu,a,soon\n", items__csv=ITEMS)
    with pytest.raises(ValueError, match="no value of 'when' is a time"):
        imported(tmp_path / "out", *files, columns={"timestamp": ["when"]})


def test_with_positions_a_row_may_lack_its_time_and_an_empty_column_of_times_is_none(tmp_path):
    log, items = write_files(
        tmp_path, log__csv="user_id,item_id,position,timestamp\nu,a,0,\nu,b,1,1700000000\n", items__csv=ITEMS
    )
    imported(tmp_path / "out", log, items)
    assert [row["timestamp"] for row in all_rows(tmp_path / "out", "interactions")] == [
        None,
        datetime.fromtimestamp(1700000000, UTC),
    ]
    log.write_text("user_id,item_id,timestamp\nu,a,\nu,b,\n")
    _, lines = imported(tmp_path / "out2", log, items)
    assert all_rows(tmp_path / "out2", "interactions")[0] == {"user_id": "u", "item_id": "a"}
    assert f"note: {log}: the column of times is empty" in lines


def test_files_with_and_without_times_do_not_go_together(tmp_path):
    files = write_files(
        tmp_path, a__csv="user_id,item_id,time\nu,a,1700000000\n", b__csv="user_id,item_id\nu,b\n", items__csv=ITEMS
    )
    with pytest.raises(ValueError, match=r"b\.csv: has no times, but other files do"):
        imported(tmp_path / "out", *files)
