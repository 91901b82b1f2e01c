"""Find out how a file is written: encoding, kind, delimiter, quotes and header. Other encodings are converted to UTF-8.

The encoding is found from all bytes of a file, because the first megabytes of a Latin-1 file may be ASCII.
"""

import ast
import codecs
import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from charset_normalizer import from_bytes

from digr.data.importing.fetching import CHUNK, Given

Kind = Literal["csv", "json lines", "json array", "json rows", "json object", "python dicts", "xml", "parquet"]
SAMPLE_BYTES = 1 << 20
SEP_LINE = r"sep=[^\r\n]\r?\n"
"""A first line that tells Excel the delimiter."""
DELIMITERS = ("\t", ",", ";", "|", "\x01")
BOMS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
USUAL = [
    "cp1252", "gb18030", "big5", "shift_jis", "euc_jp", "euc_kr", "cp1251", "koi8_r", "cp1250", "cp1253", "cp1254", "cp1255",
    "cp1256", "cp874",
]  # fmt: skip
BINARY = (
    b"\x1f\x8b", b"PK\x03\x04", b"7z\xbc\xaf", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"Rar!", b"\x89PNG", b"\xff\xd8\xff",
    b"\x93NUMPY", b"%PDF", b"\xd0\xcf\x11\xe0",
)  # fmt: skip
"""First bytes of packed files, images, arrays and old spreadsheets."""
DAMAGED_RATE = 0.02
"""A file still counts as UTF-8 if its damaged lines are at most this share of its valid lines beyond ASCII."""
JUDGED_BYTES = 1 << 18
PLAUSIBLE = 0.02
"""Differences in charset-normalizer's share of unlikely characters below this are ignored."""


class Layout(NamedTuple):
    """How files of a known name are written, if the files do not show it."""

    delimiter: str
    columns: tuple[str, ...] = ()
    """Columns of a file without a header; empty if the first line names them."""
    quoted: bool = False
    encoding: str = ""
    """Encoding of a file that is not UTF-8; empty to detect it."""


class Written(NamedTuple):
    """How a file is written."""

    given: Given
    path: Path
    """The file in plain UTF-8, or the Parquet file."""
    kind: Kind
    encoding: str = "utf-8"
    delimiter: str = ""
    quote: str = ""
    escape: str = ""
    header: bool = False
    columns: tuple[str, ...] = ()
    """Columns of delimited text; those of other kinds are found when they are read."""
    skip: int = 0
    """Lines before the header."""
    damaged: int = 0
    """Number of lines with bytes that are invalid in the encoding; these become U+FFFD."""


def sniff(given: Given, layout: Layout | None, known: Callable[[str], bool], plain: Path) -> Written | None:
    """Return how a file is written; None if it is not a table.

    Args:
        given: the file.
        layout: known from the file's name, if at all.
        known: tells whether a text is a usual name of a column, to recognise headers.
        plain: where to write the file again if it is not plain UTF-8.

    Raises:
        ValueError: the file is empty or broken.
    """
    with given.path.open("rb") as stream:
        head = stream.read(8)
    if not head:
        raise ValueError(f"{given.address}: the file is empty")
    if head[:4] == b"PAR1":
        return Written(given, given.path, "parquet", encoding="")
    if head.startswith(BINARY):
        raise ValueError(
            f"{given.address}: neither text nor Parquet; packed files need a usual ending (.gz, .bz2, .xz, .zst, .zip, .tar.gz); "
            f"save spreadsheets and pickles as CSV or Parquet"
        )
    encoding, damaged = find_encoding(given.path, layout.encoding if layout else "")
    path = given.path if encoding == "utf-8" and not damaged else _write_again(given, encoding, plain)
    with path.open(encoding="utf-8", newline="") as stream:
        sample = stream.read(SAMPLE_BYTES)
    if "\0" in sample[:4096] and encoding == "utf-8":
        raise ValueError(f"{given.address}: binary, neither text nor Parquet")
    whole = len(sample) < SAMPLE_BYTES
    written = Written(given, path, "csv", encoding, damaged=damaged)
    kind = None if layout else _structured(sample, whole)
    if kind == "xml" and re.match(r"\s*<(!doctype html|html)\b", sample, re.IGNORECASE):
        raise ValueError(f"{given.address}: a web page (HTML), not a table; an address may have answered with a page to log in")
    if kind:
        return written._replace(kind=kind)
    return _delimited(written, sample, whole, layout, known)


def find_encoding(path: Path, otherwise: str) -> tuple[str, int]:
    """Return the encoding of a text file, and how many of its lines have bytes that are invalid in it."""
    with path.open("rb") as stream:
        head = stream.read(4096)
    mark = next((BOMS[bom] for bom in sorted(BOMS, key=len, reverse=True) if head.startswith(bom)), "")
    if mark:
        return mark, 0
    if len(head) > 3 and (zeros := (head[0::2].count(0), head[1::2].count(0))) and max(zeros) > len(head) // 4:
        return ("utf-16-be" if zeros[0] > zeros[1] else "utf-16-le"), 0
    if _is_utf8(path):
        return "utf-8", 0
    wrong, right, judged = 0, 0, bytearray()
    with path.open("rb") as stream:
        for line in stream:
            if line.isascii():
                continue
            try:
                line.decode("utf-8")
                right += 1
            except UnicodeDecodeError:
                wrong += 1
                if len(judged) < JUDGED_BYTES:
                    judged += line[:JUDGED_BYTES]
    if wrong <= DAMAGED_RATE * right:
        return "utf-8", wrong
    if otherwise:
        return otherwise, 0
    return _likely_encoding(bytes(judged)), 0


def _likely_encoding(judged: bytes) -> str:
    """Return, of the encodings about as plausible as the best, the one that reads most non-ASCII bytes as letters."""
    matches = from_bytes(judged, cp_isolation=USUAL, threshold=0.5)
    best = matches.best()
    if not best:
        return "cp1252"
    alike = [name for match in matches if match.chaos <= best.chaos + PLAUSIBLE for name in match.could_be_from_charset]

    def letters(encoding: str) -> float:
        beyond = [char for char in judged.decode(encoding, errors="replace") if not char.isascii()]
        return sum(map(str.isalpha, beyond)) / max(len(beyond), 1)

    if best.encoding not in ("cp1250", "cp1252", "cp1254"):
        return best.encoding
    return max((name for name in ("cp1252", "cp1250", "cp1254") if name in alike), key=letters, default=best.encoding)


def _is_utf8(path: Path) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with path.open("rb") as stream:
            while chunk := stream.read(CHUNK):
                decoder.decode(chunk)
            decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _write_again(given: Given, encoding: str, plain: Path) -> Path:
    with (
        given.path.open(encoding=encoding, errors="replace", newline="") as source,
        plain.open("w", encoding="utf-8", newline="") as out,
    ):
        try:
            while text := source.read(CHUNK):
                out.write(text)
        except UnicodeError as error:
            raise ValueError(f"{given.address}: looked like {encoding}, but is not: {error}") from error
    return plain


def _structured(sample: str, whole: bool) -> Kind | None:
    """Return the kind of a text, or None if it may be a delimited table."""
    text = sample.lstrip()
    if text.startswith("<"):
        return "xml"
    if text.startswith("["):
        return "json array"
    if not text.startswith("{"):
        return None
    line, _, rest = text.partition("\n")
    more = bool(rest.strip()) or not whole
    try:
        value = json.loads(line)
    except ValueError:
        if _is_python_dict(line):
            return "python dicts"
        return "json object" if re.match(r'\{\s*"(?:[^"\\]|\\.)*"\s*:\s*[\[{]', text) else "json rows"
    single = not more and isinstance(value, dict) and value
    return "json object" if single and _is_table(list(value.values())) else "json lines"


def _is_python_dict(line: str) -> bool:
    try:
        return isinstance(ast.literal_eval(line.strip()), dict)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return False


def _is_table(values: list) -> bool:
    """Whether all values of an object are rows: objects, or lists."""
    return all(isinstance(value, dict) for value in values) or all(isinstance(value, list) for value in values)


def _delimited(written: Written, sample: str, whole: bool, layout: Layout | None, known: Callable[[str], bool]) -> Written | None:
    if layout and (found := _as_known(written, sample, layout)):
        return found
    if named := re.match(SEP_LINE, sample):
        sample, written = sample[named.end() :], written._replace(skip=1)
    delimiter, rows = _find_delimiter(sample, whole)
    if not delimiter:
        return None
    quote = escape = '"'
    if _is_backslash_escaped(sample, delimiter):
        escape = "\\"
        rows = list(_rows(sample, whole, delimiter, escape))
    if delimiter == "\t" and not re.search(r'(?:^|\t)"[^\t]*"(?:\t|\r?$)', sample, re.MULTILINE):
        quote = escape = ""  # quotation marks inside titles, such as inches
        rows = [line.rstrip("\r").split("\t") for line in sample.split("\n") if line.strip()]
    first = [cell.strip() for cell in rows[0]]
    header = any(map(known, first)) or (all(first) and len(set(first)) == len(first) and not any(map(_is_value, first)))
    columns = distinct_names(first if header else [""] * len(first))
    return written._replace(delimiter=delimiter, quote=quote, escape=escape, header=header, columns=columns)


def _as_known(written: Written, sample: str, layout: Layout) -> Written | None:
    """Return how a file is written by its name's layout; None if its first line has no such columns."""
    lines = [line.rstrip("\r") for line in sample.split("\n") if line.strip()]
    cells = lines[0].split(layout.delimiter)
    if len(cells) != len(layout.columns) if layout.columns else len(cells) < 2:
        return None
    quote = '"' if layout.quoted else ""
    found = written._replace(delimiter=layout.delimiter, quote=quote, escape=quote, header=not layout.columns)
    return found._replace(columns=layout.columns or distinct_names(cells))


def _find_delimiter(sample: str, whole: bool) -> tuple[str, list[list[str]]]:
    """Return the delimiter that gives the most rows the same number of columns, and the rows; empty if none does.

    Many texts have spaces, so these separate columns only where nothing else does and all rows are alike.
    """
    tried = []
    for delimiter in DELIMITERS:
        rows = list(_rows(sample, whole, delimiter, '"'))
        widths = [len(row) for row in rows]
        usual = max(set(widths), key=widths.count, default=0)
        if usual > 1 and widths[0] == usual:  # names of columns have no commas, but prices and titles may
            tried.append((round(widths.count(usual) / len(widths), 1), usual, -DELIMITERS.index(delimiter), rows))
    if tried:
        _, _, place, rows = max(tried, key=lambda each: each[:3])
        return DELIMITERS[-place], rows
    rows = list(_rows(sample, whole, " ", '"'))
    return (" ", rows) if {len(row) for row in rows} in ({2}, {3}, {4}) else ("", [])


def distinct_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return names of columns of which none is empty and none comes twice: the second `x` becomes `x (2)`."""
    found: dict[str, None] = {}
    for place, name in enumerate(names, 1):
        name, number = name or f"column{place}", 1
        while (distinct := name if number == 1 else f"{name} ({number})") in found:
            number += 1
        found[distinct] = None
    return tuple(found)


def _is_backslash_escaped(sample: str, delimiter: str) -> bool:
    r"""Whether quotation marks inside quoted cells are escaped by a backslash instead of doubled.

    If they are doubled, a cell may still end in a backslash: `"C:\\",` is complete.
    """
    if '\\"' not in sample:
        return False
    try:
        for _ in csv.reader(io.StringIO(sample, newline=""), delimiter=delimiter, strict=True):
            pass
    except csv.Error as error:
        return "expected after" in str(error)  # text follows a quotation mark that ends a cell
    return False


def _rows(sample: str, whole: bool, delimiter: str, escape: str) -> Iterator[list[str]]:
    """Read the complete rows of a sample; a text that is not a table gives none."""
    doubled = escape == '"'
    reader = csv.reader(
        io.StringIO(sample, newline=""), delimiter=delimiter, doublequote=doubled, escapechar=None if doubled else escape
    )
    rows = []
    try:
        rows = [row for row in reader if row]
    except csv.Error:
        return
    yield from rows if whole or len(rows) < 2 else rows[:-1]


def _is_value(cell: str) -> bool:
    """Whether a cell is data rather than a name: a number, a date, an address."""
    return bool(re.fullmatch(r"[-+]?[\d.,:/ -]+(e[-+]?\d+)?|.*://.*", cell, re.IGNORECASE))
