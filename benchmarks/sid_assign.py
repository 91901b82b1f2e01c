"""Semantic IDs of a million 384-d vectors: codes per second against the bare matrix products, and memory beyond the vectors.

The peer only multiplies the vectors with the codewords of every level, in the batch size that is fastest for it. Ours also
standardises, finds the nearest codeword, subtracts it and keeps the distance. Each has one thread; the best of three counts, in
processor seconds, so that a busy machine does not decide.
"""

import resource
import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.harness import Bar, Measurement, main
from digr.sids.assignment import assign_sids
from digr.sids.rkmeans import RKMeans, fit_rkmeans

BAR = Bar(full=0.5, quick=0.4, better="at_least", quick_reason="one batch of vectors: what is done once per call weighs more")
DIM, LEVELS = 384, (256, 256, 256)
PARTS = (1024, 2048, 4096, 16_384, 65_536)
BATCH = 65_536


def clustered(num: int, dim: int = DIM, seed: int = 0) -> np.ndarray:
    """Draw unit vectors around 5,000 centres, float32 [num, dim]."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(5000, dim)).astype(np.float32)
    vectors = np.empty((num, dim), np.float32)
    for start in range(0, num, BATCH):
        part = vectors[start : start + BATCH]
        part[:] = centres[rng.integers(5000, size=len(part))] + 0.5 * rng.standard_normal(part.shape, np.float32)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return vectors


def best_cpu_seconds(work: Callable[[], object], times: int = 3) -> float:
    """Return the least processor seconds of some runs."""
    found = []
    for _ in range(times):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return min(found)


def measure(quick: bool) -> Measurement:
    """Assign in batches, and multiply in the same batches."""
    torch.set_num_threads(1)
    vectors = clustered(65_536 if quick else 1_000_000)
    quantiser: RKMeans = fit_rkmeans(vectors[:20_000], LEVELS, seed=0)
    tensor, books = torch.from_numpy(vectors), [book.T.contiguous() for book in quantiser.codebooks]

    def batches():
        return (vectors[start : start + BATCH] for start in range(0, len(vectors), BATCH))

    def bare(rows: int) -> None:
        for part in tensor.split(rows):
            for book in books:
                part @ book

    fastest = min(PARTS, key=lambda rows: best_cpu_seconds(lambda: [part @ books[0] for part in tensor[:BATCH].split(rows)]))
    peer = best_cpu_seconds(lambda: bare(fastest))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ours = best_cpu_seconds(lambda: assign_sids(quantiser, batches, disambiguation="none"))
    codes_memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    start = time.process_time()
    assigned = assign_sids(quantiser, batches)
    with_spread = time.process_time() - start
    moved = float((assigned.codes[:, : len(LEVELS)] != assigned.nearest).any(1).mean())
    all_memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    figures = {
        "vectors": len(vectors),
        "dimensions": DIM,
        "level_sizes": "x".join(map(str, LEVELS)),
        "vectors_mib": round(vectors.nbytes / 2**20),
        "bare_products_rows_at_once": fastest,
        "bare_products_cpu_seconds": round(peer, 2),
        "codes_cpu_seconds": round(ours, 2),
        "codes_vectors_per_second": round(len(vectors) / ours),
        "codes_peak_extra_mib": round(codes_memory),
        "unique_sids_cpu_seconds": round(with_spread, 2),
        "unique_sids_peak_extra_mib": round(all_memory),
        "moved_rate": round(moved, 4),
        "ratio_is": "bare products' seconds over the codes' seconds",
    }
    return Measurement(figures, ratio=peer / ours)


if __name__ == "__main__":
    main(measure, BAR)
