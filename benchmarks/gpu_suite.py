"""One GPU and the policy: lists equal to the CPU's, SFT tokens per second and MFU, the parts of a GRPO step, decoding times.

It needs one GPU, torch and transformers, but not Ray, vLLM, DeepSpeed or faiss. Every section has a time limit; together they
take less than eight minutes. A section that fails or runs out of time is recorded with what it found, and the others go on.
Models have random weights of the shapes in `benchmarks.shapes`; decoding is in bf16. The peers are `transformers.generate` with
`prefix_allowed_tokens_fn` and a beam search with dense masks. MFU is `benchmarks.shapes.training_flops` of the tokens without
padding, over the seconds and the GPU's bf16 peak. The ratio is the number of sections that failed. `--quick` runs all of it
on the CPU with tiny shapes: it shows that the script works, but its times mean nothing.
"""

import copy
import json
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from benchmarks.decoder_vs_transformers import (
    allowed_tokens,
    equal_but_for_ties,
    peer_lists,
    random_prompts,
    random_trie,
    seconds_of,
)
from benchmarks.dense_mask import dense_lists, dense_tables
from benchmarks.harness import Bar, Measurement, main
from benchmarks.shapes import peak_tflops, random_policy, training_flops
from benchmarks.trainings import grpo_seconds, sft_epochs
from digr.config.policy import GrpoConfig, PolicyConfig, SftConfig
from digr.policy.decoding.choosing import COMPILES
from digr.policy.decoding.search import recommend
from digr.policy.model import build_scratch_policy
from digr.policy.training.batches import Texts, pack_sequences
from digr.policy.training.grpo import Prompts
from digr.policy.vocabulary import sid_texts
from digr.sids.trie import SidTrie

BAR = Bar(full=0, quick=0, quick_reason="a count of sections that failed, none of which may at any size")


class Size(NamedTuple):
    """What is measured."""

    device: str = "cuda"
    levels: tuple[int, ...] = (512, 512, 512)
    """Codes per level; 20 million items need more than three times 256."""
    shapes: tuple[str, ...] = ("qwen2.5-0.5b", "qwen3-1.7b")
    catalogues: tuple[int, ...] = (3_700, 1_000_000, 20_000_000)
    beams: tuple[int, ...] = (50, 256)
    batches: tuple[int, ...] = (1, 8, 64)
    repeats: int = 3
    """Timed calls of each decoder but `transformers.generate`, which gets one."""
    sequences: int = 4_000
    longest_history: int = 50
    batch_tokens: int = 32_768
    grpo: GrpoConfig = GrpoConfig(steps=4)
    patience: float = 1.0
    """The seconds of each section are multiplied by it."""


QUICK = Size(
    device="cpu",
    levels=(32, 32, 32),
    shapes=("tiny-qwen2", "tiny-qwen3"),
    catalogues=(200, 2_000),
    beams=(5,),
    batches=(1, 3),
    repeats=1,
    sequences=40,
    longest_history=6,
    batch_tokens=256,
    grpo=GrpoConfig(steps=2, prompts_per_step=4, group_size=4),
    patience=20.0,
)
LISTS, LIST_BEAMS, LIST_ITEMS = 16, 30, 10
"""Prompts whose lists are compared, the beams of their search, and the items that must be equal."""

Found = Mapping[str, Any]


class Section(NamedTuple):
    """A part of the suite."""

    name: str
    seconds: float
    """It is stopped after them."""
    work: Callable[[Size], Iterator[Found]]
    """Yields figures as it finds them."""
    may_be_cut: bool = False
    """Whether running out of time is no failure."""


class OutOfTime(BaseException):
    """A section's time is over; not an `Exception`, so that no handler inside the section catches it."""


@cache
def _trie(num_items: int, levels: tuple[int, ...], device: str) -> SidTrie:
    """Build a random trie once on the CPU, and copy it to other devices."""
    if device != "cpu":
        return _trie(num_items, levels, "cpu").to(device)
    return random_trie(num_items, np.random.default_rng(0), levels)


_policy = cache(random_policy)


def compare_lists(size: Size) -> Iterator[Found]:
    """Compare the lists of both devices and of both peers, in fp32."""
    trie, there = (_trie(size.catalogues[0], size.levels, device) for device in ("cpu", size.device))
    tables, prompts = dense_tables(there), random_prompts(trie, LISTS, np.random.default_rng(1))
    scratch = build_scratch_policy(PolicyConfig(), size.levels, seed=0).eval()
    policies = {"scratch": scratch} | {shape: random_policy(shape, size.levels) for shape in QUICK.shapes}
    yield {"lists": LISTS, "lists_cpu_loops": "compiled" if COMPILES else "PyTorch"}
    for name, policy in policies.items():
        moved = copy.deepcopy(policy).to(size.device)
        wanted = recommend(policy, trie, prompts, LIST_BEAMS, LIST_BEAMS)
        allowed = allowed_tokens(policy, trie, policy.tokenize(prompts[:1])[0].shape[1])
        lists = {
            "ours": [found.item_ids for found in recommend(moved, there, prompts, LIST_BEAMS, LIST_BEAMS)],
            "dense_mask": dense_lists(moved, there, tables, prompts, LIST_BEAMS),
            "transformers": peer_lists(moved, there, prompts, LIST_BEAMS, allowed),
        }
        for by, found in lists.items():
            pairs = [(items[:LIST_ITEMS], cpu) for items, cpu in zip(found, wanted, strict=True)]
            same = sum(items == cpu.item_ids[:LIST_ITEMS] for items, cpu in pairs)
            like = sum(equal_but_for_ties(items, cpu.item_ids, cpu.scores) for items, cpu in pairs)
            yield {f"lists_{name}_{by}_equal": same, f"lists_{name}_{by}_equal_but_for_ties": like}
            if like < LISTS:
                raise ValueError(f"{name}: {LISTS - like} of {LISTS} lists by {by} on {size.device} are not those of the CPU")


def train_sft(size: Size) -> Iterator[Found]:
    """Fine-tune each shape on histories of random items, with bf16 and fp32 weights, as `precision = "bf16"` does."""
    trie, rng = _trie(size.catalogues[0], size.levels, size.device), np.random.default_rng(2)
    texts, lengths = sid_texts(trie.codes.cpu().numpy()), rng.integers(2, size.longest_history + 1, size.sequences)
    histories = [[texts[item] for item in rng.integers(trie.num_items, size=length)] for length in lengths]
    examples = Texts([history[0] for history in histories], ["".join(history[1:]) for history in histories])
    config, peak = SftConfig(epochs=2, batch_tokens=size.batch_tokens, lr=1e-5), peak_tflops(size.device)
    for shape in size.shapes:
        policy = random_policy(shape, size.levels, device=size.device)
        sequences = pack_sequences(policy.tokenizer, [examples], 8 * size.longest_history)
        if size.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        (epoch,) = sft_epochs(policy, trie, sequences, config, "bf16")
        tflops = training_flops(policy.lm, sequences.lengths) / epoch["seconds"] / 1e12
        yield {
            f"sft_{shape}_tokens_per_second": round(epoch["tokens_per_second"]),
            f"sft_{shape}_padding_rate": round(epoch["padding_rate"], 4),
            f"sft_{shape}_tflops": round(tflops, 3),
            f"sft_{shape}_mfu": round(tflops / peak, 4) if peak else "unknown peak: set DIGR_PEAK_TFLOPS",
            "sft_peak_tflops": peak,
        } | ({f"sft_{shape}_gigabytes": round(torch.cuda.max_memory_allocated() / 1e9, 1)} if size.device == "cuda" else {})


def train_grpo(size: Size) -> Iterator[Found]:
    """Split a GRPO step of the first shape; the reference has bf16 weights."""
    trie, rng, shape = _trie(size.catalogues[0], size.levels, size.device), np.random.default_rng(3), size.shapes[0]
    texts = random_prompts(trie, 8 * size.grpo.prompts_per_step, rng)
    ids, targets = pa.array(map(str, range(len(texts)))), torch.from_numpy(rng.integers(trie.num_items, size=len(texts)))
    policy = random_policy(shape, size.levels, device=size.device)
    reference = random_policy(shape, size.levels, device=size.device, dtype=torch.bfloat16)
    parts = grpo_seconds(policy, reference, trie, Prompts(ids, pa.array(texts), targets), size.grpo, precision="bf16")
    yield {f"grpo_{shape}_{part}_seconds": round(seconds, 4) for part, seconds in parts.items()} | {
        f"grpo_{shape}_step_seconds": round(sum(parts.values()), 4),
        "grpo_prompts": size.grpo.prompts_per_step,
        "grpo_group_size": size.grpo.group_size,
    }


def decode(size: Size) -> Iterator[Found]:
    """Time our search and the one with dense masks."""
    for num_items in size.catalogues:
        start = time.monotonic()
        trie = _trie(num_items, size.levels, "cpu")
        yield {f"decode_{num_items}_items_build_seconds": round(time.monotonic() - start, 1)}
        trie = _trie(num_items, size.levels, size.device)
        tables, prompts = dense_tables(trie), random_prompts(trie, max(size.batches), np.random.default_rng(4))
        for shape, beams, batch in product(size.shapes, size.beams, size.batches):
            policy = _policy(shape, size.levels, device=size.device, dtype=torch.bfloat16)
            some = prompts[:batch]
            for found in recommend(policy, trie, some, beams, beams):
                if not beams == len(found.item_ids) == len(set(found.item_ids)):
                    raise ValueError(f"{num_items} items: expected {beams} distinct items, found {len(set(found.item_ids))}")
            times = {
                "ours": _milliseconds(partial(recommend, policy, trie, some, beams, beams), size.repeats),
                "dense_mask": _milliseconds(partial(dense_lists, policy, trie, tables, some, beams), size.repeats),
            }
            yield {_cell(num_items, shape, beams, batch, by): value for by, value in times.items()}


def decode_with_transformers(size: Size) -> Iterator[Found]:
    """Time `transformers.generate`, the small searches first."""
    cells = product(size.shapes, size.catalogues, size.beams, size.batches)
    for shape, num_items, beams, batch in sorted(cells, key=lambda cell: (cell[2] * cell[3], cell[1])):
        policy = _policy(shape, size.levels, device=size.device, dtype=torch.bfloat16)
        trie = _trie(num_items, size.levels, size.device)
        prompts = random_prompts(trie, max(size.batches), np.random.default_rng(4))[:batch]
        allowed = allowed_tokens(policy, _trie(num_items, size.levels, "cpu"), policy.tokenize(prompts[:1])[0].shape[1])
        work = partial(peer_lists, policy, trie, prompts, beams, allowed)
        yield {_cell(num_items, shape, beams, batch, "transformers"): _milliseconds(work, 1)}


def _cell(num_items: int, shape: str, beams: int, batch: int, by: str) -> str:
    return f"decode_{num_items}_items_{shape}_beam_{beams}_batch_{batch}_{by}_ms"


def _milliseconds(work: Callable[[], object], repeats: int) -> float | str:
    """Return the median milliseconds of some calls after a first one; "out of memory" where the GPU has too little."""
    try:
        return round(seconds_of(work, repeats) * 1e3, 2)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return "out of memory"


SECTIONS = (
    Section("lists", 50, compare_lists),
    Section("sft", 100, train_sft),
    Section("grpo", 50, train_grpo),
    Section("decode", 140, decode),
    Section("transformers", 100, decode_with_transformers, may_be_cut=True),
)


def run_section(section: Section, size: Size) -> dict[str, Any]:
    """Run a section until it ends, fails or is out of time; returns its figures, and how it ended."""

    def stop(signum: int, frame: object) -> None:
        raise OutOfTime

    figures, start = dict[str, Any](), time.monotonic()
    handler, timer = signal.signal(signal.SIGALRM, stop), signal.setitimer(signal.ITIMER_REAL, section.seconds * size.patience)
    try:
        for found in section.work(size):
            print(json.dumps(found), flush=True)
            figures |= found
        status = "ok"
    except OutOfTime:
        status = "cut" if section.may_be_cut else "failed: out of time"
    except Exception as error:  # noqa: BLE001  any failure is recorded, and the other sections go on
        status = f"failed: {type(error).__name__}: {error}"[:500]
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler)
    ended = {f"section_{section.name}": status, f"section_{section.name}_seconds": round(time.monotonic() - start, 1)}
    print(json.dumps(ended), flush=True)
    return figures | ended


def table(size: Size, figures: Found) -> str:
    """Write the sections and the decoding times as Markdown."""
    lines = ["| section | how it ended | seconds |", "|---|---|---|"]
    for section in SECTIONS:
        name = f"section_{section.name}"
        lines.append(f"| {section.name} | {figures[name]} | {figures[f'{name}_seconds']} |")
    names = ("ours", "dense_mask", "transformers")
    lines += ["", "| model | items | beams | batch | ours, ms | dense mask, ms | transformers, ms |", "|---|" + "---:|" * 6]
    for shape, num_items, beams, batch in product(size.shapes, size.catalogues, size.beams, size.batches):
        times = [figures.get(_cell(num_items, shape, beams, batch, by), "") for by in names]
        lines.append(f"| {shape} | {num_items} | {beams} | {batch} | " + " | ".join(map(str, times)) + " |")
    return "\n".join(lines)


def measure(quick: bool) -> Measurement:
    """Run all sections on the GPU; the quick form on the CPU with tiny shapes."""
    size = QUICK if quick else Size()
    if size.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("gpu_suite: torch finds no GPU; run it on a machine with one, or with --quick on this one's CPU")
    figures = dict[str, Any]()
    for section in SECTIONS:
        figures |= run_section(section, size)
    print(table(size, figures), flush=True)
    failed = [section.name for section in SECTIONS if figures[f"section_{section.name}"].startswith("failed")]
    return Measurement(figures, ratio=len(failed))


if __name__ == "__main__":
    main(measure, BAR)
