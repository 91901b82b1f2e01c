"""The GPU suite runs to its end without a GPU, with torch, transformers and little else."""

import json
import subprocess
import sys
import time
from itertools import product

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu_suite import QUICK, SECTIONS, Section, Size, measure, run_section
from benchmarks.shapes import peak_tflops, random_policy, training_flops
from tests.patience import CEILING_SECONDS
from tests.test_imports import BLOCKER

ABSENT = {"ray", "vllm", "deepspeed", "faiss", "peft", "accelerate", "sklearn", "boto3", "fastapi", "openai", "PIL"}
ABSENT |= {"jobs", "serve", "scipy", "numba"}
RUN = """
from benchmarks.gpu_suite import BAR, measure
from benchmarks.harness import main
main(measure, BAR, ["--quick"])
"""


def test_its_tiny_form_runs_on_a_cpu_without_ray_vllm_deepspeed_and_faiss():
    code = BLOCKER.format(modules=["benchmarks.gpu_suite"], blocked=ABSENT) + RUN
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=CEILING_SECONDS)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert lines[0] == "[]"
    result = json.loads(lines[-1])
    figures = result["figures"]
    assert {section.name: figures[f"section_{section.name}"] for section in SECTIONS} == {one.name: "ok" for one in SECTIONS}
    assert result["holds"]
    assert figures["lists_cpu_loops"] == "PyTorch"
    assert figures["lists_scratch_ours_equal"] == figures["lists_tiny-qwen3_ours_equal"] == figures["lists"]
    cells = product(QUICK.catalogues, QUICK.shapes, QUICK.beams, QUICK.batches, ("ours", "dense_mask", "transformers"))
    for items, shape, beams, batch, by in cells:
        assert figures[f"decode_{items}_items_{shape}_beam_{beams}_batch_{batch}_{by}_ms"] > 0
    assert figures["sft_tiny-qwen2_tokens_per_second"] > 0
    assert figures["grpo_tiny-qwen2_rollout_seconds"] > 0
    assert "| lists | ok |" in done.stdout


def _yields(then):
    def work(size):
        yield {"found": 1}
        yield from then()

    return work


def _fails():
    yield {"more": [][1]}


def _never_ends():
    while True:
        time.sleep(0.01)
        yield {"turns": 1}


@pytest.mark.parametrize(
    ("section", "ending"),
    [
        (Section("one", 60, _yields(lambda: ())), "ok"),
        (Section("one", 60, _yields(_fails)), "failed: IndexError: list index out of range"),
        (Section("one", 0.2, _yields(_never_ends)), "failed: out of time"),
        (Section("one", 0.2, _yields(_never_ends), may_be_cut=True), "cut"),
    ],
)
def test_a_section_that_fails_or_is_out_of_time_says_so_and_keeps_what_it_found(section, ending):
    figures = run_section(section, Size())
    assert figures["section_one"] == ending
    assert figures["found"] == 1


def test_all_sections_end_within_eight_minutes():
    assert sum(section.seconds for section in SECTIONS) <= 450  # the rest is for imports


def test_the_full_form_without_a_gpu_names_the_quick_one():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ValueError, match="torch finds no GPU; run it on a machine with one, or with --quick"):
        measure(False)


@pytest.mark.parametrize("shape", ["tiny-qwen2", "tiny-qwen3"])
def test_training_operations_are_those_that_torch_counts(shape):
    lm, length = random_policy(shape, (8, 8)).lm, 48
    lm.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        lm.get_decoder()(input_ids=torch.arange(length)[None]).last_hidden_state.sum().backward()
    counted, lengths = counter.get_total_flops(), np.array([length])
    heads = lm.config.num_attention_heads * getattr(lm.config, "head_dim", lm.config.hidden_size // 2)
    masked = 6 * lm.config.num_hidden_layers * heads * length**2  # torch also counts the half that the mask hides
    assert counted == pytest.approx(training_flops(lm, lengths) + masked, rel=1e-3)


def test_the_peak_is_that_of_the_named_gpu_or_the_one_given(monkeypatch):
    assert peak_tflops("cpu") is None
    monkeypatch.setenv("DIGR_PEAK_TFLOPS", "123.5")
    assert peak_tflops("cuda") == 123.5
