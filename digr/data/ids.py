"""Find ids in a large set of ids, many at a time, with an index that is built once.

Arrow's own look-up hashes the whole set at every call. This index sorts it once and needs a few bytes per id, no Python
objects.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int, Shaped


class IdIndex(NamedTuple):
    """Positions of distinct ids."""

    ids: pa.Array
    """The ids, without those of `later`; a place is a position in this array."""
    ordered: Shaped[np.ndarray, " N"]
    """The ids as byte strings of equal width, ascending."""
    places: Int[np.ndarray, " N"]
    """Place of each of `ordered` in `ids`."""
    later: "IdIndex | None" = None
    """Further ids, none of them in `ids`; their places come after those of `ids`."""

    def __len__(self) -> int:
        """Return the number of ids."""
        return len(self.ids) + (0 if self.later is None else len(self.later))

    def find(self, ids: pa.Array | pa.ChunkedArray | Sequence[str]) -> Int[np.ndarray, " B"]:
        """Return the place of each id, -1 for an unknown one."""
        if self.later is not None:
            found, more = IdIndex(self.ids, self.ordered, self.places).find(ids), self.later.find(ids)
            return np.where((found < 0) & (more >= 0), len(self.ids) + more, found)
        array = ids if isinstance(ids, pa.Array | pa.ChunkedArray) else pa.array(ids, pa.string())
        if not len(self.ordered) or not len(array):
            return np.full(len(array), -1, np.int64)
        wanted = _fixed_width(array, self.ordered.dtype.itemsize)
        at = np.minimum(np.searchsorted(self.ordered, wanted), len(self.ordered) - 1)
        return np.where(self.ordered[at] == wanted, self.places[at], -1)

    def find_all(self, ids: pa.Array | pa.ChunkedArray | Sequence[str], where: str) -> Int[np.ndarray, " B"]:
        """Return the place of each id; all must be known.

        Raises:
            ValueError: an id is unknown; the message names it.
        """
        places = self.find(ids)
        unknown = np.flatnonzero(places < 0)
        if len(unknown):
            stranger = ids[int(unknown[0])]
            name = stranger.as_py() if isinstance(stranger, pa.Scalar) else stranger
            raise ValueError(f"{where}: {name!r} is not among the {len(self)} known ids; build the tables of this run again")
        return places


def build_id_index(ids: pa.Array | pa.ChunkedArray) -> IdIndex:
    """Index distinct ids.

    Raises:
        ValueError: an id is empty or ends in a zero byte, which would look like padding.
    """
    array = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
    width = max(pc.max(pc.binary_length(array)).as_py() or 1, 1)
    fixed = _fixed_width(array, width)
    bad = np.flatnonzero(np.char.str_len(fixed) != pc.binary_length(array).to_numpy(zero_copy_only=False))
    if len(bad) or (fixed == b"").any():
        raise ValueError("ids: an id is empty or ends in a zero byte; clean the ids of the input tables")
    order = np.argsort(fixed, kind="stable")
    return IdIndex(array, fixed[order], order)


def _fixed_width(ids: pa.Array | pa.ChunkedArray, width: int) -> Shaped[np.ndarray, " B"]:
    """Return ids as zero-padded bytes; an id longer than `width` becomes empty, which matches no known id."""
    array = pc.fill_null(ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids, "").cast(pa.large_string())
    fits = pc.if_else(pc.greater(pc.binary_length(array), width), "", array)
    padded = pc.ascii_rpad(fits, width, padding="\0")
    return np.frombuffer(padded.buffers()[2], dtype=f"S{width}", count=len(padded), offset=padded.offset * width)
