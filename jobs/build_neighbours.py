"""Build the sources of candidates: artifacts `canonical_interests`, `item_neighbours` and `ranking_index`.

All counts use training rows, for two periods: all of them, and those before the rows from which the ranker learns.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import ray

from digr.artifacts import Store
from digr.config import Config
from digr.config.models import ModelConfig
from digr.partitions import STARTS, part_starts, parts_of
from digr.ranking import building
from digr.ranking.building import FamilyFiles, source_name
from digr.ranking.grouping import check_same_choices
from digr.ranking.systems import families_of, systems_of
from digr.ranking.views import COUNTED, PERIODS
from jobs.ranking.counts import count_sources, counted_rows
from jobs.ranking.index_files import (
    INDEX,
    Nearest,
    write_content,
    write_counts,
    write_family,
    write_lifts,
    write_search,
    write_shuffled,
    write_source,
)
from jobs.ranking.phrase_groups import EncodePhrases, earlier_store, group_phrases, grouped_facts
from jobs.runtime.command_line import main
from jobs.runtime.datasets import map_parts, start_task
from jobs.runtime.session import Options, log, start_ray
from jobs.runtime.stage import Output, run_stage, store_of

STAGE = "item_neighbours"
OUTPUTS = ("canonical_interests", STAGE, INDEX)
WITH_PHRASES = ("interests", "text_twin")
"""Families that have phrases of their own."""


def build_sources(
    config: Config, store: Store, work: str, encode_worker: type[EncodePhrases] = EncodePhrases
) -> Mapping[str, Output]:
    """Write all outputs; the phrases of items are encoded by `encode_worker`."""
    chosen = config.ranking
    families = families_of(systems_of(chosen.ablations))
    firsts = building.part_firsts(store)
    log(STAGE, f"{firsts[-1]} items, grains at cosines {', '.join(map(str, chosen.interest_cosines))}")
    files: dict[str, FamilyFiles] = {name: FamilyFiles(f"{work}/{name}") for name in WITH_PHRASES if name in families}
    groups = group_phrases(config, store, files, encode_worker)
    written = [start_task(write_family, store, files[name], found, firsts, name) for name, found in groups.items()]
    contents = building.contents_of(store)
    written += [start_task(write_content, store, content, int(firsts[-1])) for content in contents]
    log(STAGE, "phrases are encoded; grouping them and counting transitions")
    counts = count_sources(config, store, work, firsts)
    ray.get(written)
    grouped = grouped_facts(config, store)
    said = ", ".join(f"{count} {name[4:].replace('_', ' ')}" for name, count in grouped.items())
    log(STAGE, f"{said} grouped, interactions counted; searching neighbours by {', '.join([*contents, 'interests'])}")
    sources = [*contents, *files]
    ray.get([start_task(write_search, store, work, name, config.run.seed) for name in sources])
    rows = map_parts(config, store, Nearest, parts_of(store, "item"), [STAGE], arguments=(work, firsts, tuple(sources)))
    log(STAGE, "searched; writing the arrays of lists and the steps between interests")
    ray.get([start_task(write_counts, store, counts), *_lists(store, sources)])
    grains = len(chosen.interest_cosines)
    ray.get([start_task(write_shuffled, store, name, grains) for name in families if name not in sources])
    ray.get([start_task(write_lifts, store, name, period, grains) for name in families for period in PERIODS])
    facts = {STARTS: part_starts(store, "items"), "sources": [*sources, *COUNTED]}
    index = {"families": list(families), "fit_rows": counted_rows(config, store)._asdict()}
    joined = Output(grouped["num_phrases"], facts=grouped)
    return {"canonical_interests": joined, STAGE: Output(rows[STAGE], facts=facts), INDEX: Output(facts=index)}


def _lists(store: Store, sources: Sequence[str]) -> list[Any]:
    """Start to write the arrays of all sources' lists."""
    names = {source: f"{source}.neighbours" for source in sources}
    names |= {source_name(source, period): f"{period}.{source}" for period in PERIODS for source in COUNTED}
    return [start_task(write_source, store, source, name) for source, name in names.items()]


def run(config: Config, options: Options) -> dict[str, Any]:
    """Build the sources of candidates with Ray."""
    earlier, encoder = earlier_store(config), config.embeddings.encoder
    if earlier:
        check_same_choices(earlier, store_of(config), config.ranking, encoder)

    def build(store: Store, work: str) -> Mapping[str, Output]:
        start_ray(config)
        return build_sources(config, store, work)

    models: dict[str, ModelConfig] = {"embeddings.encoder": encoder}
    return run_stage(
        config,
        options,
        outputs=OUTPUTS,
        sections=["ranking", "embeddings"],
        models=models,
        files={"canonical_interests": earlier.uri("canonical_interests")} if earlier else {},
        inputs=["items", "histories", "interests", "interest_labels", "item_embeddings"],
        build=build,
    )


if __name__ == "__main__":
    main(run)
