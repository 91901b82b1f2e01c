"""Decode waiting requests in batches; their versions, beam widths and filters may differ."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64

from digr.policy.decoding.search import Recommendation, recommend
from digr.sids.filters import item_filter
from serve.contract.schemas import ItemBoost, Steer
from serve.items.catalogue import ServedRun
from serve.lists.ranking import rank, wishes_of
from serve.lists.reordering import Reordering, ServedList, reorder_policy, reordering_of

BATCH_SIZE = 32
"""Requests decoded together."""


@dataclass(eq=False, slots=True)
class Job:
    """One list to decode."""

    run: ServedRun
    """The version that checked the request; it stays in memory until its last job is done."""
    prompt: str
    beam_width: int
    allowed: Int64[np.ndarray, " W"] | None
    """Items that may be returned as bits of words, see `digr.sids.filters`; None for all."""
    deadline: float
    """Deadline on the clock of time.monotonic; after it nobody waits for the answer."""
    is_wanted: bool = True
    """Set to False by a request that went away."""
    history: Sequence[int] = ()
    """Places of the items behind the prompt, oldest first, for the ranker of the version."""
    k: int = 0
    """Items that the ranker lists."""
    explain: bool = False
    """Whether the ranker says what its scores are made of."""
    steer: Sequence[Steer] = ()
    """Wishes that steer the ranker's list."""
    boosts: Sequence[ItemBoost] = ()
    """Items of which the list shall have more, or less."""
    diversity: float = 0.0
    """How much items shall differ in their interests from those before them."""
    earlier: Sequence[int] = ()
    """Places of the items of earlier pages, for diversity; `allowed` leaves them out."""
    made: ServedList | None = None
    """The list in another order than the policy's: the ranker's, or one with boosts or diversity; set after decoding."""


def decode(jobs: Sequence[Job]) -> list[Recommendation | Exception]:
    """Decode jobs in batches of equal version, beam width and kind of filter; one result per job, in their order.

    The beam search is exact and does not depend on what else is in a batch. A failing batch fails its own jobs only, whatever
    the failure: it goes to those who wait.
    """
    found: dict[int, Recommendation | Exception] = {}
    groups: dict[tuple[int, int, bool], list[int]] = {}
    now = time.monotonic()
    for row, job in enumerate(jobs):
        if job.deadline <= now or not job.is_wanted:
            found[row] = TimeoutError()
        else:
            groups.setdefault((id(job.run), job.beam_width, job.allowed is not None), []).append(row)
    for rows in groups.values():
        try:
            found.update(zip(rows, _decode_alike([jobs[row] for row in rows]), strict=True))
            for row in rows:
                _make_list(jobs[row], found[row])
        except Exception as error:  # noqa: BLE001  it is raised where the request is answered
            found.update(dict.fromkeys(rows, error))
    return [found[row] for row in range(len(jobs))]


def _make_list(job: Job, found: Recommendation | Exception) -> None:
    """Set the list of a job, if it is not the policy's own."""
    run = job.run
    if not isinstance(found, Recommendation):
        return
    reordering = reordering_of(run, job.boosts, job.diversity, job.allowed, np.array(job.earlier, np.int64))
    boosted = _find_boosted(job, found, reordering) if reordering is not None else None
    if run.ranker is not None:
        newest = np.asarray(job.history[-run.max_history :], np.int64)
        job.made = rank(
            run.ranker,
            newest,
            found,
            job.k,
            job.allowed,
            explain=job.explain,
            wishes=wishes_of(run.ranker.ranker, job.steer),
            reordering=reordering,
            later=boosted.places.tolist() if boosted else (),
        )
    elif reordering is not None:
        job.made = reorder_policy(found, boosted, reordering, job.k, explain=job.explain)


def _find_boosted(job: Job, found: Recommendation, reordering: Reordering) -> Recommendation | None:
    """Find the policy's scores of boosted items that its list lacks; with a ranker only of those that its index lacks."""
    run, wanted = job.run, np.setdiff1d(reordering.boosted, found.places)
    if run.ranker is not None:
        wanted = wanted[run.ranker.item_index.row_of[wanted] < 0]
    if not len(wanted):
        return None
    mask = torch.zeros(1, run.trie.num_items, dtype=torch.bool, device=run.trie.codes.device)
    mask[0, torch.from_numpy(wanted).to(mask.device)] = True
    return recommend(run.policy, run.trie, [job.prompt], len(wanted), len(wanted), allowed=mask)[0]


def warm_up(run: ServedRun, beam_width: int, max_pending: int) -> None:
    """Decode a batch of 1, 2, 4, ... up to the largest that may come, so that the first request is no slower than the others."""
    history = run.popular[: run.max_history] if len(run.popular) else np.zeros(1, np.int64)
    prompt, size = run.prompt(history.tolist()), 1
    while size <= min(BATCH_SIZE, max_pending):
        found = recommend(run.policy, run.trie, [prompt] * size, min(beam_width, run.trie.num_items), beam_width)
        size *= 2
    if run.ranker is not None:
        rank(run.ranker, history, found[0], 1, None, explain=True)


def _decode_alike(jobs: Sequence[Job]) -> list[Recommendation]:
    run, width = jobs[0].run, jobs[0].beam_width
    words = [job.allowed for job in jobs if job.allowed is not None]
    allowed = item_filter(torch.from_numpy(np.stack(words)), run.trie.num_items) if words else None
    return recommend(run.policy, run.trie, [job.prompt for job in jobs], min(width, run.trie.num_items), width, allowed=allowed)
