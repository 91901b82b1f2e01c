"""Which miners run at the same time."""

from digr.config.interests import ExtractiveMiner, OpenAIMiner, VllmMiner
from jobs.asking.miners import side_by_side


def _engine(name, **changes):
    return VllmMiner(name=name, model="x", **changes)


ENDPOINTS = [OpenAIMiner(name=name, base_url="http://x/v1", model="x") for name in ("e1", "e2")]


def _groups(miners, num_gpus=0, num_nodes=1):
    return [[miner.name for miner in group] for group in side_by_side(miners, num_gpus, num_nodes)]


def test_engines_and_endpoints_run_side_by_side_where_the_cluster_has_room():
    # engines ran one after another, and endpoints last of all, however many GPUs idled
    miners = [_engine("a"), ENDPOINTS[0], _engine("b", tensor_parallel=2), ENDPOINTS[1], ExtractiveMiner()]
    assert _groups(miners, num_gpus=4) == [["extractive"], ["e1", "e2", "a", "b"]]
    assert _groups(miners, num_gpus=2) == [["extractive"], ["e1", "e2", "a"], ["b"]]


def test_engines_that_find_no_room_wait_in_groups_of_their_own():
    miners = [_engine("a"), _engine("b", concurrency=8), _engine("c", tensor_parallel=2), _engine("d")]
    assert _groups(miners, num_gpus=2) == [["a", "b"], ["c"], ["d"]]
    # a cluster that grows on demand has no GPU yet; each waits for its own
    assert _groups(miners) == [["a"], ["b"], ["c"], ["d"]]
    assert _groups([*ENDPOINTS, *miners[:2]]) == [["e1", "e2", "a"], ["b"]]


def test_an_engine_on_cpu_has_a_node_to_itself():
    miners = [_engine("a", on_cpu=True), _engine("b", on_cpu=True), *ENDPOINTS]
    assert _groups(miners) == [["e1", "e2", "a"], ["b"]]
    assert _groups(miners, num_nodes=2) == [["e1", "e2", "a", "b"]]
