"""Seconds of residual k-means, three levels on a million 384-d vectors, against bare matrix products.

The peer multiplies all vectors with the codewords once per iteration and level: the least that iterations over every vector
cost. faiss fits a level on 256 random vectors per codeword, so the whole fit costs less.
"""

import os
import time

import numpy as np
import torch

from benchmarks.harness import Bar, Measurement, main
from benchmarks.sid_assign import LEVELS, clustered
from digr.sids.diagnostics import level_use, reconstruction
from digr.sids.rkmeans import KMEANS_ITERATIONS, fit_rkmeans

BAR = Bar(full=10.0, quick=1.0, quick_reason="thirty thousand vectors, half of what a fit of a million reads")


def measure(quick: bool) -> Measurement:
    """Fit, time one bare pass, and look at what the codes keep."""
    vectors = clustered(30_000 if quick else 1_000_000)
    start, cpu = time.monotonic(), time.process_time()
    quantiser = fit_rkmeans(vectors, LEVELS, seed=0)
    seconds, cpu_seconds = time.monotonic() - start, time.process_time() - cpu
    start = time.monotonic()
    for part in torch.from_numpy(vectors).split(4096):
        part @ quantiser.codebooks[0].T
    bare = time.monotonic() - start
    sample = vectors[:50_000]
    codes = quantiser.assign(sample)
    figures = {
        "vectors": len(vectors),
        "threads": len(os.sched_getaffinity(0)),
        "fit_seconds": round(seconds, 1),
        "fit_cpu_seconds": round(cpu_seconds, 1),
        "bare_pass_seconds": round(bare, 2),
        "bare_iterations_seconds": round(bare * KMEANS_ITERATIONS * len(LEVELS), 1),
        "r2": round(reconstruction(quantiser, sample, codes)[1], 4),
        "least_usage_rate": round(min(level_use(codes[:, level], size).usage_rate for level, size in enumerate(LEVELS)), 4),
        "residual_norm": round(float(np.linalg.norm(sample - quantiser.reconstruct(codes), axis=1).mean()), 4),
        "ratio_is": "minutes to fit",
    }
    return Measurement(figures, ratio=seconds / 60)


if __name__ == "__main__":
    main(measure, BAR)
