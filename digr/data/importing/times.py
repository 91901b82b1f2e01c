"""Read the times of a column in SQL: seconds to nanoseconds since 1970, ISO dates and other usual formats.

A number's unit follows from its size, without ambiguity from March 1973 to the year 5138. Times without a zone are UTC.
"""

from typing import NamedTuple

import duckdb

from digr.data.policies import MICROSECONDS, MILLISECONDS, SECONDS

DATES = ("day-first", "month-first")
"""What a date of two slashes or dashes begins with, if its first number is not the year."""
ZONED = ("%Y-%m-%d %H:%M:%S %z", "%a %b %d %H:%M:%S %z %Y", "%a, %d %b %Y %H:%M:%S %z", "%d/%b/%Y:%H:%M:%S %z")
NAMED = (
    "%a, %d %b %Y %H:%M:%S GMT", "%b %d, %Y %H:%M:%S", "%b %d, %Y %I:%M:%S %p", "%b %d, %Y %H:%M", "%b %d, %Y", "%B %d, %Y",
    "%d %b %Y %H:%M:%S", "%d %b %Y %H:%M", "%d %b %Y", "%d %B %Y", "%d-%b-%Y %H:%M:%S", "%d-%b-%Y", "%d-%b-%y", "%Y-%b-%d",
    "%d.%m.%Y %H:%M:%S", "%d.%m.%Y %H:%M", "%d.%m.%Y", "%d.%m.%y", "%m %d, %Y",
)  # fmt: skip
YEAR_FIRST = ("%Y/%m/%d %H:%M:%S", "%Y/%m/%d %H:%M", "%Y/%m/%d", "%Y.%m.%d %H:%M:%S", "%Y.%m.%d")
"""Tried last, because they read 12/1/10 as a day of the year 12."""
CLOCKS = ("", " %H:%M", " %H:%M:%S", " %I:%M %p", " %I:%M:%S %p", " %H:%M:%S.%f", ", %H:%M", ", %H:%M:%S")
SLASHED = r"^\s*(\d{1,2})[/-](\d{1,2})[/-]\d"
DIGITS = r"^(19|20)\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])(\d{6})?$"
EARLIEST, LATEST = -2_208_988_800_000, 7_258_118_400_000
"""The years 1900 and 2200 in milliseconds; values outside are not times."""


class TimeForm(NamedTuple):
    """How a column writes times, apart from numbers since 1970 and ISO."""

    day_first: bool = False
    """Whether 1/12/2010 means the first of December."""
    digits: bool = False
    """Whether numbers are dates, such as 20101201 and 20101201082600."""
    needed: bool = True
    """Whether a row whose time cannot be read is left out."""
    note: str = ""
    """A message for the user; empty if there is none."""


def find_form(con: duckdb.DuckDBPyConnection, relation: str, dates: str = "") -> TimeForm:
    """Find out how a relation's column `timestamp` writes times; all rows decide between day first and month first.

    Args:
        con: the database of the relation.
        relation: SQL of a query.
        dates: one of DATES, which then decides instead of the rows; empty if nobody chose.
    """
    is_slashed = f"(contains(left(t, 4), '/') OR contains(left(t, 4), '-')) AND regexp_matches(t, '{SLASHED}')"
    first, second = (f"try_cast(regexp_extract(t, '{SLASHED}', {place}) AS INT) > 12" for place in (1, 2))
    cells = [
        "count(*) FILTER (try_cast(t AS DOUBLE) IS NOT NULL)",
        f"count(*) FILTER (length(t) IN (8, 14) AND regexp_matches(t, '{DIGITS}'))",
        f"min(t) FILTER ({is_slashed})",
        f"min(t) FILTER ({is_slashed} AND {first})",
        f"min(t) FILTER ({is_slashed} AND {second})",
    ]
    seen = f"SELECT trim(timestamp) AS t FROM ({relation}) WHERE trim(timestamp) <> ''"
    [(numbers, digits, slashed, day, month)] = con.execute(f"SELECT {', '.join(cells)} FROM ({seen})").fetchall()
    notes = []
    if 0 < digits < numbers:
        notes.append(f"{digits:,} of {numbers:,} numbers look like dates, such as 20101201; all are read as times since 1970")
    if dates:
        day_first = dates == "day-first"
    else:
        day_first = bool(day and not month)
        notes += _unclear(slashed, day, month)
    return TimeForm(day_first, digits=0 < digits == numbers, note="; ".join(notes))


def _unclear(slashed: str | None, day: str | None, month: str | None) -> list[str]:
    """Return a note if the dates do not decide whether day or month comes first.

    Args:
        slashed: a date such as 1/2/2020; None if there is none.
        day: one whose first number is above 12.
        month: one whose second number is above 12.
    """
    if not slashed or (day is None) != (month is None):
        return []
    found = f"days come first in {day!r} and months in {month!r}" if day else f"days or months may come first, as in {slashed!r}"
    return [f"{found}: read as month/day/year; --dates day-first reads day/month/year"]


def with_times(relation: str, form: TimeForm) -> str:
    """Return the SQL that turns a relation's text column `timestamp` into milliseconds since 1970, or null if it is no time."""
    inner = f"SELECT * REPLACE ({_milliseconds('timestamp', form)} AS timestamp) FROM ({relation})"
    return (
        f"SELECT * REPLACE (CASE WHEN timestamp BETWEEN {EARLIEST} AND {LATEST} THEN timestamp END AS timestamp) FROM ({inner})"
    )


def _milliseconds(column: str, form: TimeForm) -> str:
    order = ("%d/%m", "%d-%m") if form.day_first else ("%m/%d", "%m-%d")
    slashed = [f"{start}{start[2]}{year}{clock}" for start in order for year in ("%y", "%Y") for clock in CLOCKS]
    written = ", ".join(f"'{text}'" for text in (*NAMED, *slashed, *YEAR_FIRST))
    # one call per format: given a list, DuckDB 2.0 gives a text without a zone the zone of the text before it
    zoned = ", ".join(f"try_strptime(trim({column}), '{text}')" for text in ZONED)
    number = f"try_cast({column} AS DOUBLE)"
    size = f"abs({number})"
    counted = (
        f"try_cast(round(CASE WHEN {size} < {SECONDS} THEN {number} * 1000 WHEN {size} < {MILLISECONDS} THEN {number} "
        f"WHEN {size} < {MICROSECONDS} THEN {number} / 1000 ELSE {number} / 1000000 END) AS BIGINT)"
    )
    if form.digits:
        counted = f"epoch_ms(try_strptime(trim({column}), ['%Y%m%d%H%M%S', '%Y%m%d']))"
    plain = f"try_strptime(trim({column}), [{written}])"
    # DuckDB would read 12/1/10 as a day of the year 12
    iso = f"CASE WHEN regexp_matches({column}, '^\\s*\\d{{4}}-') THEN try_cast(trim({column}) AS TIMESTAMPTZ) END"
    dated = f"coalesce(epoch_ms(coalesce({iso}, {zoned})), epoch_ms({plain}))"
    return f"CASE WHEN {number} IS NOT NULL THEN {counted} ELSE {dated} END"
