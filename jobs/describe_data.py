"""Describe a folder in the common form before a run: what is in it, what would be left out and why, and which choices fit.

Nothing is written. Rows that would stop `jobs.prepare_data` are counted as left out. Of many interactions, those of some users
are read, which is said.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NoReturn

from duckdb import DuckDBPyConnection
from typer import Argument, Option

from digr.config import build_config
from digr.config.images import ImagesConfig
from digr.config.run import DataConfig
from digr.data import describing
from digr.data.common_form import count_rows, has_official_splits, open_folder
from digr.data.database import open_database
from digr.data.histories import HistoryBuilder
from digr.data.importing.writing import image_folders
from digr.data.preparing import Prepared, iter_users, prepare
from digr.images.showing import ImageRules, show_images
from digr.sids.sizes import auto_level_sizes
from jobs.runtime.command_line import JsonOption, Summary, run_and_exit, run_command
from jobs.runtime.session import log

NAME = "jobs.describe_data"
READ_INTERACTIONS = 3_000_000
"""Of more interactions than these, those of a share of users are read."""
OPENED_IMAGES = 24
MAX_IMAGE_BYTES, MAX_IMAGE_SIDE = 5_000_000, 512


def describe_command(summary: Summary) -> Any:
    """Return the description as a function for Typer."""

    def command(
        folder: Annotated[str, Argument(metavar="FOLDER", help="Folder or s3:// address, as an import writes it.")],
        split: Annotated[
            Literal["official", "leave_one_out", "temporal"] | None, Option(help="By default what the data allow.")
        ] = None,
        memory_gib: Annotated[float, Option(help="Memory of the database, GiB.")] = 1.5,
        as_json: JsonOption = False,
    ) -> None:
        run_and_exit(NAME, lambda: run(folder, split or "", memory_gib), "only" if as_json else summary)

    return command


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Describe from the command line; the last line it prints is its summary as JSON, and a failure exits non-zero."""
    run_command(NAME, describe_command("last_line"), argv, __doc__ or "")


def run(folder: str, split: str, memory_gib: float) -> dict[str, Any]:
    """Print what a folder holds, and return it."""
    official = split == "official" or (not split and has_official_splits(folder))
    source = open_folder(folder, official)
    one_in = max(1, -(-count_rows(source.places["interactions"]) // READ_INTERACTIONS))
    lenient = {"orphans": "drop", "duplicates": "drop", "untitled": "drop"}
    chosen = {"source": "parquet", "path": folder, "split": split or ("official" if official else "leave_one_out"), **lenient}
    data = build_config({"run": {"dir": "unused"}, "data": chosen}, folder).data
    with open_database(memory_gib) as connection:
        prepared = prepare(connection, source, data, 0, one_user_in=one_in)
        log("describe", f"read {prepared.num_interactions:,} interactions of {prepared.num_users:,} users")
        interactions = describing.describe_interactions(connection)
        suggested = describing.suggest(connection, interactions, one_in)
        histories = _history_facts(connection, data, prepared)
        items = describing.describe_items(connection)
        examples = describing.example_histories(connection)
        images = _open_images(describing.sample_images(connection, OPENED_IMAGES), folder)
    left_out = dict(prepared.rejected_items) | dict(prepared.rejected_interactions) | histories.pop("left_out")
    choices = suggested._asdict() | {"level_sizes": list(auto_level_sizes(prepared.num_items))}
    facts: dict[str, Any] = {"users": prepared.num_users, "items": prepared.num_items, "interactions": prepared.num_interactions}
    facts |= {f"left out: {reason}": count for reason, count in left_out.items()} | interactions | histories | items | images
    facts["mended"] = dict(source.mended)
    for note in prepared.notes:
        log("describe", note)
    if one_in > 1:
        log("describe", f"figures about users and interactions are of 1 in {one_in} users")
    print(describing.description_text(facts, examples), flush=True)
    print("\nsuggested: " + ", ".join(f"{key}={value}" for key, value in _overrides(choices).items()), flush=True)
    return {
        "status": "done",
        "folder": folder,
        "one_user_in": one_in,
        "facts": facts,
        "suggested": choices,
        "histories": examples,
    }


def _history_facts(connection: DuckDBPyConnection, data: DataConfig, prepared: Prepared) -> dict[str, Any]:
    """Split the interactions; what keeps a split empty is told and is no failure here."""
    builder = HistoryBuilder(data.split, data.max_history, prepared.item_ids, prepared.num_targets)
    for _ in iter_users(connection, prepared, builder):
        pass
    try:
        left_out, facts = builder.finish()
    except ValueError as error:
        return {"left_out": {}, "problem": str(error)}
    told = ("split_rows", "equal_timestamp_rate", "repeat_rate", "cold_target_rate")
    return {"left_out": left_out, "split": data.split} | {name: facts[name] for name in told}


def _open_images(uris: Sequence[str], folder: str) -> dict[str, Any]:
    """Really open some images, also those of other servers."""
    if not uris:
        return {}
    rules = ImageRules(ImagesConfig(), image_folders(folder), MAX_IMAGE_BYTES, MAX_IMAGE_SIDE)
    shown = show_images(uris, rules)
    reasons = Counter(image.reason.replace(uri, "...") for uri, image in zip(uris, shown, strict=True) if image.reason)
    opened = f"{sum(image.url is not None for image in shown)} of {len(uris)} tried"
    return {"images_opened": opened} | ({"images_not_opened": dict(reasons.most_common(3))} if reasons else {})


def _overrides(choices: dict[str, Any]) -> dict[str, Any]:
    sections = {"level_sizes": "sids"}
    return {f"{sections.get(name, 'data')}.{name}": value for name, value in choices.items()}


if __name__ == "__main__":
    main()
