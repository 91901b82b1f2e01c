"""Join orders (who ordered, and when) with their lines (which items), when the two are in separate files."""

from collections.abc import Sequence

import duckdb

from digr.data.importing.tables import SAMPLE_ROWS, Table
from digr.data.readers.names import has_usual, normal

KEYS = (
    "orderid", "ordernumber", "orderno", "invoiceid", "invoiceno", "invoicenumber", "transactionid", "basketid", "cartid",
    "receiptid", "ticketid", "billid", "purchaseid",
)  # fmt: skip
"""Usual names of the key that joins them, the most usual first."""


def join_orders(con: duckdb.DuckDBPyConnection, tables: Sequence[Table]) -> tuple[Table, str] | None:
    """Return the lines with the columns of their orders, if one table has orders with users and another lines with items.

    Returns:
        The joined table and a note for the user; None if no two tables fit.
    """
    for orders in tables:
        if not has_usual("user_id", orders.columns):
            continue
        for lines in tables:
            key = _shared_key(orders, lines)
            if lines is orders or not key or not has_usual("item_id", lines.columns):
                continue
            return _join(
                con, orders, lines, key
            ), f"lines of {lines.address} have the columns of their orders in {orders.address}"
    return None


def _shared_key(orders: Table, lines: Table) -> str:
    """Return the name of a key that both have, without case and punctuation; empty if there is none."""
    both = {normal(name) for name in orders.columns} & {normal(name) for name in lines.columns}
    return next((key for key in KEYS if key in both), "")


def _join(con: duckdb.DuckDBPyConnection, orders: Table, lines: Table, key: str) -> Table:
    here, there = (next(name for name in table.columns if normal(name) == key) for table in (lines, orders))
    added = [name for name in orders.columns if name not in lines.columns and normal(name) != key]
    cells = [f"l.{lines.pick(name)} AS c{number}" for number, name in enumerate(lines.columns)]
    cells += [f"o.{orders.pick(name)} AS c{number}" for number, name in enumerate(added, len(lines.columns))]
    first = f"SELECT * FROM ({orders.sql}) QUALIFY row_number() OVER (PARTITION BY trim({orders.pick(there)})) = 1"
    sql = (
        f"SELECT {', '.join(cells)} FROM (SELECT *, row_number() OVER () AS n FROM ({lines.sql})) l JOIN ({first}) o "
        f"ON trim(l.{lines.pick(here)}) = trim(o.{orders.pick(there)}) ORDER BY l.n"
    )
    sample = con.execute(f"{sql} LIMIT {SAMPLE_ROWS}").fetchall()
    [(rows,)] = con.execute(f"SELECT count(*) FROM ({sql})").fetchall()
    lost = lines.rows - rows
    text = f"{lost} lines without an order" if lost else ""
    return Table((*lines.files, *orders.files), (*lines.columns, *added), sql, rows, lost, text, tuple(sample))
