"""Build canonical interests with Ray: collect phrases by part, encode them in blocks, and group them in one worker."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from digr import artifacts
from digr.artifacts import Store
from digr.config import Config
from digr.models.encoders import Encode, load_encoder
from digr.partitions import Part, iter_aligned, parts_of
from digr.ranking import building
from digr.ranking.building import FamilyFiles
from digr.ranking.grouping import group_all, read_known
from digr.ranking.phrases import PHRASES, text_pieces, trusted_phrases
from jobs.runtime.datasets import map_tables, map_with_model, part_dataset, parts_in, start_task
from jobs.runtime.stage import store_at

BATCH_ITEMS = 4096


class EncodePhrases:
    """Write the vectors of files of phrases; the encoder is loaded once."""

    def __init__(self, config: Config, files: FamilyFiles) -> None:
        self.config, self.files = config, files
        self.encode = self.load_encoder()

    def load_encoder(self) -> Encode:
        """Load the encoder of phrases."""
        import torch

        cluster = self.config.cluster
        torch.set_num_threads(cluster.encode_threads)
        device = "cuda" if cluster.use_gpu else "cpu"
        return load_encoder(self.config.embeddings.encoder, device, cluster.encode_batch_size)

    def __call__(self, parts: pa.Table) -> pa.Table:
        """Encode the phrases of some files."""
        for part in parts_in(parts):
            name = artifacts.part_name(part.number)
            phrases = artifacts.open_parts(f"{self.files.phrases}/{name}").to_table()["interest"].to_pylist()
            vectors = self.encode(phrases)
            lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
            table = pa.table({"vector": lists})
            with artifacts.open_part(f"{self.files.vectors}/{name}", table.schema) as writer:
                writer.write_table(table)
        return parts


def earlier_store(config: Config) -> Store | None:
    """Return the run whose canonical interests are kept; None if there is none."""
    return store_at(config.ranking.keep_from, config.run.variant) if config.ranking.keep_from else None


def group_phrases(
    config: Config, store: Store, files: Mapping[str, FamilyFiles], worker: type[EncodePhrases] = EncodePhrases
) -> dict[str, Any]:
    """Collect, encode and group the phrases of each family; return references to the groups of its phrases.

    Only interests keep the groups of an earlier run, because the other families serve for comparison only.
    """
    make = partial(_write_rows, store=store, files=dict(files))
    map_tables(part_dataset(parts_of(store, "item")), make).materialize()
    found = {}
    for name, each in files.items():
        earlier = earlier_store(config) if name == "interests" else None
        num_files = ray.get(start_task(_write_phrases, each, earlier))
        parts = part_dataset([Part("item", number) for number in range(num_files)])
        map_with_model(parts, config, worker, (config, each), num_files).materialize()
        uri = store.uri("canonical_interests") if name == "interests" else f"{each.folder}/canonical"
        found[name] = start_task(_group, each, uri, config, earlier)
    return found


def _write_rows(parts: pa.Table, store: Store, files: Mapping[str, FamilyFiles]) -> pa.Table:
    """Write the phrases of items of some parts, for each family."""
    for part in parts_in(parts):
        tables: dict[str, list[pa.Table]] = {name: [PHRASES.empty_table()] for name in files}
        before = 0
        for items, interests, labels in iter_aligned(store, ("items", "interests", "interest_labels"), part, BATCH_ITEMS):
            for name, found in tables.items():
                rows = trusted_phrases(interests, labels) if name == "interests" else text_pieces(items)
                found.append(rows.set_column(0, "row", pc.add(rows["row"], before)))
            before += len(items)
        for name, found in tables.items():
            with artifacts.open_part(f"{files[name].rows}/{artifacts.part_name(part.number)}", PHRASES) as writer:
                writer.write_table(pa.concat_tables(found))
    return parts


def _write_phrases(files: FamilyFiles, earlier: Store | None) -> int:
    return building.write_phrases(files, read_known(earlier) if earlier else None)


def _group(files: FamilyFiles, uri: str, config: Config, earlier: Store | None) -> list[np.ndarray]:
    """Write the table of canonical interests; return the groups of phrases at each grain."""
    chosen, known = config.ranking, read_known(earlier) if earlier else None
    table, groups = group_all(files, chosen.interest_cosines, max_phrases=chosen.max_phrases, seed=config.run.seed, known=known)
    with artifacts.open_part(f"{uri}/{artifacts.part_name(0)}", table.schema) as writer:
        writer.write_table(table)
    return groups


def grouped_facts(config: Config, store: Store) -> dict[str, int]:
    """Count the grouped phrases; with an earlier run also the kept ones, the new ones, and those that no item has any more."""
    table, earlier = artifacts.open_parts(store.uri("canonical_interests")), earlier_store(config)
    facts = {"num_phrases": table.count_rows()}
    if earlier:
        known, retired = artifacts.require(earlier, "canonical_interests").rows or 0, pc.field("num_items") == 0
        facts["num_retired_phrases"] = table.count_rows(filter=retired)
        facts |= {"num_kept_phrases": known - facts["num_retired_phrases"], "num_new_phrases": facts["num_phrases"] - known}
    return facts
