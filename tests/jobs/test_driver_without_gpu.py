"""What wants a GPU runs in a task or worker that asked Ray for one: the driver of a cluster may have none."""

import subprocess
import sys

import pyarrow as pa
import pytest
import torch

from digr import artifacts
from digr.artifacts import Manifest, Store
from tests.nested_interests import nest_rows

pytestmark = pytest.mark.ray

DRIVER = """
import sys
import ray
import ray.train
import torch
from digr.config import build_config
from jobs import build_sids, train_classifier
from jobs.runtime.session import Options

few = {"prestart_worker_first_driver": False}
ray.init(address="local", num_cpus=8, num_gpus=1, include_dashboard=False, log_to_driver=False, _system_config=few)
tree = {"run": {"dir": sys.argv[1]}, "sids": {"level_sizes": [4, 4]}, "cluster": {"use_gpu": True}, "train": {"max_failures": 0}}
for job in (train_classifier, build_sids):
    try:
        job.run(build_config(tree, "test"), Options())
        print("worked")
    except (ray.exceptions.RayTaskError, ray.train.TrainingFailedError) as error:
        print("a worker failed for want of CUDA:", "CUDA" in str(error) or "NCCL" in str(error), str(error)[-1500:])
    print("driver started CUDA:", torch.cuda.is_initialized(), flush=True)
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="tells where CUDA is missed, and here it is not")
def test_the_quantiser_and_the_classifiers_pairs_ask_the_cluster_for_a_gpu_and_not_the_driver(tmp_path):
    """Both took "cuda" in the driver's own process, which ended there on a head node without a GPU.

    This Ray only claims to have a GPU, so whatever uses it fails, and the place of the failure shows where it ran.
    """
    store, ids = Store(str(tmp_path)), [f"item{index:02d}" for index in range(8)]
    tables = {
        "items": pa.table({"item_id": ids, "title": ids}),
        "interests": nest_rows("interests", [{"owner_id": item, "interest": f"need of {item}"} for item in ids], ids),
        "item_embeddings": pa.table({"item_id": ids, "embedding": torch.randn(8, 4).tolist()}),
        "histories": pa.table(
            {"example_id": ["e"], "user_id": ["u"], "split": ["train"], "history": [ids[:1]], "target": ids[1:2]}
        ),
    }
    for name, table in tables.items():
        artifacts.write_table(store, name, table)
        artifacts.commit(store, Manifest(name=name, rows=len(table)))
    command = [sys.executable, "-c", DRIVER, str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stdout.count("a worker failed for want of CUDA: True") == 2, found.stdout
    assert found.stdout.count("driver started CUDA: False") == 2
