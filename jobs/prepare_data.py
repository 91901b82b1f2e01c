"""Read or generate the catalogue and its interactions, split them, and write items, interactions and histories."""

import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from digr import artifacts, partitions
from digr.artifacts import Store
from digr.config import Config
from digr.data import amazon, histories, sequences, synthetic
from digr.data.histories import Histories
from digr.interests.images import count_images
from jobs.runtime.session import Options, log, main
from jobs.runtime.stage import Output, run_stage

OUTPUTS = ("items", "interactions", "histories")


def run(config: Config, options: Options) -> dict[str, Any]:
    """Make the artifacts items, interactions and histories."""
    data = config.data
    official = data.split == "official"
    if official and data.source == "synthetic":
        raise ValueError('data.split: the embedded shop has no official splits; use "leave_one_out" or "temporal"')
    if official and data.core > 1:
        raise ValueError(f"data.core: official splits are taken as they are, found core = {data.core}; set it to 0")
    files = amazon.source_files(data.path, official) if data.source == "parquet" else {}

    def build(store: Store, work: str) -> dict[str, Output]:
        return _from_folder(config, store) if data.source == "parquet" else _from_shop(config, store)

    return run_stage(config, options, outputs=OUTPUTS, sections=["data"], files=files, build=build)


def _from_folder(config: Config, store: Store) -> dict[str, Output]:
    data = config.data
    source = amazon.read_folder(data.path, data.split == "official")
    log("items", f"read {len(source.items)} items and {len(source.interactions)} interactions from {data.path}")
    if data.split == "official":
        made = histories.from_official_splits(source.interactions, source.splits, data.max_history)
        return _write(config, store, source.items, source.interactions, made, rejected_items=source.rejected)
    return _split(config, store, source.items, source.interactions, source.rejected)


def _from_shop(config: Config, store: Store) -> dict[str, Output]:
    shop = synthetic.build_shop(config.data.synthetic, config.run.seed)
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "_images"
        images.mkdir()
        synthetic.draw_images(shop, config.data.synthetic.image_size, images)
        artifacts.put_files(store, "items", Path(folder))
    log("items", f"generated {len(shop.items)} items with images and {len(shop.interactions)} interactions")
    uri = store.uri("items")
    base = uri if artifacts.is_remote(uri) else artifacts.filesystem_of(uri)[1]
    items = synthetic.with_images(shop.items, f"{base}/_images")
    made = _split(config, store, items, shop.interactions, {})
    planted = sorted(set(shop.planted["interest"].to_pylist()))
    return made | {"items": made["items"]._replace(facts=dict(made["items"].facts) | {"planted_interests": planted})}


def _split(config: Config, store: Store, items: pa.Table, interactions: pa.Table, rejected: dict[str, int]) -> dict[str, Output]:
    data = config.data
    assert data.split != "official"
    kept = sequences.k_core(interactions, data.core)
    dropped = len(interactions) - len(kept)
    if dropped:
        known = pc.is_in(items["item_id"], value_set=pc.unique(kept["item_id"]))
        rejected = rejected | {f"item outside the {data.core}-core": len(items) - pc.sum(known).as_py()}
        items = items.filter(known)
    made = histories.build_histories(kept, data.split, data.max_history)
    left_out = {f"interaction outside the {data.core}-core": dropped} if dropped else {}
    return _write(config, store, items, kept, made, rejected_items=rejected, rejected_interactions=left_out)


def _write(
    config: Config,
    store: Store,
    items: pa.Table,
    interactions: pa.Table,
    made: Histories,
    *,
    rejected_items: dict[str, int],
    rejected_interactions: dict[str, int] = {},
) -> dict[str, Output]:
    images = _image_facts(items)
    facts = {"num_users": pc.count_distinct(interactions["user_id"]).as_py(), "num_items": len(items)}
    log("items", f"split rows {made.facts['split_rows']}")
    tables = {
        "items": items.sort_by("item_id"),
        "interactions": interactions.sort_by([("user_id", "ascending"), ("position", "ascending")]),
        "histories": made.table,  # sorted by user_id and time
    }
    users = partitions.range_starts(interactions["user_id"], config.data.users_per_part)
    starts = dict.fromkeys(tables, users) | {"items": partitions.range_starts(items["item_id"], config.data.items_per_part)}
    rows = {name: artifacts.write_table(store, name, table, starts[name]) for name, table in tables.items()}
    ranges = {name: {partitions.STARTS: starts[name]} for name in tables}
    return {
        "items": Output(rows["items"], rejected_items, images | ranges["items"]),
        "interactions": Output(rows["interactions"], rejected_interactions, facts | ranges["interactions"]),
        "histories": Output(rows["histories"], made.rejected, made.facts | ranges["histories"]),
    }


def _image_facts(items: pa.Table) -> dict[str, int]:
    """How many items have an address of an image, and of how many it opens; remote ones are counted where they are shown."""
    uris = items["image_uri"].to_pylist()
    opened, remote = count_images(uris)
    counts = {"num_image_uris": sum(map(bool, uris)), "num_images": opened}
    if broken := counts["num_image_uris"] - opened - remote:
        log("items", f"{broken} of {counts['num_image_uris']} images do not open; their items have their text only")
    return counts | ({"num_remote_images": remote} if remote else {})


if __name__ == "__main__":
    main(run)
