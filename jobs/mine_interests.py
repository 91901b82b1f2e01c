"""Ask every miner for the interests of every owner, except requests that are in the ledger, and merge the answers."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from digr import artifacts
from digr.artifacts import Store
from digr.config import Config
from digr.config.interests import ReplayMiner, VllmMiner
from digr.config.models import ModelConfig
from digr.interests import ledger
from digr.interests.prompts import Owner
from digr.interests.summary import add_outcomes, miner_table
from digr.models.endpoint import check_keys
from digr.partitions import SOURCES, part_starts
from digr.tables import TABLES, flat_interests
from jobs.runtime.command_line import main
from jobs.runtime.session import Options, log, start_ray
from jobs.runtime.stage import Output, run_stage

STAGE = "interests"


def run(config: Config, options: Options) -> dict[str, Any]:
    """Build `interests` and `interest_responses`; the ledger of an earlier run is kept and completed."""
    files = {miner.name: miner.recording for miner in config.interests.miners if isinstance(miner, ReplayMiner)}
    engines = [miner for miner in config.interests.miners if isinstance(miner, VllmMiner)]
    models = {f"interests.miners {miner.name}": ModelConfig(name=miner.model) for miner in engines}
    return run_stage(
        config,
        options,
        outputs=["interests", ledger.LEDGER],
        sections=["interests"],
        inputs=["items"] + ["histories"] * ("user" in config.interests.owners),
        files=files,
        models=models | {"interests.encoder": config.interests.encoder},
        keep=[ledger.LEDGER],
        build=lambda store, work: _build(config, store, work),
    )


def _build(config: Config, store: Store, work: str) -> dict[str, Output]:
    check_keys([*config.interests.miners, *([config.labels.judge] if "judge" in config.labels.labelers else [])])
    start_ray(config)
    from jobs.asking.asker import open_sink
    from jobs.asking.miners import ask_miners, check_yield

    sink, counted = open_sink(config.interests, store), []
    for owner in sorted(config.interests.owners):  # items before users, whose prompts show the interests of their items
        wanted, num_requests = ask_miners(config, store, owner, sink)
        counted.append(_merge(config, store, sink.uri, owner, wanted, num_requests=num_requests, folder=f"{work}/{owner}"))
    outcomes = add_outcomes(counted)
    made = _made(config, store, sink.uri, outcomes)
    check_yield(config.interests, sink.uri, outcomes, made["interests"].facts)
    return made


def _merge(config: Config, store: Store, uri: str, owner: Owner, wanted: Any, *, num_requests: int, folder: str) -> pa.Table:
    """Merge the ledger's answers to the wanted requests owner by owner; return counts by miner and status."""
    from jobs.asking import ledger_tasks, phrase_tasks

    outcomes = ledger_tasks.answers_by_part(
        uri, wanted, owner, part_starts(store, SOURCES[owner]), folder, num_requests=num_requests
    )
    if (found := pc.sum(outcomes["rows"]).as_py()) != num_requests:
        raise ValueError(f"{uri}: {num_requests} requests have {found} answers; run the job again")
    phrase_tasks.merge(config, store, owner, folder)
    return outcomes


def _made(config: Config, store: Store, uri: str, outcomes: pa.Table) -> dict[str, Output]:
    counted = Counter[str]()

    def flat() -> Iterator[pa.Table]:
        for batch in artifacts.open_parts(store.uri("interests"), TABLES["interests"].schema).to_batches():
            interests = flat_interests(batch)
            counted["owners"] += len(batch)
            counted["with_any"] += pc.sum(pc.equal(interests["rank"], 0)).as_py() or 0
            counted["interests"] += len(interests)
            yield interests

    worth = miner_table([miner.name for miner in config.interests.miners], outcomes, flat())
    statuses = Counter[str]()
    for row in outcomes.to_pylist():
        statuses[row["status"]] += row["rows"]
    owners, with_any = counted["owners"], counted["with_any"]
    log(STAGE, f"{counted['interests']} interests of {with_any} of {owners} owners; responses {dict(statuses)}")
    failed = {f"response {status}": count for status, count in sorted(statuses.items()) if status != "ok"}
    broken = pc.sum(outcomes["broken_images"]).as_py()
    failed |= {"broken image, asked without it": broken} if broken else {}
    without = {"owner without interests": owners - with_any} if owners > with_any else {}
    facts = {"num_interests": counted["interests"], "num_owners": owners, "num_owners_with_interests": with_any, "miners": worth}
    ended = {"num_requests": statuses.total(), "statuses": dict(sorted(statuses.items()))}
    in_ledger = artifacts.open_parts(uri).count_rows()
    return {"interests": Output(owners, without, facts), ledger.LEDGER: Output(in_ledger, failed, ended)}


if __name__ == "__main__":
    main(run)
