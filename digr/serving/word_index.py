"""Search texts by the beginnings of their words, in an index of SQLite (FTS5) on disk that replicas share.

Texts are written in the order in which they are to be found, so a search reads the first ones and stops: its time depends on
how many are wanted, hardly on how many there are.
"""

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int

MAX_WORDS = 16
"""Words of a query that are looked at; further ones are not."""
_PREFIXES = "1 2 3 4 5 6 7 8 9 10 11 12"
"""Lengths of beginnings that have postings of their own, up to most words: those of longer ones are merged at each search."""


def words_of(texts: pa.Array) -> pa.Array:
    """Return the words of texts for a search: lower case, a space before each word."""
    words = pc.replace_substring_regex(pc.utf8_lower(texts), r"[^\pL\pN]+", " ")
    return pc.binary_join_element_wise("", pc.utf8_trim_whitespace(words), " ")


@lru_cache(maxsize=64)
def query_words(query: str) -> tuple[str, ...]:
    """Return the words of a query, at most `MAX_WORDS`; without letters and digits there are none."""
    return tuple(words_of(pa.array([query], pa.string()))[0].as_py().split()[:MAX_WORDS])


def find_words(words: pa.Array, query: str) -> tuple[Int[np.ndarray, " M"], Bool[np.ndarray, " M"]]:
    """Find texts in which every word of a query begins some word, and mark those that begin with the query itself.

    It looks at every text, so it is for few.

    Args:
        words: of N texts, see `words_of`.
    """
    wanted = query_words(query)
    if not len(words) or not wanted:
        return np.zeros(0, np.int64), np.zeros(0, bool)
    match = np.ones(len(words), bool)
    for word in dict.fromkeys(wanted):
        match &= pc.match_substring(words, f" {word}").fill_null(False).to_numpy(zero_copy_only=False)
    found = np.flatnonzero(match)
    whole = pc.starts_with(words.take(pa.array(found)), " " + " ".join(wanted))
    return found, whole.to_numpy(zero_copy_only=False).astype(bool)


def build_word_index(path: Path, texts: Iterable[pa.Array]) -> None:
    """Write the index of texts, given in batches in the order in which they are to be found; null ones are never found."""
    connection = sqlite3.connect(path)
    try:
        connection.execute("pragma journal_mode = off")
        connection.execute("pragma synchronous = off")
        connection.execute(
            f"create virtual table texts using fts5(words, content='', columnsize=0, prefix='{_PREFIXES}', tokenize='ascii')"
        )  # the tokenizer splits at spaces only, because of words that `words_of` made
        number = 0
        for batch in texts:
            rows = zip(range(number, number + len(batch)), words_of(batch).to_pylist(), strict=True)
            connection.executemany("insert into texts(rowid, words) values (?, ?)", rows)
            number += len(batch)
        connection.execute("insert into texts(texts) values ('optimize')")
        connection.commit()
    finally:
        connection.close()


class WordIndex:
    """An index of `build_word_index`, open for reading by any number of threads, one at a time."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True, check_same_thread=False)
        self._connection.execute(f"pragma mmap_size = {path.stat().st_size}")
        self._lock = threading.Lock()

    def find(self, words: Sequence[str], *, whole: bool, after: int = -1, count: int) -> Int[np.ndarray, " M"]:
        """Return the first texts in which each of some words begins a word, or which begin with the words.

        Args:
            words: of `query_words`.
            whole: whether the text must begin with the words, the last of which may be the beginning of a longer one.
            after: number of the text after which the search begins.
            count: most texts returned.
        """
        if not words:
            return np.zeros(0, np.int64)
        wanted = f'^ "{" ".join(words)}" *' if whole else " ".join(f'"{word}" *' for word in dict.fromkeys(words))
        with self._lock:
            rows = self._connection.execute(
                "select rowid from texts where texts match ? and rowid > ? order by rowid limit ?", (wanted, after, count)
            ).fetchall()
        return np.array(rows, np.int64).reshape(-1)

    def pages(self, words: Sequence[str], *, whole: bool, size: int) -> Iterator[Int[np.ndarray, " M"]]:
        """Yield the texts that `find` finds, `size` at a time."""
        after = -1
        while len(found := self.find(words, whole=whole, after=after, count=size)):
            yield found
            if len(found) < size:
                return
            after = int(found[-1])
