"""Write the parts of prepared tables so that a killed build goes on with the parts that it had finished.

On a local disk the database, the parts and what the histories' builder has counted lie in the stage's scratch folder until all
parts are there. On S3 parts go to their place at once, and a killed build begins anew.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from duckdb import DuckDBPyConnection

from digr import artifacts, partitions
from digr.artifacts import Store
from digr.data.histories import HistoryBuilder
from digr.data.preparing import Prepared, iter_items, iter_users
from digr.partitions import Part
from digr.tables import conform, table_spec

USER_TABLES = ("interactions", "histories")
COUNTED_PARTS = 10
"""Parts of users between two writes of the builder's counts; at most this many are made again after a kill."""


class PreparedParts:
    """The parts of `items`, `interactions` and `histories` of one build."""

    def __init__(self, store: Store, work: str) -> None:
        """Begin, or go on with what is in the scratch folder; remove the folders of killed builds of other choices.

        Args:
            store: the run.
            work: the stage's scratch folder, which a killed build leaves; its name ends in the digest of the choices.
        """
        self.rows, self.kept = Counter[str](), Counter[str]()
        """Rows of each table, and parts that a killed build had finished, by table."""
        self.database: str | None = None
        """Folder of the database; None if nothing outlives a kill."""
        self._store = self._drafts = store
        if artifacts.is_remote(work):
            return
        self._work = Path(work)
        self.database, self._drafts = f"{work}/database", Store(f"{work}/parts")
        for other in self._work.parent.glob(f"{self._work.name.rpartition('-')[0]}-*"):
            if other != self._work:
                artifacts.remove(str(other))

    def items(self, connection: DuckDBPyConnection, prepared: Prepared) -> Iterator[pa.Table]:
        """Write the parts of `items`, and yield the rows of each; of a part that was there already, its `image_uri` alone."""
        while self.database and Path(self._uri("items", self.kept["items"])).is_file():
            table = pq.read_table(self._uri("items", self.kept["items"]), columns=["image_uri"])
            self.rows["items"] += len(table)
            self.kept["items"] += 1
            yield table
        first = self.kept["items"]
        for number, table in enumerate(iter_items(connection, prepared, first), first):
            self._write("items", number, table)
            yield table

    def users(self, connection: DuckDBPyConnection, prepared: Prepared, builder: HistoryBuilder) -> Iterator[int]:
        """Write the parts of `interactions` and `histories`; yield how many there are after each.

        Args:
            builder: a new one; it is given the counts of the parts that are there already.
        """
        first = self._resume(builder)
        for number, tables in enumerate(iter_users(connection, prepared, builder, first), first):
            for name, table in zip(USER_TABLES, tables, strict=True):
                self._write(name, number, table)
            if self.database and number % COUNTED_PARTS == COUNTED_PARTS - 1:
                draft = self._work / "draft.npz"
                counted: dict[str, Any] = builder.counted()
                np.savez(draft, parts=np.int64(number + 1), **counted)
                draft.replace(self._work / "counts.npz")
            yield number + 1

    def publish(self) -> None:
        """Move all parts to their place."""
        if not self.database:
            return
        for name in ("items", *USER_TABLES):
            for draft in sorted(Path(self._drafts.uri(name)).glob("part-*.parquet")):
                draft.replace(Path(self._store.uri(name)) / draft.name)

    def _resume(self, builder: HistoryBuilder) -> int:
        """Give the builder the counts of the parts of users that are there; return their number."""
        if not self.database or not (self._work / "counts.npz").is_file():
            return 0
        with np.load(self._work / "counts.npz", allow_pickle=False) as counts:
            found = dict(counts)
        finished = int(found.pop("parts"))
        files = {name: [Path(self._uri(name, number)) for number in range(finished)] for name in USER_TABLES}
        if not all(file.is_file() for each in files.values() for file in each):
            return 0  # the build was killed while its parts were moved to their place
        for name, each in files.items():
            self.rows[name] += sum(pq.read_metadata(file).num_rows for file in each)
            self.kept[name] = finished
        builder.restore(found)
        return finished

    def _write(self, name: str, number: int, table: pa.Table) -> None:
        table = conform(name, table, self._store.uri(name))
        with artifacts.open_part(self._uri(name, number), table.schema) as writer:
            writer.write_table(table, row_group_size=65_536)
        self.rows[name] += len(table)

    def _uri(self, name: str, number: int) -> str:
        owner = table_spec(name).about
        assert owner in ("item", "user")
        return partitions.part_uri(self._drafts, name, Part(owner, number))
