"""Metrics of two recommenders with intervals that resample users, and whether their difference is more than chance."""

# %% what two systems listed for 600 held-out purchases of 200 users, of a catalogue of 50 items
import numpy as np
import pyarrow as pa

from digr import evaluate_ranks, target_ranks

rng = np.random.default_rng(0)
user = np.repeat(np.arange(200), 3)
target = rng.integers(0, 50, 600)


def lists(hit_rate: float) -> pa.ListArray:
    """Make lists of ten items, of which a share holds the target at some place."""
    listed = np.array([rng.permutation(50)[:10] for _ in range(600)])
    listed[listed == target[:, None]] = 50  # an item that nobody bought
    hits = np.flatnonzero(rng.random(600) < hit_rate)
    listed[hits, rng.integers(0, 10, len(hits))] = target[hits]
    return pa.array(listed.tolist(), pa.list_(pa.int64()))


# %% all that the metrics need is the place of each target in each list: from 1, and 0 where it is absent
targets = pa.array(target, pa.int64())
ranks = {"popularity": target_ranks(lists(0.25), targets), "ours": target_ranks(lists(0.40), targets)}
print("places of the first targets:", {system: places[:5].tolist() for system, places in ranks.items()})

# %% a user's purchases are alike, so whole users are drawn, not purchases; both systems are measured on the same draws
slices = {"all": np.ones(600, bool), "first items": target < 10}
metrics, gains = evaluate_ranks(ranks, user, target, slices, ks=[5, 10], resamples=1000, rng=rng)
for row in metrics:
    measure, interval = f"{row['name']}@{row['k']}", f"[{row['low']:.3f}, {row['high']:.3f}]"
    print(f"{row['system']:>10} {row['slice']:>11} {measure}: {row['value']:.3f} {interval}, n = {row['num_examples']}")

# %% the paired difference of the later system over the earlier one, with a permutation test over users
for row in gains:
    users = f"[{row['low']:+.3f}, {row['high']:+.3f}]"
    both = f"[{row['low_with_items']:+.3f}, {row['high_with_items']:+.3f}]"
    print(f"{row['system']} over {row['baseline']}, {row['name']}@{row['k']}: {row['difference']:+.3f}")
    print(f"  95 % over users {users}, over users and items {both}, p = {row['p_value']:.3f}")
