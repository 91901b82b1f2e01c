"""Read any table by the names of its columns ("theirs", mapped to "ours" of the common form), checked against their values."""

import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from digr.data.importing.rules import INTERACTION_COLUMNS, ITEM_COLUMNS, SPLIT_COLUMNS, Pick, Reading, Role, split_of
from digr.data.importing.tables import Table
from digr.data.importing.values import parse_nested, parse_price

__all__ = ["Pick", "check_chosen", "guess", "is_usual", "readings"]

USUAL = {
    "user_id": "user userid username uid customer customerid customernumber client clientid visitor visitorid reviewer "
    "reviewerid member memberid account accountid buyer buyerid shopper shopperid profileid personid fullvisitorid "
    "userpseudoid customeremail",
    "item_id": "item itemid iid sku product productid productcode productsku asin movie movieid film filmid track trackid song "
    "songid book bookid isbn article articleid news newsid stockcode itemcode itemsku businessid animeid gameid "
    "appid videoid recipeid goodsid gtin listingid offerid contentid artistid variantsku parentasin courseid "
    "podcastid hotelid",
    "timestamp": "time date datetime ts dateadded createdat created createtime creationdate invoicedate eventtime eventdate "
    "eventtimestamp unixreviewtime reviewdate orderdate orderedat ordertime purchasedate purchasedat purchasetime "
    "transactiondate tdat visittime ratedat clicktime listenedat watchedat timestampms timestamps unixtime playedat",
    "rating": "ratings bookrating overall score stars starrating reviewscore reviewrating userrating ratingvalue",
    "position": "",
    "event": "eventtype eventname action actiontype behavior behaviour behaviortype interaction interactiontype",
    "title": "name productname producttitle itemname itemtitle movietitle filmtitle moviename trackname tracktitle songtitle "
    "songname booktitle newstitle headline appname prodname productdisplayname articletitle gamename recipename coursetitle",
    "description": "body productdescription itemdescription detaildesc overview abstract plot longdescription shortdescription "
    "synopsis bodyhtml desc",
    "brand": "brandname manufacturer vendor author authors bookauthor artist artistname publisher producer maker",
    "categories": "category categoryname categorypath categorycode genre genres producttype producttypename productcategory "
    "googleproductcategory department departmentname class maincategory categorylist",
    "price": "unitprice listprice priceusd priceeur pricegbp amount unitcost saleprice currentprice productprice",
    "currency": "currencycode curr pricecurrency",
    "image": "imageurl imagelink imageuri imurl img imgurl picture pictureurl thumbnail thumbnailurl poster posterurl photo "
    "photourl images imagesrc imagefile imagepath filename imageurls",
}  # fmt: skip
CHOICES = (*INTERACTION_COLUMNS, *ITEM_COLUMNS[1:], "image_url", "image_file", "history")
ENOUGH = 0.5
"""Share of a column's values that must be of the kind that its name suggests; the others are counted when left out."""
_DATE = re.compile(r"\d{1,4}[-/. ]\d{1,2}|\d{1,2}[-/ ][A-Za-z]{3}|[A-Za-z]{3,9}\.? \d{1,2}")


def normal(name: str) -> str:
    """Return a column's name without case and punctuation."""
    return re.sub(r"[\W_]+", "", name.casefold())


_NAMES = {ours: dict.fromkeys([normal(ours), *names.split()]) for ours, names in USUAL.items()}
_KNOWN = set().union(*_NAMES.values(), {"id", "history", "target"})


def is_usual(name: str) -> bool:
    """Whether a text is a usual name of a column, with or without RecBole's type as suffix."""
    return normal(name.partition(":")[0]) in _KNOWN


def has_usual(ours: str, names: Sequence[str]) -> bool:
    """Whether one of the columns has a usual name of `ours`."""
    return any(normal(name) in _NAMES[ours] for name in names)


def readings(table: Table, chosen: Mapping[str, Sequence[str]]) -> list[Reading]:
    """Return the ways to read a table by names, none if it has neither users nor titles of items.

    Raises:
        ValueError: two columns fit one of ours.
    """
    names = list(table.columns)
    split = split_of(table.name)
    if split and set(SPLIT_COLUMNS) <= set(names):
        return [Reading("names", "splits", {ours: (ours,) for ours in SPLIT_COLUMNS}, split=split)]
    # a catalogue may have several ids (article and product, book and ISBN); the interactions decide later between them
    ids = _Guess(table, names, chosen_here(chosen, names)).fitting("item_id")
    guesses = [guess(table, names, {**chosen, "item_id": (name,)}, None) for name in ids] if len(ids) > 1 else []
    if not guesses or guesses[0][0] == "interactions":
        guesses = [guess(table, names, chosen, None)]
    needed = {"interactions": {"user_id", "item_id"}, "items": {"item_id", "title"}}
    return [Reading("names", role, found) for role, found in guesses if needed[role] <= set(found)]


def guess(
    table: Table, names: Sequence[str], chosen: Mapping[str, Sequence[str]], role: Role | None
) -> tuple[Role, dict[str, tuple[str, ...]]]:
    """Return a table's role and its columns: ours -> names out of `names`.

    Args:
        table: the table.
        names: of its columns, in their order, without suffixes such as RecBole's types.
        chosen: ours -> theirs, chosen by the user instead of a guess; columns that the table lacks are ignored.
        role: of the table, if known.
    """
    guessed = _Guess(table, names, chosen_here(chosen, names))
    found = guessed.found
    if role != "items":
        guessed.find("user_id")
    role = role or ("interactions" if "user_id" in found else "items")
    logged = role == "interactions"
    guessed.find("item_id", extra=() if logged else ("(key)",))
    if not logged and "item_id" not in found:
        found["item_id"] = tuple(name for name in names if normal(name) == "id")
    for ours in INTERACTION_COLUMNS[2:] if logged else ():
        guessed.find(ours, of_two="none" if ours == "event" else "error")
    for ours in ITEM_COLUMNS[1:]:
        guessed.find(ours, of_two="none" if logged else "first")
    if "title" not in found and "description" in found:
        found["title"] = found.pop("description")
    return role, {ours: theirs for ours, theirs in found.items() if theirs}


class _Guess(NamedTuple):
    """The columns of a table that are found so far."""

    table: Table
    names: Sequence[str]
    found: dict[str, tuple[str, ...]]

    def find(self, ours: str, of_two: Literal["error", "first", "none"] = "error", extra: Sequence[str] = ()) -> None:
        """Find one of ours, see `fitting`; `of_two` says what to do if two fit: an error, the first, or none."""
        fitting = self.fitting(ours, extra)
        if {normal(name) for name in fitting} == {"imageurl", "imagefile"}:
            self.found[ours] = tuple(sorted(fitting, key=normal))  # image_file comes before image_url
        elif len(fitting) == 1 or (fitting and of_two == "first"):
            self.found[ours] = (fitting[0],)
        elif fitting and of_two == "error":
            raise ValueError(_ambiguous(self.table, ours, fitting))

    def fitting(self, ours: str, extra: Sequence[str] = ()) -> list[str]:
        """Return the columns that may be one of ours: of exactly that name, else of a usual name with values of its kind.

        The most usual name is first.
        """
        if ours in self.found:
            return []
        taken = {name for theirs in self.found.values() for name in theirs}
        free = [name for name in dict.fromkeys(self.names) if name not in taken]
        usual = [name for name in free if normal(name) == normal(ours)]
        usual = usual or [name for name in free if normal(name) in _NAMES[ours] or name in extra]
        held = [name for name in usual if _holds(self.table, self.names.index(name), ours)]
        order = list(_NAMES[ours])
        return sorted(held, key=lambda name: order.index(normal(name)) if normal(name) in order else len(order))


def chosen_here(chosen: Mapping[str, Sequence[str]], names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the user's columns that a table has; image_url and image_file both become image."""
    here = {ours: tuple(name for name in theirs if name in names) for ours, theirs in chosen.items()}
    return {("image" if ours.startswith("image_") else ours): theirs for ours, theirs in here.items() if theirs}


def _ambiguous(table: Table, ours: str, fitting: Sequence[str]) -> str:
    return (
        f"{table.address}: {' and '.join(map(repr, fitting))} may both be {ours}; choose one: put {ours} = {fitting[0]!r} into "
        f"[data.columns] of the config, or give --columns {ours}={fitting[0]}"
    )


def _holds(table: Table, place: int, ours: str) -> bool:
    """Whether a column's values are of the kind that its name suggests."""
    check: dict[str, Callable[[str], bool]] = {
        "timestamp": _is_time,
        "rating": _is_number,
        "price": _is_price,
        "position": _is_count,
    }
    values = [row[place] for row in table.sample if row[place] and (row[place] or "").strip()]
    if ours not in check or not values:
        return True
    return sum(check[ours](value or "") for value in values) >= ENOUGH * len(values)


def _is_number(text: str) -> bool:
    try:
        return not math.isinf(float(text))
    except ValueError:
        return False


def _is_time(text: str) -> bool:
    return _is_number(text) or bool(_DATE.search(text))


def _is_count(text: str) -> bool:
    return text.strip().isdecimal()


def _is_price(text: str) -> bool:
    return parse_price(text) != (None, None) or text.strip() in ("-1", "inf", "nan") or parse_nested(text) == []


def check_chosen(chosen: Mapping[str, Sequence[str]], tables: Sequence[Table]) -> None:
    """Check the user's choice of columns.

    Raises:
        ValueError: a key is not a column of the common form, or no file has the column; the message names the nearest.
    """
    there = list(dict.fromkeys(column for table in tables for column in table.columns))
    for ours, theirs in chosen.items():
        if ours not in CHOICES:
            nearest = difflib.get_close_matches(ours, CHOICES, 1, 0.0)[0]
            raise ValueError(
                f"data.columns: {ours!r} is not a known column; the nearest is {nearest!r}, all are {', '.join(CHOICES)}"
            )
        for name in theirs:
            if name not in there:
                near = difflib.get_close_matches(name, there, 1, 0.0)
                raise ValueError(
                    f"data.columns: {ours} = {name!r}: no file has this column; the nearest is {near[0]!r}"
                    if near
                    else f"data.columns: {ours} = {name!r}: no file has this column"
                )
