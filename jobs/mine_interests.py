"""Ask every miner for the interests of every owner, skipping what the ledger has, and merge the answers."""

from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from digr import artifacts
from digr.artifacts import Store
from digr.config import Config
from digr.config.interests import ReplayMiner
from digr.interests import ledger
from digr.interests.prompts import Owner
from digr.interests.summary import add_outcomes, miner_table
from digr.models.endpoint import check_keys
from digr.tables import TABLES
from jobs.runtime.session import Options, main, say, start_ray
from jobs.runtime.stage import Made, run_stage

STAGE = "interests"


def run(config: Config, options: Options) -> dict[str, Any]:
    """Make the artifacts interests and interest_responses; the ledger of an earlier run is kept and completed."""
    files = {miner.name: miner.path for miner in config.interests.miners if isinstance(miner, ReplayMiner)}
    return run_stage(
        config,
        options,
        outputs=["interests", ledger.LEDGER],
        sections=["interests"],
        inputs=["items"] + ["histories"] * ("user" in config.interests.owners),
        files=files,
        keep=[ledger.LEDGER],
        build=lambda store, work: _build(config, store),
    )


def _build(config: Config, store: Store) -> dict[str, Made]:
    check_keys([*config.interests.miners, *([config.labels.judge] if "judge" in config.labels.labelers else [])])
    start_ray(config)
    from jobs.asking.asker import open_sink
    from jobs.asking.miners import ask_miners, check_yield

    sink, counted = open_sink(config.interests, store), []
    for owner in sorted(config.interests.owners):  # items before users, whose prompts show the interests of their items
        wanted, num_requests = ask_miners(config, store, owner, sink)
        counted.append(_merge(config, store, sink.uri, owner, wanted, num_requests))
    outcomes = add_outcomes(counted)
    made = _made(config, store, sink.uri, outcomes)
    check_yield(config.interests, sink.uri, outcomes, made["interests"].facts)
    return made


def _merge(config: Config, store: Store, uri: str, owner: Owner, wanted: Any, num_requests: int) -> pa.Table:
    """Merge the ledger's answers to the wanted requests owner by owner; returns how they ended."""
    import ray

    from jobs.asking import ledger_tasks, phrase_tasks

    ray.data.DataContext.get_current().execution_options.preserve_order = True
    responses = ledger_tasks.by_owner(uri, wanted, num_requests)
    filesystem, path = artifacts.filesystem_of(f"{store.uri('interests')}/{owner}")
    phrase_tasks.merge(config, responses).write_parquet(path, filesystem=filesystem)
    counted = ledger_tasks.map_tables(responses, ledger_tasks.outcomes).iter_batches(batch_size=None, batch_format="pyarrow")
    outcomes = add_outcomes([part for part in counted if isinstance(part, pa.Table)])
    if (found := pc.sum(outcomes["rows"]).as_py()) != num_requests:
        raise ValueError(f"{uri}: {num_requests} requests have {found} answers; run the job again")
    return outcomes


def _made(config: Config, store: Store, uri: str, outcomes: pa.Table) -> dict[str, Made]:
    table = artifacts.open_parts(store.uri("interests"), TABLES["interests"].schema)
    miners = [miner.name for miner in config.interests.miners]
    worth = miner_table(miners, outcomes, table.to_batches(columns=["miners"]))
    statuses = Counter[str]()
    for row in outcomes.to_pylist():
        statuses[row["status"]] += row["rows"]
    rows, owners = table.count_rows(), statuses.total() // len(miners)
    with_any = table.count_rows(filter=pc.field("rank") == 0)
    say(STAGE, f"{rows} interests of {with_any} of {owners} owners; responses {dict(statuses)}")
    failed = {f"response {status}": count for status, count in sorted(statuses.items()) if status != "ok"}
    broken = pc.sum(outcomes["broken_images"]).as_py()
    failed |= {"broken image, asked without it": broken} if broken else {}
    without = {"owner without interests": owners - with_any} if owners > with_any else {}
    facts = {"num_owners": owners, "num_owners_with_interests": with_any, "miners": worth}
    counted = {"num_requests": statuses.total(), "statuses": dict(sorted(statuses.items()))}
    in_ledger = artifacts.open_parts(uri).count_rows()
    return {"interests": Made(rows, without, facts), ledger.LEDGER: Made(in_ledger, failed, counted)}


if __name__ == "__main__":
    main(run)
