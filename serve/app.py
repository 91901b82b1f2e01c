"""The Ray Serve application: `serve run serve.app:app run_dir=runs/quickstart`, or `serve deploy serve/config.yaml`."""

import asyncio
import os
from pathlib import Path

import pyarrow as pa
import torch
from fastapi import FastAPI
from pydantic import Field
from ray import serve

from digr.artifacts import is_remote
from digr.policy.beam import Recommendation
from serve.catalogue import load_run
from serve.problems import PROBLEMS, ProblemError, add_problem_handlers, k_too_large, unknown_items
from serve.schemas import Contract, Health, RecommendedItem, RecommendReply, RecommendRequest

BATCH_SIZE, BATCH_WAIT_SECONDS = 32, 0.005
"""Requests decoded together, and how long the first of them waits for others."""

api = FastAPI(title="DIGR", description="Generative recommendation with semantic IDs.", version="1")
add_problem_handlers(api)


class AppArguments(Contract):
    """Arguments of the application, from the command line or serve/config.yaml."""

    run_dir: str = Field(default_factory=lambda: os.environ.get("DIGR_RUN_DIR", ""))
    """Folder of a trained run, local or s3://; the environment variable DIGR_RUN_DIR if not given."""
    beam_width: int = Field(50, ge=1, le=1000)
    """Beams kept, and the largest k a request may ask for."""
    num_threads: int = Field(0, ge=0)
    """PyTorch threads of a replica on CPU; 0 leaves PyTorch's own choice."""


@serve.deployment(max_ongoing_requests=128, ray_actor_options={"num_cpus": 1})
@serve.ingress(api)
class Recommender:
    """Answer requests from one trained run."""

    def __init__(self, arguments: AppArguments) -> None:
        if arguments.num_threads:
            torch.set_num_threads(arguments.num_threads)
        self.beam_width = arguments.beam_width
        self.run = load_run(arguments.run_dir, "cuda" if torch.cuda.is_available() else "cpu")
        self.largest_k = min(self.beam_width, self.run.trie.num_items)

    @api.get("/healthz")
    async def health(self) -> Health:
        """Say what is being served."""
        run = self.run
        return Health(status="ok", policy=run.policy_name, policy_digest=run.policy_digest, num_items=run.trie.num_items)

    @api.post("/recommend", responses=PROBLEMS)
    async def recommend(self, request: RecommendRequest) -> RecommendReply:
        """List the k items most likely to come next, best first, with the interests that speak for each."""
        if request.k > self.largest_k:
            raise ProblemError(k_too_large(request.k, self.beam_width, self.run.trie.num_items))
        history = self.run.items.find(request.history).tolist()
        unknown = [item for item, place in zip(request.history, history, strict=True) if place < 0]
        if unknown:
            raise ProblemError(unknown_items(unknown))
        ranked = await self._decode(self.run.prompt(history))
        places = ranked.places[: request.k]
        titles = self.run.titles.take(pa.array(places)).to_pylist()
        rows = zip(ranked.item_ids, ranked.scores, titles, self.run.explain(history, places), strict=False)
        return RecommendReply(
            items=[
                RecommendedItem(item_id=item_id, score=score, title=title, reasons=reasons)
                for item_id, score, title, reasons in rows
            ]
        )

    @serve.batch(max_batch_size=BATCH_SIZE, batch_wait_timeout_s=BATCH_WAIT_SECONDS)
    async def _decode(self, prompts: list[str]) -> list[Recommendation]:
        """Decode waiting requests together, off the event loop; all with the full beam, so a list never depends on k."""
        return await asyncio.to_thread(self.run.rank, prompts, self.largest_k, self.beam_width)


def app(arguments: AppArguments) -> serve.Application:
    """Build the application.

    Raises:
        ValueError: no run directory is given.
    """
    if not arguments.run_dir:
        raise ValueError("serve: no run to serve; pass run_dir=<folder of a trained run> or set DIGR_RUN_DIR")
    if not is_remote(arguments.run_dir):  # replicas have another working directory
        arguments = arguments.model_copy(update={"run_dir": str(Path(arguments.run_dir).absolute())})
    return Recommender.bind(arguments)  # type: ignore[attr-defined]
