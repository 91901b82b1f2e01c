"""Routes of lists: recommendations, similar items, and completions in OpenAI's form."""

from fastapi import Request

from serve.contract.completion_schemas import CompletionReply, CompletionRequest
from serve.contract.schemas import RecommendBatch, RecommendBatchReply, RecommendReply, RecommendRequest
from serve.contract.similar_schemas import SimilarReply, SimilarRequest
from serve.items.changing import check_not_deleted
from serve.lists.completions import complete
from serve.lists.recommending import answer_request, answer_requests
from serve.lists.similar import answer_similar
from serve.routes.shared import access, charge, new_router, service_of

router = new_router()


@router.post("/recommend", include_in_schema=False)
@router.post("/v1/recommend")
@access("read")
async def recommend(request: Request, body: RecommendRequest) -> RecommendReply:
    """List the k items most likely to come next, best first, with the interests that speak for each."""
    return await answer_request(service_of(request), body)


@router.post("/v1/recommend/batch")
@access("read")
async def recommend_batch(request: Request, body: RecommendBatch) -> RecommendBatchReply:
    """Answer several requests; each has its own reply or problem."""
    charge(len(body.requests))
    return RecommendBatchReply(replies=await answer_requests(service_of(request), body.requests))


@router.post("/v1/similar")
@access("read")
async def similar(request: Request, body: SimilarRequest) -> SimilarReply:
    """List the neighbours of an item by texts, images, interests and counts, with the interests that they share."""
    service = service_of(request)
    check_not_deleted(service, body.item_id)
    return await answer_similar(service, body)


@router.post("/v1/completions")
@access("read")
async def post_completions(request: Request, body: CompletionRequest) -> CompletionReply:
    """Complete a history of semantic IDs with semantic IDs of next items, in OpenAI's form."""
    charge(1 if isinstance(body.prompt, str) else len(body.prompt))
    return await complete(service_of(request), body)
