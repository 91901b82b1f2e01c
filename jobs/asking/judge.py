"""Ask the judge about every interest, and write its verdicts for the label job."""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from digr import artifacts
from digr.artifacts import Store
from digr.config import Config
from digr.config.interests import OpenAIJudge, OpenAIMiner, VllmJudge, VllmMiner
from digr.images.showing import ImageRules, image_rules
from digr.interests import ledger
from digr.models.answers import Answer
from digr.models.endpoint import api_key
from digr.partitions import SOURCES, part_starts, parts_of, read_part
from digr.rewards.judge import JUDGE_VERSION, judge_form, judge_messages, judge_requests, needs_image, read_verdict
from digr.rewards.labeling import labelled_texts
from digr.tables import conform, flat_interests
from jobs.asking import asker
from jobs.asking.asker import ModelRun
from jobs.asking.ledger_tasks import Plan, answers_by_part, filter_requests, make_plan
from jobs.asking.votes import judge_folder
from jobs.runtime.datasets import map_tables, part_dataset, parts_in
from jobs.runtime.session import log
from jobs.runtime.stage import Output

STAGE = "interest_labels"
BATCH_OWNERS = 256
"""Owners of whose interests requests are made at once."""
Judge = VllmJudge | OpenAIJudge
NO_IMAGE = "judge: only miners with an image found it, none wrote a caption, and labels.judge.modality is text"


def ask_judge(config: Config, store: Store, work: str, items: Any) -> Output:
    """Ask for missing verdicts, append them to the ledger `interest_verdicts`, and write this run's verdicts for `read_votes`.

    Args:
        items: reference to the titles of all items; None if no interest is a user's.

    Returns:
        The output of the ledger; interests without a verdict count as rejected, by status.

    Raises:
        ValueError: as in `asker.follow_runs`; or the judge can be asked about none of the interests.
    """
    judge = config.labels.judge
    assert judge is not None, "the config checks it"
    sink = asker.open_sink(config.interests, store, ledger.VERDICTS)
    parts = part_dataset([part for owner in config.interests.owners for part in parts_of(store, owner)])
    requests = map_tables(parts, _requests, store=store, judge=judge, image_miners=_image_miners(config), items=items)
    plan = make_plan(requests, sink.uri, config.interests.retry_failed)
    num_done = plan.num_wanted - plan.num_missing
    log(STAGE, f"{judge.name}: {plan.num_wanted} interests, {num_done} judged, {plan.num_missing} to ask")
    if plan.num_missing:
        missing = map_tables(requests, filter_requests, numbers=plan.missing)
        prompts = map_tables(missing, judge_prompts, judge=judge, rules=image_rules(config, store))
        key = api_key(judge) if isinstance(judge, OpenAIJudge) else ""
        counts = asker.ask(judge, prompts, judge_form(judge), partial(verdict_rows, judge=judge), sink, key=key)
        made: Future[Plan] = Future()
        made.set_result(plan)
        asker.follow_runs(STAGE, [ModelRun(judge.name, counts, made)], sink, config.interests)
    statuses = Counter[str]()
    for owner in config.interests.owners:
        starts, folder = part_starts(store, SOURCES[owner]), judge_folder(work, owner)
        ended = answers_by_part(sink.uri, plan.wanted, owner, starts, folder, num_requests=plan.num_wanted, name=ledger.VERDICTS)
        for row in ended.to_pylist():
            statuses[row["status"]] += row["rows"]
    rejected = {f"judge: {status}": count for status, count in sorted(statuses.items()) if status != "ok"}
    unseen = _count_unseen(config, store) if judge.modality == "text" else 0
    rejected |= {NO_IMAGE: unseen} if unseen else {}
    return Output(artifacts.open_parts(sink.uri).count_rows(), rejected, {"statuses": dict(statuses)})


def _image_miners(config: Config) -> list[str]:
    models = [miner for miner in config.interests.miners if isinstance(miner, VllmMiner | OpenAIMiner)]
    return [miner.name for miner in models if miner.modality != "text"]


def _count_unseen(config: Config, store: Store) -> int:
    """Count the interests that a judge without images cannot be asked about.

    Raises:
        ValueError: the judge can be asked about none.
    """
    image_miners = _image_miners(config)
    if not image_miners:
        return 0
    total = unseen = 0
    for batch in artifacts.dataset_of(store, "interests").to_batches():
        flat = flat_interests(batch)
        total += len(flat)
        unseen += int((needs_image(flat, image_miners) & ~_has_caption(batch, flat)).sum())
    if total and unseen == total:
        raise ValueError('labels.judge: only miners with an image found interests; set labels.judge.modality = "both"')
    return unseen


def _requests(parts: pa.Table, store: Store, judge: Judge, image_miners: list[str], items: Any) -> Iterator[pa.Table]:
    """Make the requests of all interests that the judge can judge, with the image if only miners with images found them."""
    for part in parts_in(parts):
        titles, start, uris = None, 0, pa.array([], pa.string())
        if part.owner == "user":
            titles = ray.get(items)
        elif judge.modality != "text" and image_miners:
            uris = read_part(store, "items", part, ["image_uri"])["image_uri"].combine_chunks()
        for interests, texts in labelled_texts(store, part, titles, BATCH_OWNERS):
            flat = flat_interests(interests)
            of_image = needs_image(flat, image_miners)
            if judge.modality == "text":
                flat = flat.filter(pa.array(~of_image | _has_caption(interests, flat)))
                of_image = np.zeros(len(flat), bool)
            rows = flat["row"].to_pylist()
            images = [uris[start + row].as_py() if seen else None for row, seen in zip(rows, of_image, strict=True)]
            yield judge_requests(flat, [texts[row] for row in rows], images, judge.model_dump(mode="json"))
            start += len(interests)


def _has_caption(interests: pa.Table | pa.RecordBatch, flat: pa.Table) -> np.ndarray:
    """Return for each row of `flat_interests(interests)` whether its owner has a caption."""
    return np.asarray(interests["caption"].is_valid())[np.asarray(flat["row"])]


def judge_prompts(requests: pa.Table, judge: Judge, rules: ImageRules) -> pa.Table:
    """Add the judge's chats to requests; if the image is broken, the text alone is judged, as in mining."""
    form = judge_form(judge)

    def chat(row: dict, url: str | None) -> list[dict[str, Any]]:
        return judge_messages(row["owner"], row["interest"], row["text"], form, url)

    return asker.add_chats(requests, [bool(uri) for uri in requests["image_uri"].to_pylist()], chat, rules)


def verdict_rows(prompts: pa.Table, answers: Sequence[Answer], judge: Judge) -> pa.Table:
    """Return the rows of `interest_verdicts` that answers make."""
    read = [read_verdict(answer) for answer in answers]
    shown = ["both" if with_image else "text" for with_image in prompts["with_image"].to_pylist()]
    rows = asker.answer_rows(prompts, [answer for answer, _ in read], judge, JUDGE_VERSION, shown)
    rows = rows.append_column("interest", prompts["interest"])
    rows = rows.append_column("probability", pa.array([probability for _, probability in read], pa.float64()))
    return conform(ledger.VERDICTS, rows, "judge's answers")
