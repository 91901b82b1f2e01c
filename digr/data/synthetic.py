"""The embedded shop: a generated catalogue and its users, with planted interests that are therefore known.

Item texts are mostly about category, brand, material and colour, which do not predict the next item. Two sentences of
each text, and the motif of its drawn image, are evidence of the item's planted interests, which drive all behaviour. Every
table is a function of the seed.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int
from PIL import Image, ImageDraw

from digr.config.run import SyntheticConfig
from digr.data.shop_words import BRANDS, CATEGORIES, COLOURS, EVIDENCE, FILLER, INTERESTS, MATERIALS, RELATED
from digr.tables import TABLES

MAX_STAGES = 5
PHRASE_RATE = 0.8
SECOND_RATE = 0.3
STAY_RATE = 0.85
ADVANCE_RATE = 0.5
NOISE_RATE = 0.1
LENGTHS = (6, 14)
START_MS = 1_672_531_200_000
DAY_MS = 86_400_000
COLOUR_RGB = (
    (108, 113, 74),
    (70, 73, 78),
    (214, 195, 160),
    (44, 62, 100),
    (168, 84, 52),
    (240, 232, 212),
    (46, 84, 60),
    (112, 122, 134),
)


class SyntheticShop(NamedTuple):
    """Tables `items` and `interactions`, the planted interests, and the content of the images.

    `planted` has one row per item and interest, an item's main interest first; no stage may read it. `looks` has the
    main interest's index and the colour of each row of `items`.
    """

    items: pa.Table
    interactions: pa.Table
    planted: pa.Table
    looks: Int[np.ndarray, "N 2"]


class _Plan(NamedTuple):
    """Properties of N items: main and second interest (-1 for none), stage within the main one, popularity."""

    main: Int[np.ndarray, " N"]
    second: Int[np.ndarray, " N"]
    stage: Int[np.ndarray, " N"]
    popularity: Float[np.ndarray, " N"]


def build_shop(config: SyntheticConfig, seed: int) -> SyntheticShop:
    """Generate the shop; image_uri is null until the images are drawn.

    Items of an interest have stages. Most steps of a user go to the next stage of the same interest, some to another item
    of it, some to another of the user's one to three interests, some to any item. Popularity is skewed, so that many items
    are rare.

    Raises:
        ValueError: more interests than there are words for, or fewer than two items per interest.
    """
    if config.num_interests > len(INTERESTS):
        raise ValueError(
            f"data.synthetic.num_interests: found {config.num_interests}, expected at most {len(INTERESTS)}, "
            f"because there are words for no more"
        )
    if config.num_items < 2 * config.num_interests:
        raise ValueError(
            f"data.synthetic.num_items: found {config.num_items} for {config.num_interests} interests, "
            f"expected at least {2 * config.num_interests} (two per interest)"
        )
    rng = np.random.default_rng([seed, 17])
    plan = _plan(config, rng)
    items, planted, colours = _items(plan, rng)
    return SyntheticShop(
        items, _interactions(config, plan, items["item_id"], rng), planted, np.stack([plan.main, colours], axis=1)
    )


def _plan(config: SyntheticConfig, rng: np.random.Generator) -> _Plan:
    count, interests = config.num_items, config.num_interests
    main = rng.permutation(np.arange(count) % interests)
    second = np.where(rng.random(count) < SECOND_RATE, (main + rng.integers(1, interests, count)) % interests, -1)
    stages = min(MAX_STAGES, count // interests)
    stage, within = np.empty(count, np.int64), np.empty(count, np.int64)
    for interest in range(interests):
        members = np.flatnonzero(main == interest)
        stage[members] = np.arange(len(members)) % stages
        within[members] = np.arange(len(members)) // stages
    return _Plan(main, second, stage, 1.0 / (1.0 + within) ** 1.1)


def _items(plan: _Plan, rng: np.random.Generator) -> tuple[pa.Table, pa.Table, Int[np.ndarray, " N"]]:
    count = len(plan.main)
    ids = _item_ids(count, rng)
    order = np.argsort(ids)  # the ids are random, so their order reveals nothing of the plan
    ids = ids[order]
    category, brand, material, colour = (rng.integers(0, len(words), count) for words in (CATEGORIES, BRANDS, MATERIALS, COLOURS))
    titles, descriptions = [], []
    for index in range(count):
        department = CATEGORIES[category[index]]
        noun = str(rng.choice(department[2]))
        words = {
            "brand": BRANDS[brand[index]],
            "material": MATERIALS[material[index]],
            "colour": COLOURS[colour[index]],
            "noun": noun,
            "category": department[1],
        }
        titles.append("{noun} ({brand}, {material}, {colour})".format(**words))
        descriptions.append(_description(plan.main[index], plan.second[index], words, rng))
    items = pa.table(
        {
            "item_id": ids.tolist(),
            "title": titles,
            "description": descriptions,
            "brand": [BRANDS[index] for index in brand],
            "categories": [[CATEGORIES[index][0], CATEGORIES[index][1]] for index in category],
            "price": np.round(rng.lognormal(3.2, 0.6, count), 2),
            "currency": ["USD"] * count,
            "image_uri": pa.nulls(count, pa.string()),
        },
        schema=TABLES["items"].schema,
    )
    pairs = [(ids[index], each) for index in range(count) for each in (plan.main[index], plan.second[index]) if each >= 0]
    planted = pa.table({"item_id": [str(item) for item, _ in pairs], "interest": [INTERESTS[each][0] for _, each in pairs]})
    return items, planted, colour


def _item_ids(count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw distinct random ids."""
    letters = np.array(list("0123456789ABCDEFGHJKLMNPQRSTUVWXYZ"))
    codes = rng.choice(len(letters) ** 5, size=count, replace=False)
    digits = (codes[:, None] // len(letters) ** np.arange(5)) % len(letters)
    return np.array(["S0" + "".join(row) for row in letters[digits]])


def _description(main: int, second: int, words: dict[str, str], rng: np.random.Generator) -> str:
    """Write sentences without evidence and, among them, two with evidence of the interests."""
    sentences = [str(text).format(**words) for text in rng.choice(FILLER, size=4, replace=False)]
    phrase, related = INTERESTS[main]
    first, other, third = rng.permutation(np.array(related))
    other = INTERESTS[second][0] if second >= 0 else other
    evidence = (
        str(rng.choice(EVIDENCE)).format(phrase if rng.random() < PHRASE_RATE else third),
        str(rng.choice(RELATED)).format(first, other),
    )
    for text in evidence:
        sentences.insert(int(rng.integers(1, len(sentences) + 1)), text)
    return " ".join(sentences)


def _interactions(config: SyntheticConfig, plan: _Plan, ids: pa.ChunkedArray, rng: np.random.Generator) -> pa.Table:
    users = config.num_users
    length = np.minimum(LENGTHS[0] - 1 + rng.geometric(0.35, users), LENGTHS[1])
    chosen = _walk(plan, length, config.num_interests, rng)
    present = np.arange(LENGTHS[1])[None, :] < length[:, None]
    session = rng.random(present.shape) < 0.3
    gap = np.where(session, rng.exponential(20.0, present.shape) * DAY_MS, rng.exponential(0.01, present.shape) * DAY_MS)
    time = (
        START_MS + (rng.random(users) * 300 * DAY_MS).astype(np.int64)[:, None] + np.cumsum(1000 + gap.astype(np.int64), axis=1)
    )
    user, position = np.nonzero(present)
    names = pa.array([f"U{index:06d}" for index in range(users)])
    return pa.table(
        {
            "user_id": names.take(pa.array(user)),
            "position": position.astype(np.int32),
            "item_id": ids.combine_chunks().take(pa.array(chosen[present])),
            "timestamp": pa.array(time[present]).cast(pa.timestamp("ms", tz="UTC")),
            "rating": pa.nulls(len(user), pa.float64()),
        },
        schema=TABLES["interactions"].schema,
    )


def _walk(plan: _Plan, length: Int[np.ndarray, " C"], interests: int, rng: np.random.Generator) -> Int[np.ndarray, "C T"]:
    """Return the item of each user at each step; steps beyond a user's length are padding."""
    users, stages = len(length), int(plan.stage.max()) + 1
    likes = 1.0 / (1.0 + np.arange(interests)) ** 0.5
    own = np.stack([rng.choice(interests, size=3, replace=False, p=likes / likes.sum()) if interests > 2 else
                    np.array([0, 1, 0]) for _ in range(users)])  # fmt: skip
    weights = rng.dirichlet((1.0, 1.0, 1.0), users) * (np.arange(3)[None, :] < rng.integers(1, 4, users)[:, None])
    # weight of each item for each (interest, stage): its popularity, or a third of it for the item's second interest
    table = np.zeros((interests, stages, len(plan.main)))
    table[plan.main, plan.stage, np.arange(len(plan.main))] = plan.popularity
    shared = np.flatnonzero(plan.second >= 0)
    table[plan.second[shared], plan.stage[shared], shared] = plan.popularity[shared] / 3
    anywhere = np.cumsum(plan.popularity) / plan.popularity.sum()
    sums = np.cumsum(table, axis=2)
    chosen = np.zeros((users, LENGTHS[1]), np.int64)
    interest, stage = own[np.arange(users), _draw(weights, rng)], rng.integers(0, stages, users)
    for step in range(LENGTHS[1]):
        picks = _draw_cumulative(sums[interest, stage], rng)
        for _ in range(3):  # a bought item is seldom bought again
            again = (chosen[:, :step] == picks[:, None]).any(axis=1)
            picks = np.where(again, _draw_cumulative(sums[interest, stage], rng), picks)
        lost = rng.random(users) < NOISE_RATE
        chosen[:, step] = np.where(lost, np.searchsorted(anywhere, rng.random(users)), picks)
        moves = rng.random(users) > STAY_RATE
        stage = np.where(rng.random(users) < ADVANCE_RATE, (stage + 1) % stages, rng.integers(0, stages, users))
        interest = np.where(moves, own[np.arange(users), _draw(weights, rng)], interest)
    return chosen


def _draw(weights: Float[np.ndarray, "C K"], rng: np.random.Generator) -> Int[np.ndarray, " C"]:
    return _draw_cumulative(np.cumsum(weights, axis=1), rng)


def _draw_cumulative(sums: Float[np.ndarray, "C K"], rng: np.random.Generator) -> Int[np.ndarray, " C"]:
    """Draw one index per row, given the running sums of its weights."""
    return (sums <= (rng.random(len(sums)) * sums[:, -1])[:, None]).sum(axis=1).clip(max=sums.shape[1] - 1)


def draw_images(shop: SyntheticShop, size: int, folder: Path) -> None:
    """Draw `<item_id>.png` for every item: a motif and hue per interest on a background of the item's colour.

    Args:
        size: side of an image, pixels.
        folder: an existing local folder.
    """
    for item_id, (interest, colour) in zip(shop.items["item_id"].to_pylist(), shop.looks.tolist(), strict=True):
        image = Image.new("RGB", (size, size), COLOUR_RGB[colour])
        _draw_motif(ImageDraw.Draw(image), size, interest)
        image.save(folder / f"{item_id}.png")


def with_images(items: pa.Table, folder: str) -> pa.Table:
    """Point image_uri of every item to `<folder>/<item_id>.png`."""
    uris = [f"{folder}/{item_id}.png" for item_id in items["item_id"].to_pylist()]
    return items.set_column(items.column_names.index("image_uri"), "image_uri", pa.array(uris, pa.string()))


def _draw_motif(draw: ImageDraw.ImageDraw, size: int, interest: int) -> None:
    """Draw one of six shapes, one to four times, in one of the interests' hues."""
    hue = f"hsl({interest * 360 // len(INTERESTS)}, 90%, 55%)"
    copies, shape = 1 + interest // 6 % 4, interest % 6
    side = size * 0.7 / (1 if copies == 1 else 2)
    for copy in range(copies):
        x, y = size * 0.15 + (copy % 2) * side, size * 0.15 + (copy // 2) * side
        box = (x, y, x + side * 0.9, y + side * 0.9)
        if shape == 0:
            draw.ellipse(box, fill=hue)
        elif shape == 1:
            draw.rectangle(box, fill=hue)
        elif shape == 2:
            draw.ellipse(box, outline=hue, width=max(2, size // 12))
        elif shape == 3:
            draw.pieslice(box, 30, 300, fill=hue)
        else:
            draw.regular_polygon((x + side * 0.45, y + side * 0.45, side * 0.45), 3 if shape == 4 else 5, fill=hue)
