"""Parse the text of a cell: a price with its currency, a list of categories, a description, an image."""

import ast
import json
import math
import re
from typing import Any

SYMBOLS = {
    "US$": "USD", "C$": "CAD", "CA$": "CAD", "A$": "AUD", "AU$": "AUD", "R$": "BRL", "HK$": "HKD", "NZ$": "NZD", "S$": "SGD",
    "€": "EUR", "£": "GBP", "₹": "INR", "RP": "IDR", "₩": "KRW", "₽": "RUB", "₺": "TRY", "₫": "VND",
    "฿": "THB", "₴": "UAH", "₪": "ILS", "₱": "PHP", "ZŁ": "PLN", "元": "CNY", "円": "JPY", "RS.": "INR", "RS": "INR",
}  # fmt: skip
SHARED_SIGNS = ("$", "¥")
"""Signs that several currencies share; a price with one of them has no known currency."""
DOTTED = {"IDR", "VND", "CLP", "COP", "PYG", "EUR", "BRL", "TRY", "ARS", "DKK", "ISK"}
"""Currencies whose prices have dots between thousands, so that 14.000 is fourteen thousand."""
_NUMBER = re.compile(r"(?<![\w.,])(?:\d{1,3}(?:[ \u00a0\u202f'’]\d{3})+(?:[.,]\d{1,2})?|\d[\d.,]*|\.\d+)(?!\w)")
_CODE = re.compile(r"(?<![A-Za-z])([A-Za-z]{3})(?![A-Za-z])")
_MARK = re.compile(
    "|".join(re.escape(symbol) for symbol in sorted((*SYMBOLS, *SHARED_SIGNS), key=len, reverse=True)), re.IGNORECASE
)
CODES = {
    "AED", "ARS", "AUD", "BDT", "BGN", "BHD", "BRL", "CAD", "CHF", "CLP", "CNY", "COP", "CZK", "DKK", "EGP", "EUR", "GBP", "HKD",
    "HUF", "IDR", "ILS", "INR", "ISK", "JPY", "KES", "KRW", "KWD", "KZT", "LKR", "MAD", "MXN", "MYR", "NGN", "NOK", "NZD", "OMR",
    "PEN", "PHP", "PKR", "PLN", "PYG", "QAR", "RON", "RSD", "RUB", "SAR", "SEK", "SGD", "THB", "TND", "TRY", "TWD", "TZS", "UAH",
    "UGX", "USD", "UYU", "VND", "ZAR",
}  # fmt: skip
"""ISO 4217 codes that are recognised in a price; other words of three letters are ignored."""
EMPTY = {"", "none", "null", "nan", "n/a", "[]", "{}"}
"""Texts that mean "missing" in cells of lists, prices and images; titles and ids keep them."""
LONGEST_PRICE = 60
PICTURE_SIZES = ("hi_res", "large", "large_image_url", "url", "src", "link", "medium_image_url", "thumb", "small_image_url")
NO_CATEGORY = "(no genres listed)"


def parse_price(text: str | None) -> tuple[float | None, str | None]:
    """Return a price and, if the text names it, its currency as an ISO code; a range gives its first number.

    >>> parse_price("$1,299.00"), parse_price("14.000.000 IDR"), parse_price("EUR 9,99")
    ((1299.0, None), (14000000.0, 'IDR'), (9.99, 'EUR'))
    >>> parse_price("-1"), parse_price("inf"), parse_price("12.5")
    ((None, None), (None, None), (12.5, None))
    """
    text = (text or "").strip()
    if text.lower() in EMPTY or len(text) > LONGEST_PRICE:
        return None, None
    try:
        number = float(text.replace("_", "?"))
    except ValueError:
        currency = currency_of(text)
        bare = _MARK.sub(" ", _CODE.sub(" ", text))
        found = _NUMBER.search(bare)
        if not found or bare[: found.start()].rstrip().endswith("-"):
            return None, currency
        return _amount(found[0].rstrip(".,"), currency), currency
    return (number if math.isfinite(number) and number >= 0 else None), None


def currency_of(text: str | None) -> str | None:
    """Return the ISO code of the currency that a text names by code or sign; None if it names none."""
    text = text or ""
    code = next((code.upper() for code in _CODE.findall(text) if code.upper() in CODES), None)
    sign = _MARK.search(text)
    return code or (SYMBOLS.get(sign[0].upper()) if sign else None)


def _amount(number: str, currency: str | None) -> float | None:
    digits = re.sub(r"[ \u00a0\u202f'’]", "", number)
    last = max(digits.rfind("."), digits.rfind(","))
    mark = digits[last] if last >= 0 else ""
    other = {".": ",", ",": "."}.get(mark, "")
    whole, fraction = digits[:last], digits[last + 1 :]
    thousands = mark and (
        digits.count(mark) > 1
        or (len(fraction) == 3 and other not in whole and whole != "0" and (mark == "," or currency in DOTTED))
    )
    if not mark or thousands:
        return float(re.sub("[.,]", "", digits))
    return float(f"{re.sub('[.,]', '', whole) or '0'}.{fraction}")


def parse_nested(text: str) -> Any:
    """Return the list or mapping that a text writes in JSON or Python syntax; None if it is neither."""
    if text[:1] not in ("[", "{", "("):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return None
    return value if isinstance(value, (list, tuple, dict)) else None


def _leaves(value: Any) -> list[str]:
    """Return all texts and numbers inside lists, in their order."""
    if isinstance(value, (list, tuple)):
        return [leaf for inner in value for leaf in _leaves(inner)]
    if value is None or isinstance(value, (dict, bool)):
        return []
    return [text] if (text := str(value).strip()) else []


def parse_categories(text: str | None) -> list[str] | None:
    """Return the distinct categories of an item from a path, a list or a list of paths.

    >>> parse_categories("Home > Kitchen"), parse_categories("Action|Comedy"), parse_categories("[['A', 'B'], ['A', 'C']]")
    (['Home', 'Kitchen'], ['Action', 'Comedy'], ['A', 'B', 'C'])
    """
    text = (text or "").strip()
    if text.lower() in EMPTY or text == NO_CATEGORY:
        return None
    nested = parse_nested(text)
    if isinstance(nested, (list, tuple)):
        parts = [part for leaf in _leaves(nested) for part in re.split(r"\s+>\s+", leaf)]
    else:
        parts = re.split(r"\s*(?:>|\|)\s*", text)
    return list(dict.fromkeys(part.strip() for part in parts if part.strip())) or None


def parse_history(text: str | None) -> list[str]:
    """Return the ids of a history: a list in JSON or Python, or ids separated by spaces.

    >>> parse_history("[12, 7]"), parse_history("['a b']"), parse_history("12 7")
    (['12', '7'], ['a b'], ['12', '7'])
    """
    nested = parse_nested((text or "").strip())
    return _leaves(nested) if isinstance(nested, (list, tuple)) else (text or "").split()


def parse_text(text: str | None) -> str | None:
    """Return a description as one text: the parts of a list are joined by spaces, other texts are kept; empty becomes null.

    >>> parse_text("['A pan.', 'It fries.']"), parse_text("[sale] A pan"), parse_text("[]")
    ('A pan. It fries.', '[sale] A pan', None)
    """
    if not text:
        return None
    nested = parse_nested(text.strip())
    if nested is None:
        return text
    return " ".join(_leaves(nested)) or None if isinstance(nested, (list, tuple)) else text


def parse_picture(text: str | None) -> str | None:
    """Return the address or path of an item's first image, in its largest size.

    >>> parse_picture('[{"thumb": "http://x/t.jpg", "hi_res": null, "large": "http://x/l.jpg"}]')
    'http://x/l.jpg'
    """
    text = (text or "").strip()
    if text.lower() in EMPTY:
        return None
    nested = parse_nested(text)
    if nested is not None:
        return _picture(nested)
    return text.partition("|")[0].strip() or None


def _picture(value: Any) -> str | None:
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, dict):
        value = [value[size] for size in PICTURE_SIZES if value.get(size)]
    return (
        next((found for inner in value or () if (found := _picture(inner))), None) if isinstance(value, (list, tuple)) else None
    )
