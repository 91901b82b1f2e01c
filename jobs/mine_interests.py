"""Ask every miner for the interests of every owner, skipping what the ledger has, and merge the answers."""

from collections import Counter
from typing import Any

import pyarrow.compute as pc

from digr import artifacts
from digr.artifacts import Store
from digr.config import Config
from digr.config.interests import ReplayMiner
from digr.interests import ledger
from digr.tables import TABLES
from jobs.runtime import Options, main, say, start_ray
from jobs.stage import Made, run_stage

STAGE = "interests"
SORT_ROWS = 20_000
"""Responses of one sorted block, about 20 MB."""


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
    start_ray(config)
    from jobs import ledger_tasks
    from jobs.miners import answer, requests_of

    uri = ledger.open_ledger(store)
    wanted, num_requests = [], 0
    for owner in config.interests.owners:
        for miner in config.interests.miners:
            requests = requests_of(config, store, owner, miner)
            asked, missing, num_asked, num_missing = ledger_tasks.plan(requests, uri, config.interests.retry_failed)
            say(STAGE, f"{miner.name}: {num_asked} {owner} requests, {num_asked - num_missing} answered, {num_missing} to ask")
            if num_missing:
                chosen = ledger_tasks.map_tables(requests, ledger_tasks.only, numbers=missing)
                answers = answer(config, owner, miner, chosen, requests, num_asked)
                ledger_tasks.write_answers(answers, uri, miner.name, num_missing)
            wanted.append(asked)
            num_requests += num_asked
    return _merge(config, store, uri, ledger_tasks.join.remote(*wanted), num_requests)


def _merge(config: Config, store: Store, uri: str, wanted: Any, num_requests: int) -> dict[str, Made]:
    """Merge the ledger's answers to the wanted requests owner by owner, and count how they ended."""
    import ray

    from jobs import ledger_tasks, phrase_tasks

    ray.data.DataContext.get_current().execution_options.preserve_order = True
    filesystem, _ = artifacts.filesystem_of(uri)
    responses = ray.data.read_parquet(artifacts.list_parts(uri), filesystem=filesystem)
    responses = ledger_tasks.map_tables(responses, ledger_tasks.only, numbers=wanted)
    # rows of one owner are in one block after a sort, so a worker that takes whole blocks sees whole owners
    blocks = max(1, num_requests // SORT_ROWS)
    responses = responses.repartition(blocks).sort(["owner", "owner_id"]).materialize()
    filesystem, path = artifacts.filesystem_of(store.uri("interests"))
    phrase_tasks.merge(config, responses).write_parquet(path, filesystem=filesystem)
    outcomes = Counter[str]()
    for batch in ledger_tasks.map_tables(responses, ledger_tasks.statuses).iter_batches():
        for outcome, rows in zip(batch["outcome"].tolist(), batch["rows"].tolist(), strict=True):
            outcomes[outcome] += rows
    broken = outcomes.pop("broken image", 0)
    if sum(outcomes.values()) != num_requests:
        raise ValueError(f"{uri}: {num_requests} requests have {sum(outcomes.values())} answers; run the job again")
    return _made(config, store, uri, outcomes, broken)


def _made(config: Config, store: Store, uri: str, statuses: Counter[str], broken_images: int) -> dict[str, Made]:
    table = artifacts.open_parts(store.uri("interests"), TABLES["interests"].schema)
    rows, with_any = table.count_rows(), table.count_rows(filter=pc.field("rank") == 0)
    owners = sum(statuses.values()) // len(config.interests.miners)
    say(STAGE, f"{rows} interests of {with_any} of {owners} owners; responses {dict(statuses)}; {broken_images} broken images")
    failed = {f"response {status}": count for status, count in sorted(statuses.items()) if status != "ok"}
    broken = {"broken image, asked without it": broken_images} if broken_images else {}
    without = {"owner without interests": owners - with_any} if owners > with_any else {}
    facts = {"num_owners": owners, "num_owners_with_interests": with_any}
    counted = {"num_requests": sum(statuses.values()), "statuses": dict(sorted(statuses.items()))}
    return {
        "interests": Made(rows, without, facts),
        ledger.LEDGER: Made(artifacts.open_parts(uri).count_rows(), failed | broken, counted),
    }


if __name__ == "__main__":
    main(run)
