"""Ask the judge about every interest, and hand its verdicts to the label job."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from digr import artifacts
from digr.artifacts import Store
from digr.config import Config
from digr.config.interests import OpenAIJudge, OpenAIMiner, VllmJudge, VllmMiner
from digr.interests import ledger
from digr.interests.merging import latest_responses
from digr.models.answers import Answer
from digr.models.endpoint import api_key
from digr.rewards.judge import JUDGE_VERSION, JUDGED, judge_form, judge_messages, judge_requests, needs_image, read_verdict
from digr.rewards.labeling import owner_texts
from digr.tables import TABLES, conform
from jobs.asking import asker
from jobs.asking.asker import ModelRun
from jobs.asking.ledger_tasks import Plan, filter_requests, make_plan, map_tables
from jobs.runtime.parts import read_parts
from jobs.runtime.session import say
from jobs.runtime.stage import Made

STAGE = "interest_labels"
BLOCK_ROWS = 256
"""Interests whose requests are made at once."""
Judge = VllmJudge | OpenAIJudge
NO_IMAGE = "judge: only miners with an image found it, and labels.judge.modality is text"


def ask_judge(config: Config, store: Store, work: str) -> Made:
    """Ask for the verdicts that the ledger `interest_verdicts` lacks, and write those of this run's interests to `{work}/judge`.

    Returns:
        What the ledger holds; interests without a verdict are rejected, by status.

    Raises:
        ValueError: as `asker.follow`, or the judge can be shown none of the interests.
    """
    judge = config.labels.judge
    assert judge is not None, "the config checks it"
    sink = asker.open_sink(config.interests, store, ledger.VERDICTS)
    blocks = read_parts(store.uri("interests")).repartition(target_num_rows_per_block=BLOCK_ROWS)
    requests = map_tables(blocks, _requests, store=store, judge=judge, image_miners=_image_miners(config))
    plan = make_plan(requests, sink.uri, config.interests.retry_failed)
    num_done = plan.num_wanted - plan.num_missing
    say(STAGE, f"{judge.name}: {plan.num_wanted} interests, {num_done} judged, {plan.num_missing} to ask")
    if plan.num_missing:
        limits = {"max_bytes": config.interests.max_image_bytes, "max_side": config.interests.max_image_side}
        missing = map_tables(requests, filter_requests, numbers=plan.missing)
        prompts = map_tables(missing, judge_prompts, judge=judge, limits=limits)
        key = api_key(judge) if isinstance(judge, OpenAIJudge) else ""
        counts = asker.ask(judge, prompts, judge_form(judge), partial(verdict_rows, judge=judge), sink, key)
        made: Future[Plan] = Future()
        made.set_result(plan)
        asker.follow(STAGE, [ModelRun(judge.name, counts, made)], sink, config.interests)
    statuses: dict[str, int] = ray.get(ray.remote(hand_over).remote(sink.uri, plan.wanted, f"{work}/judge"))
    rejected = {f"judge: {status}": count for status, count in sorted(statuses.items()) if status != "ok"}
    unseen = _count_unseen(config, store) if judge.modality == "text" else 0
    rejected |= {NO_IMAGE: unseen} if unseen else {}
    return Made(artifacts.open_parts(sink.uri).count_rows(), rejected, {"statuses": statuses})


def _image_miners(config: Config) -> list[str]:
    models = [miner for miner in config.interests.miners if isinstance(miner, VllmMiner | OpenAIMiner)]
    return [miner.name for miner in models if miner.modality != "text"]


def _count_unseen(config: Config, store: Store) -> int:
    """Count the interests that a judge without images is not asked about.

    Raises:
        ValueError: these are all.
    """
    image_miners = _image_miners(config)
    if not image_miners:
        return 0
    total = unseen = 0
    for batch in artifacts.iter_table(store, "interests", ["owner", "miners"]):
        total += len(batch)
        unseen += int(needs_image(pa.table(batch), image_miners).sum())
    if total and unseen == total:
        raise ValueError('labels.judge: only miners with an image found interests; set labels.judge.modality = "both"')
    return unseen


def _requests(interests: pa.Table, store: Store, judge: Judge, image_miners: list[str]) -> pa.Table:
    """Make the request of every interest that the judge can be shown, with the image where its miners were shown one alone."""
    of_image = needs_image(interests, image_miners)
    if judge.modality == "text":
        interests, of_image = interests.filter(pa.array(~of_image)), np.zeros(int((~of_image).sum()), bool)
    images: list[str | None] = [None] * len(interests)
    if of_image.any():
        items = artifacts.read_table(store, "items", ["item_id", "image_uri"], item_id=interests["owner_id"].to_pylist())
        uris = dict(zip(items["item_id"].to_pylist(), items["image_uri"].to_pylist(), strict=True))
        images = [uris[owner] if seen else None for owner, seen in zip(interests["owner_id"].to_pylist(), of_image, strict=True)]
    return judge_requests(interests, owner_texts(store, interests), images, judge.model_dump(mode="json"))


def judge_prompts(requests: pa.Table, judge: Judge, limits: dict[str, int]) -> pa.Table:
    """Add to requests the chats that the judge gets; one whose image is broken is judged by its text, as it was mined."""
    form = judge_form(judge)

    def chat(row: dict, url: str | None) -> list[dict[str, Any]]:
        return judge_messages(row["owner"], row["interest"], row["text"], form, url)

    return asker.add_chats(requests, [bool(uri) for uri in requests["image_uri"].to_pylist()], chat, limits)


def verdict_rows(prompts: pa.Table, answers: Sequence[Answer], judge: Judge) -> pa.Table:
    """Return the rows of `interest_verdicts` that answers make."""
    read = [read_verdict(answer) for answer in answers]
    shown = ["both" if with_image else "text" for with_image in prompts["with_image"].to_pylist()]
    rows = asker.answer_rows(prompts, [answer for answer, _ in read], judge, JUDGE_VERSION, shown)
    rows = rows.append_column("interest", prompts["interest"])
    rows = rows.append_column("probability", pa.array([probability for _, probability in read], pa.float64()))
    return conform(ledger.VERDICTS, rows, "judge's answers")


def hand_over(uri: str, wanted: np.ndarray, folder: str) -> dict[str, int]:
    """Write the verdicts of the wanted requests as rows of `JUDGED`, by owner; returns the number of requests by status."""
    found = artifacts.open_parts(uri, TABLES[ledger.VERDICTS].schema)
    columns = ["request_digest", "status", *JUDGED.names]
    batches = [batch.filter(ledger.contains(wanted, batch["request_digest"])) for batch in found.to_batches(columns=columns)]
    rows = latest_responses(pa.Table.from_batches(batches, pa.schema([found.schema.field(name) for name in columns])))
    given = rows.filter(pc.is_valid(rows["probability"])).select(JUDGED.names).cast(JUDGED)
    given = given.sort_by([("owner", "ascending"), ("owner_id", "ascending")])
    artifacts.remove(folder)
    filesystem, path = artifacts.filesystem_of(folder)
    filesystem.create_dir(path, recursive=True)
    pq.write_table(given, f"{path}/part-0.parquet", filesystem=filesystem)
    return dict(Counter(rows["status"].to_pylist()))
