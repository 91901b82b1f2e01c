"""Run the configured miners: make their requests, find those that the ledger lacks, and answer them."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import pyarrow as pa
import ray
from ray.data import Dataset

from digr import artifacts
from digr.artifacts import Store
from digr.config import Config
from digr.config.interests import ExtractiveMiner, InterestsConfig, Miner, OpenAIMiner, ReplayMiner, VllmMiner
from digr.config.models import ModelConfig
from digr.images.showing import ImageRules, image_rules
from digr.interests import ledger
from digr.interests.item_lines import read_item_lines
from digr.interests.prompts import (
    RESPONSE_SCHEMA,
    Owner,
    chat_messages,
    item_requests,
    prompt_modality,
    prompt_version,
    request_key,
    user_requests,
)
from digr.interests.replay import open_recording, replay
from digr.models.answers import Answer, AnswerForm
from digr.models.endpoint import api_key
from digr.models.loading import weights_digest
from digr.partitions import iter_users, parts_of
from jobs.asking import asker, phrase_tasks
from jobs.asking.asker import ModelRun, Sink
from jobs.asking.ledger_tasks import Plan, filter_requests, join_requests, make_plan
from jobs.runtime.datasets import READ_ROWS, map_tables, part_dataset, parts_in, read_parts
from jobs.runtime.session import log

STAGE = "interests"
BLOCK_ROWS = 1024
"""Requests per batch of miners without a language model."""
FORM = AnswerForm("interests", RESPONSE_SCHEMA)


def item_lines_of(config: Config, store: Store) -> Any:
    """Return a reference to the lines of all items for users' requests, which a task reads once for all miners of a job."""
    task: Any = ray.remote(read_item_lines)
    return task.remote(store, config.interests.max_text_chars, with_interests="item" in config.interests.owners)


def what_else_decides(config: Config, owner: Owner, miner: Miner) -> str:
    """Return everything outside the miner's section that decides an answer: a recording's content, weights, sizes of images."""
    chosen = config.interests
    decisive = [artifacts.digest_of_files(miner.recording)] if isinstance(miner, ReplayMiner) else []
    if isinstance(miner, ExtractiveMiner):
        decisive = [chosen.encoder.model_dump_json(), weights_digest(chosen.encoder, "interests.encoder")]
        decisive.append(str(chosen.max_interests))
    if isinstance(miner, VllmMiner):
        decisive.append(weights_digest(ModelConfig(name=miner.model), f"interests.miners {miner.name}"))
    if prompt_modality(owner, getattr(miner, "modality", "text")) != "text":
        decisive.append(f"images up to {chosen.max_image_side} pixels, {chosen.max_image_bytes} bytes")
    return " ".join(decisive)


def requests_of(config: Config, store: Store, owner: Owner, miner: Miner, items: Any = None) -> Dataset:
    """Return the requests of one miner for all owners of a kind, in ascending order of their ids; nothing is read yet.

    Args:
        items: from `item_lines_of`, for users.
    """
    key = request_key(owner, miner.model_dump(mode="json"), what_else_decides(config, owner, miner))
    chars = config.interests.max_text_chars
    if owner == "item":
        modality = getattr(miner, "modality", "text")
        blocks = read_parts(store.uri("items"))
        if not isinstance(miner, VllmMiner | OpenAIMiner):  # a model is slower than one worker for each part of the items
            blocks = blocks.repartition(target_num_rows_per_block=BLOCK_ROWS)
        return map_tables(blocks, item_requests, key=key, modality=modality, max_text_chars=chars)
    assert items is not None, "a user's request shows items"
    users = map_tables(
        part_dataset(parts_of(store, "user")), _user_batch, store=store, items=items, key=key, max_text_chars=chars
    )
    return users.repartition(target_num_rows_per_block=BLOCK_ROWS)


def _user_batch(parts: pa.Table, store: Store, items: Any, key: str, max_text_chars: int) -> Iterator[pa.Table]:
    for part in parts_in(parts):
        for histories in iter_users(store, "histories", part, READ_ROWS, ["user_id", "split", "history"]):
            yield user_requests(histories, ray.get(items), key, max_text_chars)


def ask_miners(config: Config, store: Store, owner: Owner, sink: Sink) -> tuple[Any, int]:
    """Ask each miner the requests that the ledger lacks; return a reference to the digests of all requests, and their number.

    Raises:
        ValueError: as in `asker.follow_runs`.
    """

    def plan(miner: Miner, requests: Any) -> Plan:
        found = make_plan(requests, sink.uri, config.interests.retry_failed)
        num_done = found.num_wanted - found.num_missing
        log(STAGE, f"{miner.name}: {found.num_wanted} {owner} requests, {num_done} answered, {found.num_missing} to ask")
        return found

    ray.data.DataContext.get_current().execution_options.preserve_order = False  # a slow batch must not delay others
    items = item_lines_of(config, store) if owner == "user" else None
    ask = partial(_ask_model, owner, sink=sink, rules=image_rules(config, store))
    plans: list[Future[Plan]] = []
    nodes = [node for node in ray.nodes() if node["Alive"]]
    num_gpus = sum(int(node["Resources"].get("GPU", 0)) for node in nodes)
    with ThreadPoolExecutor(1) as background:
        for miners in side_by_side(config.interests.miners, num_gpus, len(nodes)):
            runs = []
            for miner in miners:
                requests = requests_of(config, store, owner, miner, items)
                made = background.submit(plan, miner, requests)
                plans.append(made)
                if isinstance(miner, VllmMiner) and not artifacts.list_parts(sink.uri):
                    # an empty ledger lacks all requests, so the engine can start while the plan is made
                    runs.append(ModelRun(miner.name, ask(miner, requests), made))
                elif (found := made.result()).num_missing:
                    missing = map_tables(requests, filter_requests, numbers=found.missing)
                    if isinstance(miner, VllmMiner | OpenAIMiner):
                        counts = ask(miner, missing)
                    else:
                        counts = _answer(config, owner, miner, missing, sink, everything=requests, num_owners=found.num_wanted)
                    runs.append(ModelRun(miner.name, counts, made))
            if runs:
                asker.follow_runs(STAGE, runs, sink, config.interests)
    every = [one.result() for one in plans]
    return join_requests.remote(*(one.wanted for one in every)), sum(one.num_wanted for one in every)


def side_by_side(miners: Sequence[Miner], num_gpus: int, num_nodes: int) -> list[list[Miner]]:
    """Return groups of miners that run at the same time, as many as the cluster has resources for.

    Miners without a model come first, one after another. Endpoints need no resources. An engine needs the GPUs of its tensor
    parallelism, or on CPU a whole node; an engine that does not fit at present is a group of its own and waits.
    """
    groups: list[list[Miner]] = [[miner] for miner in miners if not isinstance(miner, VllmMiner | OpenAIMiner)]
    asked: list[list[Miner]] = [[miner for miner in miners if isinstance(miner, OpenAIMiner)]]
    used = [(0, 0)]
    for miner in miners:
        if not isinstance(miner, VllmMiner):
            continue
        gpus, nodes = (0, 1) if miner.on_cpu else (miner.tensor_parallel, 0)
        fits = [place for place, (g, n) in enumerate(used) if g + gpus <= num_gpus and n + nodes <= num_nodes]
        if not fits and used[0] != (0, 0):
            asked, used, fits = [*asked, []], [*used, (0, 0)], [len(used)]
        place = fits[0] if fits else 0
        asked[place].append(miner)
        used[place] = (used[place][0] + gpus, used[place][1] + nodes)
    return groups + [group for group in asked if group]


def check_yield(interests: InterestsConfig, uri: str, outcomes: pa.Table, facts: Mapping[str, Any]) -> None:
    """Check that enough owners got an interest, from all miners together and from each language model.

    Args:
        outcomes: rows by miner and status. Truncated answers count as answers, because their complete interests are used.
        facts: facts of the artifact `interests`.

    Raises:
        ValueError: too few owners got an interest; names the miner and shows three of its answers.
    """
    asked, yielded = dict.fromkeys((miner.name for miner in interests.miners), 0), Counter[str]()
    for row in outcomes.to_pylist():
        asked[row["miner"]] += row["rows"]
        yielded[row["miner"]] += row["rows"] * (row["status"] in ("ok", "truncated"))
    rate, models = interests.min_yield_rate, (VllmMiner, OpenAIMiner)
    poor = [one.name for one in interests.miners if isinstance(one, models) and yielded[one.name] < rate * asked[one.name]]
    found = [f"{yielded[name]} of {asked[name]} answers of miner {name} list an interest" for name in poor]
    num_owners, num_with = facts["num_owners"], facts["num_owners_with_interests"]
    if num_with < rate * num_owners:
        poor, found = poor or list(asked), [f"{num_with} of {num_owners} owners got an interest", *found]
    if found:
        shown = "\n  ".join(line for name in poor for line in ledger.example_answers(uri, name, failed=False))
        raise ValueError(
            f"interests: {'; '.join(found)}, fewer than interests.min_yield_rate = {rate} requires. Answers:\n  {shown}\n"
            f"Change the model or its max_tokens, or lower the rate, and run the job again"
        )


def _answer(
    config: Config,
    owner: Owner,
    miner: ReplayMiner | ExtractiveMiner,
    missing: Dataset,
    sink: Sink,
    *,
    everything: Dataset,
    num_owners: int,
) -> Dataset:
    """Write the responses of a miner without a language model to the missing requests, batch by batch; return their counts.

    Args:
        everything: all requests of the miner, `num_owners` of them; key phrases are counted over all owners.
    """
    if isinstance(miner, ReplayMiner):
        open_recording(miner.recording)
        raw = map_tables(missing, replay, path=miner.recording, miner=miner.name, recorded_miner=miner.recorded_miner)
    else:
        raw = phrase_tasks.extract(config, owner, miner, missing, everything=everything, num_owners=num_owners)
    return map_tables(raw, _write_raw, sink=sink)


def _write_raw(raw: pa.Table, sink: Sink) -> pa.Table:
    return asker.write_rows(ledger.finish_responses(raw), sink)


def _ask_model(owner: Owner, miner: VllmMiner | OpenAIMiner, missing: Dataset, sink: Sink, rules: ImageRules) -> Dataset:
    if miner.modality != "text":  # images are fetched in small batches
        missing = missing.repartition(target_num_rows_per_block=64)
    prompts = map_tables(missing, miner_prompts, miner=miner, rules=rules)
    key = api_key(miner) if isinstance(miner, OpenAIMiner) else ""
    return asker.ask(miner, prompts, FORM, partial(_response_rows, owner=owner, miner=miner), sink, key=key)


def miner_prompts(requests: pa.Table, miner: VllmMiner | OpenAIMiner, rules: ImageRules) -> pa.Table:
    """Add a miner's chats to requests."""

    def chat(row: dict, url: str | None) -> list[dict[str, Any]]:
        return chat_messages(row["owner"], miner.modality, row["text"], url)

    sees = [prompt_modality(owner, miner.modality) != "text" for owner in requests["owner"].to_pylist()]
    return asker.add_chats(requests, sees, chat, rules)


def _response_rows(prompts: pa.Table, answers: Sequence[Answer], owner: Owner, miner: VllmMiner | OpenAIMiner) -> pa.Table:
    shown = [miner.modality if with_image else "text" for with_image in prompts["with_image"].to_pylist()]
    raw = asker.answer_rows(prompts, answers, miner, prompt_version(owner, miner.modality), shown)
    return ledger.finish_responses(raw)
