"""From a request to its reply: check it, have it decoded, and build the list with its reasons."""

from serve.checking import CheckedRequest, check_request
from serve.decoding import Job
from serve.listing import MadeList, list_items, make_list, next_cursor
from serve.problems import ProblemError
from serve.schemas import Problem, RecommendReply, RecommendRequest
from serve.service import Service


async def answer_request(service: Service, request: RecommendRequest) -> RecommendReply:
    """Answer one request.

    Raises:
        ProblemError: it cannot be answered.
    """
    checked = check_request(service, request)
    job = _job(service, checked) if checked.is_decoded else None
    found = await service.line.decode([job] if job else [])
    return _reply(service, checked, await make_list(checked, job, found[0] if found else None))


async def answer_requests(service: Service, requests: list[RecommendRequest]) -> list[RecommendReply | Problem]:
    """Answer several requests; the reply to one that cannot be answered is its problem.

    Raises:
        ProblemError: too many lists wait already, or the deadline passed.
    """
    outcomes: list[CheckedRequest | Problem] = []
    for request in requests:
        try:
            outcomes.append(check_request(service, request))
        except ProblemError as error:
            outcomes.append(error.problem)
    jobs = {
        row: _job(service, checked)
        for row, checked in enumerate(outcomes)
        if isinstance(checked, CheckedRequest) and checked.is_decoded
    }
    found = dict(zip(jobs, await service.line.decode(list(jobs.values())), strict=True))
    return [
        _reply(service, checked, await make_list(checked, jobs.get(row), found.get(row)))
        if isinstance(checked, CheckedRequest)
        else checked
        for row, checked in enumerate(outcomes)
    ]


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
    service.metrics.count_list(checked.model, made.source, bool(made.proven))
    items = list_items(run, made.places, made.scores, reasons)
    for name, told in (("sources", made.sources), ("contributions", made.contributions)):
        if told is not None:
            items = [item.model_copy(update={name: each}) for item, each in zip(items, told, strict=True)]
    return RecommendReply(
        items=items,
        source=made.source,
        model=checked.model,
        ignored_items=checked.ignored,
        proven=made.proven,
        cursor=next_cursor(checked, made.places, [item.item_id for item in items]) if checked.page else None,
    )
