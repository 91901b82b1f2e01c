"""From a request to its reply: check it, have it decoded, and build the list with its reasons."""

import asyncio
import uuid
from functools import partial

import numpy as np

from serve.contract.problems import ProblemError
from serve.contract.schemas import Problem, RecommendReply, RecommendRequest
from serve.lists.checking import CheckedRequest, check_request
from serve.lists.decoding import Job
from serve.lists.listing import MadeList, list_items, make_list, next_cursor
from serve.live.impressions import Shown
from serve.service import Service


async def answer_request(service: Service, request: RecommendRequest) -> RecommendReply:
    """Answer one request.

    Raises:
        ProblemError: it cannot be answered.
    """
    await _catch_up(service, [request])
    checked = await _check_aside(service, request)
    job = _job(service, checked) if checked.is_decoded else None
    found = await service.line.decode([job] if job else [])
    reply = _reply(service, checked, await make_list(checked, job, found[0] if found else None))
    _offer_shadow(service, request, reply)
    return reply


async def answer_requests(service: Service, requests: list[RecommendRequest]) -> list[RecommendReply | Problem]:
    """Answer several requests; the reply to one that cannot be answered is its problem.

    Raises:
        ProblemError: too many lists wait already, or the deadline passed.
    """
    await _catch_up(service, requests)
    outcomes: list[CheckedRequest | Problem] = []
    for request in requests:
        try:
            outcomes.append(await _check_aside(service, request))
        except ProblemError as error:
            outcomes.append(error.problem)
    jobs = {
        row: _job(service, checked)
        for row, checked in enumerate(outcomes)
        if isinstance(checked, CheckedRequest) and checked.is_decoded
    }
    found = dict(zip(jobs, await service.line.decode(list(jobs.values())), strict=True))
    replies = [
        _reply(service, checked, await make_list(checked, jobs.get(row), found.get(row)))
        if isinstance(checked, CheckedRequest)
        else checked
        for row, checked in enumerate(outcomes)
    ]
    for request, reply in zip(requests, replies, strict=True):
        if isinstance(reply, RecommendReply):
            _offer_shadow(service, request, reply)
    return replies


async def _catch_up(service: Service, requests: list[RecommendRequest]) -> None:
    """Know all events of the users that were acknowledged before, by any replica."""
    if service.events and any(request.user_id is not None for request in requests):
        await service.events.catch_up()


async def _check_aside(service: Service, request: RecommendRequest) -> CheckedRequest:
    """Check a request; in another thread if it has filters or a cursor, which look at every item of the catalogue."""
    if request.allow is None and request.deny is None and not request.cursor:
        return check_request(service, request)
    return await asyncio.to_thread(check_request, service, request)


def _offer_shadow(service: Service, request: RecommendRequest, reply: RecommendReply) -> None:
    """Have the shadow answer too, if the request names no version and falls into its share."""
    shadow = service.shadow
    if shadow is None or request.model is not None or reply.model == shadow.model:
        return
    if int(reply.recommendation_id[:8], 16) < shadow.share * 2**32:
        service.shadows.offer(partial(_answer_shadow, service, request, shadow.model, reply.recommendation_id))


async def _answer_shadow(service: Service, request: RecommendRequest, model: str, recommendation_id: str) -> None:
    checked = await _check_aside(service, request.model_copy(update={"model": model}))
    checked = checked._replace(shadow_of=recommendation_id)
    job = _job(service, checked) if checked.is_decoded else None
    found = await service.line.decode_when_idle(job) if job else None
    _reply(service, checked, await make_list(checked, job, found))


def _job(service: Service, checked: CheckedRequest) -> Job:
    run, request = checked.run, checked.request
    prompt = run.prompt(checked.places, checked.interests)
    ranking = {"history": checked.places, "k": request.k, "explain": request.explain}
    ranking |= {"steer": [wish for wish in request.steer if wish.weight]}
    ranking |= {"boosts": request.boosts, "diversity": request.diversity, "earlier": checked.earlier}
    return service.line.job(run, prompt, checked.beam_width, checked.allowed, **ranking)


def _reply(service: Service, checked: CheckedRequest, made: MadeList) -> RecommendReply:
    run, explain = checked.run, checked.request.explain
    reasons = run.explain(checked.places, made.places, checked.interests) if explain else [[]] * len(made.places)
    if checked.shadow_of is None:
        service.metrics.count_list(checked.model, made.source, bool(made.proven))
    items = list_items(run, made.places, made.scores, reasons)
    for name, told in (("sources", made.sources), ("contributions", made.contributions)):
        if told is not None:
            items = [item.model_copy(update={name: each}) for item, each in zip(items, told, strict=True)]
    reply = RecommendReply(
        items=items,
        source=made.source,
        model=checked.model,
        ignored_items=checked.ignored,
        recommendation_id=checked.shadow_of or uuid.uuid4().hex,
        experiment=checked.arm,
        proven=made.proven,
        cursor=next_cursor(checked, made, [item.item_id for item in items]) if checked.page else None,
    )
    _log(service, checked, reply, np.asarray(made.places).tolist())
    return reply


def _log(service: Service, checked: CheckedRequest, reply: RecommendReply, listed: list[int]) -> None:
    if service.impressions is not None:
        shown = Shown(
            run=checked.run,
            reply=reply,
            list_source=reply.source,
            user_id=checked.request.user_id,
            places=checked.places,
            listed=listed,
            interests=checked.interests,
            has_reasons=checked.request.explain,
            arm=checked.arm,
            is_shadow=checked.shadow_of is not None,
        )
        service.impressions.add(shown)
