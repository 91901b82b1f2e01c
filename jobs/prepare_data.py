"""Read or generate the catalogue and its interactions, split them, and write items, interactions and histories.

One process does it, with DuckDB on disk: a hundred million interactions need neither a cluster nor more memory than
`cluster.prepare_memory_gib` and a part of users or items.
"""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from digr import artifacts, partitions
from digr.artifacts import Store
from digr.config import Config
from digr.data import synthetic
from digr.data.common_form import Source, open_folder, source_files, table_source
from digr.data.database import open_database
from digr.data.describing import describe_interactions, describe_items, example_histories
from digr.data.histories import HistoryBuilder
from digr.data.importing.writing import image_folders
from digr.data.prepared_parts import PreparedParts
from digr.data.preparing import losses, prepare
from digr.images.showing import FOLDERS, NO_IMAGES, count_images, own_folders
from jobs.runtime.choices import Counts, check_choices
from jobs.runtime.command_line import main
from jobs.runtime.progress import BARS
from jobs.runtime.session import Options, log
from jobs.runtime.stage import Output, run_stage

OUTPUTS = ("items", "interactions", "histories")


def run(config: Config, options: Options) -> dict[str, Any]:
    """Make the artifacts items, interactions and histories."""
    data = config.data
    official = data.split == "official"
    if official and data.source == "synthetic":
        raise ValueError('data.split: the embedded shop has no official splits; use "leave_one_out" or "temporal"')
    if official and data.core > 1:
        raise ValueError(f"data.core: official splits cannot have a core, found core = {data.core}; set it to 0")
    files = source_files(data.path, official) if data.source == "parquet" else {}
    return run_stage(config, options, outputs=OUTPUTS, sections=["data"], files=files, build=partial(_build, config))


def _build(config: Config, store: Store, work: str) -> dict[str, Output]:
    parts = PreparedParts(store, work)
    try:
        made = _write(config, store, parts)
    except ValueError:
        artifacts.remove(work)  # the same data and choices will fail again; only a killed build is of use
        raise
    parts.publish()
    return made


def _write(config: Config, store: Store, parts: PreparedParts) -> dict[str, Output]:
    data, (source, known) = config.data, _source(config, store)
    with open_database(config.cluster.prepare_memory_gib, parts.database, resume=True) as connection:
        prepared = prepare(connection, source, data, config.run.seed)
        for note in prepared.notes:
            log("items", note)
        folders = image_folders(data.path) if data.source == "parquet" else ()
        images = NO_IMAGES
        for table in parts.items(connection, prepared):
            uris = table["image_uri"].to_pylist()
            images = images.plus(count_images(uris, config.images, (*own_folders(store), *folders)))
        log("items", f"{parts.rows['items']:,} items")
        builder = HistoryBuilder(data.split, data.max_history, prepared.item_ids, prepared.num_targets)
        total = len(prepared.user_starts)
        for done in parts.users(connection, prepared, builder):
            BARS.show(OUTPUTS[0], done, total)
            if done % 50 == 0:
                log("histories", f"{done} of {total} parts of users")
        if parts.kept:
            log(
                "histories",
                f"kept from a killed build: {', '.join(f'{count} parts of {name}' for name, count in parts.kept.items())}",
            )
        known |= describe_items(connection) | {"mended": dict(prepared.mended)}
        users = describe_interactions(connection)
        examples = example_histories(connection)
    left_out, facts = builder.finish()
    counts = Counts(prepared.num_items, facts["split_rows"], num_images=images.opened + images.remote)
    for note in check_choices(config, counts):
        log("items", note)
    for line in (*losses(prepared, left_out, data.core), f"split rows {facts['split_rows']}"):
        log("histories", line)
    for note in images.notes():
        log("items", note)
    known |= images.facts() | ({FOLDERS: list(folders)} if folders and images.opened else {})
    users |= {"num_users": prepared.num_users, "num_items": prepared.num_items, "ordered_by": prepared.ordered_by}
    told = {"items": known, "interactions": users, "histories": facts | {"examples": examples}}
    rejected = {"items": prepared.rejected_items, "interactions": prepared.rejected_interactions, "histories": left_out}
    starts = {"items": prepared.item_starts, "interactions": prepared.user_starts, "histories": prepared.user_starts}
    return {name: Output(parts.rows[name], rejected[name], told[name] | {partitions.STARTS: starts[name]}) for name in OUTPUTS}


def _source(config: Config, store: Store) -> tuple[Source, dict[str, Any]]:
    """Open the source; return it and the facts about items that only the source knows."""
    data = config.data
    if data.source == "parquet":
        return open_folder(data.path, data.split == "official", data.strip_html), {}
    shop = synthetic.build_shop(data.synthetic, config.run.seed)
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "_images"
        images.mkdir()
        synthetic.draw_images(shop, data.synthetic.image_size, images)
        artifacts.put_files(store, "items", Path(folder))
    log("items", f"generated {len(shop.items)} items with images and {len(shop.interactions)} interactions")
    uri = store.uri("items")
    base = uri if artifacts.is_remote(uri) else artifacts.filesystem_of(uri)[1]
    items = synthetic.with_images(shop.items, f"{base}/_images")
    planted = sorted(set(shop.planted["interest"].to_pylist()))
    return table_source(items, shop.interactions), {"planted_interests": planted}


if __name__ == "__main__":
    main(run)
