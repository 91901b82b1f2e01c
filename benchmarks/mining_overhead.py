"""What mining through Ray costs: the whole job `jobs.mine_interests` against bare `vllm.LLM.chat`.

Both are separate commands, timed from start to exit, so both include the start of an engine. They share the items, the tiny
random model, and the engine and guided-decoding arguments. The job also starts Ray, writes the ledger, parses every answer and
merges the interests. The quick form runs both at the same time, since one after the other takes more than a minute: it shows
that they run, but its ratio means little.
"""

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from benchmarks.harness import Bar, Measurement, main
from digr import artifacts
from digr.artifacts import Manifest, Store
from digr.config import load_config
from digr.config.interests import VllmMiner
from digr.config.run import SyntheticConfig
from digr.data.synthetic import build_shop
from digr.data.texts import item_texts
from digr.interests.prompts import chat_messages

BAR = Bar(
    full=1.10,
    quick=1.5,
    quick_reason="both start at once on the same cores, and their starts are nearly all they do for a hundred prompts",
)
MAX_TOKENS = 64
SHOP = SyntheticConfig(num_items=5000, num_users=20)
QUICK = SyntheticConfig(num_items=100, num_users=20)


def chat(config_path: str, seconds_path: str) -> None:
    """Ask the engine all prompts at once, as a script without Ray would; writes how long its parts took."""
    import os

    from jobs.asking.miners import FORM
    from jobs.asking.vllm_engine import CPU_ENV, engine_kwargs, sampling_params
    from jobs.runtime.stage import store_of

    os.environ.update(CPU_ENV)
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    config = load_config(config_path)
    miner = config.interests.miners[0]
    assert isinstance(miner, VllmMiner)
    texts = item_texts(artifacts.read_table(store_of(config), "items"), config.interests.max_text_chars)
    start = time.monotonic()
    llm = LLM(miner.model, **engine_kwargs(miner))
    ready = time.monotonic()
    sampling: dict[str, Any] = sampling_params(miner, FORM)
    guide = StructuredOutputsParams(**sampling.pop("structured_outputs"))
    messages: list[Any] = [chat_messages("item", "text", text) for text in texts]
    outputs = llm.chat(messages, SamplingParams(**sampling, structured_outputs=guide), use_tqdm=False)
    done = time.monotonic()
    tokens = sum(len(output.prompt_token_ids or []) + len(output.outputs[0].token_ids) for output in outputs)
    found = {"start": ready - start, "chat": done - ready, "responses": len(outputs), "tokens": tokens}
    Path(seconds_path).write_text(json.dumps(found))


class Cost(NamedTuple):
    """What a command took: wall-clock seconds, and processor seconds of all its processes."""

    seconds: float
    cpu_seconds: float


def _cost(arguments: list[str]) -> Cost:
    """Run a command to its end; its processes are sampled twice a second, so the last half second of each is missed."""
    start = time.monotonic()
    used: dict[tuple[int, float], float] = {}
    with tempfile.TemporaryFile("w+") as output:
        command = subprocess.Popen([sys.executable, *arguments], stdout=output, stderr=subprocess.STDOUT)
        while command.poll() is None:
            for process in [psutil.Process(command.pid), *psutil.Process(command.pid).children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    times = process.cpu_times()
                    used[process.pid, process.create_time()] = times.user + times.system
            time.sleep(0.5)
        output.seek(0)
        if command.returncode:
            raise ValueError(f"{' '.join(arguments)}: exit {command.returncode}\n{output.read()[-3000:]}")
    return Cost(time.monotonic() - start, sum(used.values()))


def measure(quick: bool) -> Measurement:
    """Run the job, then the bare engine; the quick form both at once."""
    from tests.tiny_models import make_text_model

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = make_text_model(folder / "model")
        store = Store(str(folder / "run"))
        items = build_shop(QUICK if quick else SHOP, 0).items
        artifacts.begin(store, "items")
        artifacts.commit(store, Manifest(name="items", rows=artifacts.write_table(store, "items", items)))
        config = folder / "run.toml"
        config.write_text(
            f'[run]\ndir = "{store.root}"\n[[interests.miners]]\nkind = "vllm"\nname = "tiny"\nmodel = "{model}"\n'
            f"on_cpu = true\nmax_model_len = 2048\nmax_tokens = {MAX_TOKENS}\n"
            # a random model's answers are cut before their first interest
            "[interests]\nmin_yield_rate = 0.0\n"
        )
        call = f"from benchmarks.mining_overhead import chat; chat({str(config)!r}, {str(folder / 'chat.json')!r})"
        with ThreadPoolExecutor(2 if quick else 1) as at_once:
            job, bare = at_once.map(_cost, [["-m", "jobs.mine_interests", "--config", str(config)], ["-c", call]])
        engine = json.loads((folder / "chat.json").read_text())
        responses = artifacts.read_table(store, "interest_responses", ["input_tokens", "output_tokens"])
        ours = sum(sum(responses[column].to_pylist()) for column in responses.column_names)
    figures = {
        "prompts": len(items),
        "mining_job_seconds": round(job.seconds, 1),
        "bare_chat_seconds": round(bare.seconds, 1),
        "mining_job_cpu_seconds": round(job.cpu_seconds, 1),
        "bare_chat_cpu_seconds": round(bare.cpu_seconds, 1),
        "bare_chat_engine_start_seconds": round(engine["start"], 1),
        "bare_chat_generation_seconds": round(engine["chat"], 1),
        "mining_job_responses": len(responses),
        "bare_chat_responses": engine["responses"],
        "mining_job_tokens": ours,
        "bare_chat_tokens": engine["tokens"],
    }
    return Measurement(figures, ratio=job.seconds / bare.seconds)


if __name__ == "__main__":
    main(measure, BAR)
