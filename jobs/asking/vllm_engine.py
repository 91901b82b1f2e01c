"""The vLLM engine of one worker: answers chats with guided decoding, and isolates prompts that kill the engine.

The worker calls vLLM's asynchronous engine directly. `ray.data.llm` uses separate processes for chat templates and the engine,
copies every prompt and its tokens between them, and reads every token as it is generated: on two cores a job with it took a
third longer than `vllm.LLM.chat` alone (benchmarks/mining_overhead.py).
"""

import asyncio
import json
import os
import uuid
from typing import Any

import ray

from digr.config.interests import VllmJudge, VllmMiner, VllmModel
from digr.models.answers import CUT, TOP_TOKENS, Answer, AnswerForm

CPU_ENV = {"VLLM_CPU_KVCACHE_SPACE": "1"}
"""Environment variable of an engine on CPU: gigabytes of its key-value cache."""
SUSPECT_GROUPS = 16
"""Number of groups into which the prompts of a dead engine are split, again and again until a prompt is alone."""


def check_tensor_parallel(model: VllmModel) -> None:
    """Check that an engine fits on a node of the cluster that Ray has joined.

    Raises:
        ValueError: the model needs more GPUs than the largest node has. If no node has a GPU yet, the engine waits for one.
    """
    gpus = [int(node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["Alive"]]
    largest = max(gpus, default=0)
    if not model.on_cpu and 0 < largest < model.tensor_parallel:
        raise ValueError(
            f"{model.name}: tensor_parallel = {model.tensor_parallel}, but the largest node has {largest} GPUs and an engine "
            f"needs all on one node; set tensor_parallel to at most {largest} or add a larger node"
        )


def engine_kwargs(model: VllmModel) -> dict[str, Any]:
    """Return the arguments of a model's engine, without the model's name."""
    engine: dict[str, Any] = {"max_model_len": model.max_model_len, "tensor_parallel_size": model.tensor_parallel}
    # otherwise a guided model may pad its JSON with white space until its tokens are used up
    engine["structured_outputs_config"] = {"backend": "xgrammar", "disable_any_whitespace": True}
    return engine | ({"enforce_eager": True} if model.on_cpu else {})


def sampling_params(model: VllmMiner | VllmJudge, form: AnswerForm) -> dict[str, Any]:
    """Return the arguments of a model's `SamplingParams`, which force every answer into its form."""
    if form.words:
        # only tokens that begin a word are allowed, so the first token's log-probabilities are those of the words
        guide: dict[str, Any] = {"choice": list(form.words)}
        return {"temperature": 0.0, "max_tokens": 1, "logprobs": TOP_TOKENS, "structured_outputs": guide}
    guide = {"json": json.dumps(form.schema)}
    temperature = model.temperature if isinstance(model, VllmMiner) else 0.0
    return {"temperature": temperature, "max_tokens": model.max_tokens, "structured_outputs": guide}


class Engine:
    """One engine, in a child process, used from one event loop.

    When the engine dies, it is started again and its prompts are asked in groups, without other prompts; a group that kills
    it is split further. So a prompt that kills the engine ends alone, as an answer of status "error", and all others are
    answered.
    """

    def __init__(self, model: VllmMiner | VllmJudge, form: AnswerForm):
        os.environ.update(CPU_ENV if model.on_cpu else {})
        from vllm import SamplingParams
        from vllm.renderers import ChatParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        self.model, self.form = model, form
        sampling = sampling_params(model, form)
        guide = StructuredOutputsParams(**sampling["structured_outputs"])
        last = RequestOutputKind.FINAL_ONLY
        self.sampling = SamplingParams(**sampling | {"structured_outputs": guide, "output_kind": last})
        self.chat = ChatParams(chat_template_kwargs={"add_generation_prompt": True, "tokenize": False})
        self.num_in_flight = 0
        self.suspects: list[tuple[Any, asyncio.Future[Answer]]] = []
        self.healthy = asyncio.Event()
        self.healthy.set()
        self.recovery: asyncio.Task[None] | None = None
        self._start()

    def _start(self) -> None:
        from vllm import AsyncEngineArgs
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM

        arguments = AsyncEngineArgs(self.model.model, disable_log_stats=True, **engine_kwargs(self.model))
        # LLM_CLASS selects the batch sizes of vLLM's offline class, which are twice those of a server
        self.engine = AsyncLLM.from_engine_args(arguments, usage_context=UsageContext.LLM_CLASS)

    async def ask(self, messages: Any) -> Answer:
        """Answer one chat; if the engine refuses it (a text too long, an odd image), the answer has status "error"."""
        await self.healthy.wait()
        self.num_in_flight += 1
        try:
            answer = await self._generate(messages)
        finally:
            self.num_in_flight -= 1
        if answer is not None:
            return answer
        suspect = asyncio.get_running_loop().create_future()
        self.suspects.append((messages, suspect))
        if self.healthy.is_set():
            self.healthy.clear()
            self.recovery = asyncio.create_task(self._recover())
        return await suspect

    async def _generate(self, messages: Any) -> Answer | None:
        """Return the engine's answer, or None if the engine died."""
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            _, rendered = await self.engine.renderer.render_chat_async([messages], self.chat)
            *_, output = [one async for one in self.engine.generate(rendered[0], self.sampling, uuid.uuid4().hex)]
        except EngineDeadError:
            return None
        except Exception as error:  # noqa: BLE001  whatever it is, it is one prompt's fault
            return Answer(None, "error", f"{type(error).__name__}: {error}"[:300])
        written = output.outputs[0]
        first = written.logprobs[0].values() if written.logprobs else ()
        return Answer(
            written.text,
            reason=CUT if written.finish_reason == "length" and not self.form.words else None,
            input_tokens=len(output.prompt_token_ids or ()),
            output_tokens=len(written.token_ids),
            first_tokens=tuple((token.decoded_token or "", token.logprob) for token in first),
        )

    async def _recover(self) -> None:
        """Start the engine again and answer its prompts; if the engine does not start, all of them fail."""
        while self.num_in_flight:  # other prompts notice the death a moment later
            await asyncio.sleep(0.01)
        suspects, self.suspects = self.suspects, []
        try:
            self._restart()
            await self._ask_apart(suspects)
        except Exception as error:  # noqa: BLE001  it is raised where the prompts are waited for
            for _, suspect in suspects:
                if not suspect.done():
                    suspect.set_exception(error)
        self.healthy.set()

    async def _ask_apart(self, suspects: list[tuple[Any, asyncio.Future[Answer]]]) -> None:
        size = -(-len(suspects) // SUSPECT_GROUPS)
        for group in (suspects[start : start + size] for start in range(0, len(suspects), size)):
            answers = await asyncio.gather(*(self._generate(messages) for messages, _ in group))
            dead = [suspect for suspect, answer in zip(group, answers, strict=True) if answer is None]
            for (_, suspect), answer in zip(group, answers, strict=True):
                if answer is not None or len(group) == 1:
                    suspect.set_result(answer or Answer(None, "error", "this prompt alone killed the engine"))
            if dead:
                self._restart()
                if len(group) > 1:
                    await self._ask_apart(dead)

    def _restart(self) -> None:
        """Start another engine, and block meanwhile, because no prompt can be asked."""
        self.engine.shutdown()
        self._start()

    def __del__(self) -> None:
        """Stop the engine's processes."""
        if hasattr(self, "engine"):
            self.engine.shutdown()
