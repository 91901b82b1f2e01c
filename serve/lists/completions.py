"""The policy as a completion model: semantic IDs in, semantic IDs out."""

import itertools
import re
import time
import uuid

import numpy as np

from digr.policy.decoding.search import Recommendation
from digr.policy.vocabulary import history_prompt, sid_texts
from serve.contract.completion_schemas import Choice, CompletionReply, CompletionRequest, Usage
from serve.contract.problems import ProblemError, k_too_large
from serve.items.catalogue import ServedRun
from serve.service import Service

_TOKEN = re.compile(r"<([a-z])_(\d{1,9})>")


async def complete(service: Service, request: CompletionRequest) -> CompletionReply:
    """Answer a completion request with a beam search.

    Raises:
        ProblemError: it cannot be answered.
    """
    name, run = service.version(request.model)
    beam_width = service.arguments.beam_width
    if request.n > min(beam_width, run.trie.num_items):
        raise k_too_large(request.n, beam_width, run.trie.num_items)
    written = [request.prompt] if isinstance(request.prompt, str) else request.prompt
    prompts = [newest_sids(run, prompt) for prompt in written]
    ranked = await service.line.decode(
        [service.line.job(run, history_prompt(sids), beam_width, run.listed_words) for sids in prompts]
    )
    choices = [choice for found in ranked for choice in _choices(run, found, request.n)]
    read = sum(sid.count("<") for sids in prompts for sid in sids)
    wrote = sum(choice.text.count("<") for choice in choices)
    return CompletionReply(
        id=f"cmpl-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=name,
        choices=[choice.model_copy(update={"index": index}) for index, choice in enumerate(choices)],
        usage=Usage(prompt_tokens=read, completion_tokens=wrote, total_tokens=read + wrote),
    )


def newest_sids(run: ServedRun, prompt: str) -> list[str]:
    """Split a prompt into semantic IDs and keep the newest ones, as many as the policy reads.

    Raises:
        ProblemError: the prompt is not a sequence of whole semantic IDs with this version's levels.
    """
    tokens = _TOKEN.findall(prompt)
    sizes = run.trie.level_sizes
    places = [(ord(level) - ord("a"), int(code)) for level, code in tokens]
    starts = [index for index, (level, _) in enumerate(places) if level == 0]
    spans = list(itertools.pairwise([*starts, len(places)]))
    shortest = run.shortest_sid
    whole = bool(starts) and starts[0] == 0 and "".join(f"<{level}_{code}>" for level, code in tokens) == prompt.strip()
    right = all(
        shortest <= end - start <= len(sizes)
        and all(level == at and code < sizes[level] for at, (level, code) in enumerate(places[start:end]))
        for start, end in spans
    )
    if not whole or not right:
        example = sid_texts(run.trie.codes[:1].cpu().numpy())[0]
        detail = f"the prompt must be whole semantic IDs, oldest first, such as {example}; level sizes are {list(sizes)}"
        raise ProblemError("invalid-prompt", 422, "The prompt is not made of semantic IDs", detail, fields=["prompt"])
    return ["".join(f"<{level}_{code}>" for level, code in tokens[start:end]) for start, end in spans[-run.max_history :]]


def _choices(run: ServedRun, found: Recommendation, count: int) -> list[Choice]:
    sids = sid_texts(run.trie.codes[np.asarray(found.places[:count])].cpu().numpy())
    rows = zip(sids, found.scores, found.item_ids, strict=False)
    return [Choice(index=0, text=sid, score=score, item_id=item_id) for sid, score, item_id in rows]
