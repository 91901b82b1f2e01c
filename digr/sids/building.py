"""Build the semantic IDs of a run's catalogue from its item vectors, with a new quantiser or an earlier run's."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Float

from digr import artifacts
from digr.artifacts import Manifest, Store
from digr.config.sids import SidsConfig
from digr.data.ids import build_id_index
from digr.data.transitions import read_sequences
from digr.sids.assignment import SidAssignment, assign_sids
from digr.sids.behaviour import behaviour_vectors
from digr.sids.diagnostics import cointeraction_shares, describe_sids, largest_collisions, rounded
from digr.sids.extension import continue_sids
from digr.sids.fitting import Quantiser, fit_quantiser, load_quantiser, sample_rows, save_quantiser, take_rows
from digr.sids.fusion import Fusion, fit_fusion, load_fusion, save_fusion
from digr.sids.peers import Peers
from digr.sids.sizes import sized
from digr.tables import table_spec

RETIRED = "retired_sids.parquet"
SAME_CHOICES = ("quantiser", "level_sizes", "disambiguation", "image_weight", "behaviour_weight")

_IMAGE = ["image_embedding"]

MAX_MEASURED_ITEMS = 100_000
"""Items whose vectors are read for the diagnostics if the quantiser is fitted in another process."""


class Built(NamedTuple):
    """A quantiser and the SIDs of a whole catalogue."""

    quantiser: Quantiser
    item_ids: pa.Array
    """Item ids in the order of `assigned`."""
    assigned: SidAssignment
    facts: dict[str, Any]
    retired: pa.Table
    """SIDs of items that only earlier runs had; they are never assigned again."""
    fusion: Fusion | None
    """How images and behaviour enter the quantised vectors; None if they do not."""


def vector_batches(
    store: Store,
    fusion: Fusion | None = None,
    behaviour: Float[np.ndarray, "N C"] | None = None,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[np.ndarray]:
    """Stream a run's item vectors from row `start` to `stop`, in batches [B, D]: of text and interests, or fused with views.

    Args:
        behaviour: vectors of all items, see `run_behaviour`; None predicts them from the text.
    """
    image = fusion.views.get("image") if fusion else None
    at = start
    columns = ["embedding"] + (_IMAGE if image else [])
    for batch in artifacts.iter_table(store, "item_embeddings", columns, start=start, stop=stop):
        if not len(batch):
            continue
        text = batch["embedding"].flatten().to_numpy().reshape(len(batch), -1)
        views = {} if image is None else {"image": _images(batch, len(image.mean))}
        views |= {} if behaviour is None else {"behaviour": behaviour[at : at + len(batch)]}
        at += len(batch)
        yield fusion(text, views) if fusion else text


def _images(batch: pa.RecordBatch, dim: int) -> np.ndarray:
    """Return the image vectors of a batch, [B, E]; NaN for missing images."""
    images = np.full((len(batch), dim), np.nan, np.float32)
    has = batch["image_embedding"].is_valid().to_numpy(zero_copy_only=False)
    images[has] = batch["image_embedding"].flatten().to_numpy().reshape(-1, dim)
    return images


def run_behaviour(store: Store, sids: SidsConfig) -> Float[np.ndarray, "N C"] | None:
    """Return the behaviour vectors of a run's items in the order of `item_embeddings`; None if they have no weight."""
    if not sids.behaviour_weight:
        return None
    items = build_id_index(_item_ids(store))
    return behaviour_vectors(read_sequences(store, items.find), len(items))


def num_vectors(store: Store) -> int:
    """Return the number of items that have a vector."""
    return artifacts.dataset_of(store, "item_embeddings").count_rows()


def sample_of_worker(store: Store, sids: SidsConfig, seed: int, fusion: Fusion | None, peers: Peers) -> np.ndarray:
    """Read a worker's share of the fit's sample: neighbouring rows, so that workers open different parts."""
    rows = np.array_split(sample_rows(num_vectors(store), sids.max_fit_items, seed), peers.size)[peers.rank]
    start, stop = (int(rows[0]), int(rows[-1]) + 1) if len(rows) else (0, 0)
    return take_rows(vector_batches(store, fusion, run_behaviour(store, sids), start, stop), rows - start)


def fit_run_fusion(store: Store, sids: SidsConfig, seed: int, behaviour: Float[np.ndarray, "N C"] | None = None) -> Fusion | None:
    """Fit the fusion on a sample of the run's items; None if neither images nor behaviour have a weight.

    Raises:
        ValueError: a view has a weight but fewer than two items have it.
    """
    weights = {"image": sids.image_weight, "behaviour": sids.behaviour_weight}
    weights = {name: weight for name, weight in weights.items() if weight}
    if not weights:
        return None
    rows, views = sample_rows(num_vectors(store), sids.max_fit_items, seed), {}
    if sids.image_weight:
        found = artifacts.dataset_of(store, "item_embeddings").filter(pc.field("image_embedding").is_valid()).head(1)
        dim = len(found["image_embedding"][0]) if len(found) else 1
        batches = artifacts.iter_table(store, "item_embeddings", _IMAGE)
        views["image"] = take_rows((_images(batch, dim) for batch in batches if len(batch)), rows)
    if behaviour is not None:
        views["behaviour"] = behaviour[rows]
    return fit_fusion(take_rows(vector_batches(store), rows), views, weights)


def fit_and_assign(
    store: Store,
    sids: SidsConfig,
    *,
    seed: int,
    report: Callable[[str], None],
    device: str = "cpu",
    watch: Callable[[int, dict[str, Any]], None] | None = None,
    fit: Callable[[Fusion | None], Quantiser] | None = None,
) -> Built:
    """Fit on a sample of the item vectors, assign SIDs to all and compute diagnostics; write nothing.

    Args:
        fit: fits in other processes, which read their own vectors (`sample_of_worker`); this one reads those of diagnostics.
        watch: called ten times while an RQ-VAE trains, with the epochs done and the facts of the sample's nearest codes.
    """
    sids = sized(sids, num_vectors(store))
    behaviour = run_behaviour(store, sids)
    fusion = fit_run_fusion(store, sids, seed, behaviour)
    rows, vectors = _sample(store, MAX_MEASURED_ITEMS if fit else sids.max_fit_items, seed, fusion, behaviour)
    item_ids = _item_ids(store)

    def watch_epoch(quantiser: Quantiser, epoch: int) -> None:
        nearest = assign_sids(quantiser, lambda: iter([vectors]), disambiguation="none")
        facts = _facts(
            store, quantiser, nearest, item_ids.take(pa.array(rows)), rows=np.arange(len(rows)), vectors=vectors, seed=seed
        )
        if watch:
            watch(epoch, facts)

    report(f"fitting {sids.quantiser} {list(sids.sizes)} on {min(len(item_ids), sids.max_fit_items)} items")
    quantiser = (
        fit(fusion) if fit else fit_quantiser(vectors, sids, seed, report, device=device, watch=watch_epoch if watch else None)
    )
    assigned = assign_sids(
        quantiser,
        lambda: vector_batches(store, fusion, behaviour),
        disambiguation=sids.disambiguation,
        spread=sids.spread,
        seed=seed,
    )
    facts = _facts(store, quantiser, assigned, item_ids, rows=rows, vectors=vectors, seed=seed)
    return Built(quantiser, item_ids, assigned, facts, table_spec("item_sids").schema.empty_table(), fusion)


def keep_and_assign(store: Store, earlier: Store, sids: SidsConfig, *, seed: int) -> Built:
    """Take an earlier run's quantiser, keep the SIDs of its items and assign SIDs to new ones; write nothing.

    New items get the behaviour that their text predicts: vectors of behaviour of two runs are not comparable.

    Raises:
        ValueError: the earlier run has another quantiser, level sizes or disambiguation, or vectors of another encoder or
            config.
    """
    _check_same_choices(store, earlier, sids)
    with artifacts.local_files(earlier, "quantiser") as folder:
        quantiser, fusion = load_quantiser(folder), load_fusion(folder)
        retired = pq.read_table(folder / RETIRED) if (folder / RETIRED).is_file() else None
    known = artifacts.read_table(earlier, "item_sids")
    item_ids = _item_ids(store)
    found = continue_sids(
        quantiser,
        pa.concat_tables([known, retired]) if retired is not None else known,
        item_ids,
        lambda: vector_batches(store, fusion),
        disambiguation=sids.disambiguation,
        seed=seed,
    )
    rows, vectors = _sample(store, sids.max_fit_items, seed, fusion)
    facts = _facts(store, quantiser, found.assigned, item_ids, rows=rows, vectors=vectors, seed=seed)
    facts |= {"num_kept_items": len(item_ids) - found.num_new, "num_new_items": found.num_new}
    facts["num_retired_items"] = len(found.retired)
    return Built(quantiser, item_ids, found.assigned, facts, found.retired, fusion)


def save_built(built: Built, folder: Path) -> None:
    """Write what a later run needs to keep the SIDs into a local folder: the quantiser, its fusion and the retired SIDs."""
    save_quantiser(built.quantiser, folder)
    if built.fusion:
        save_fusion(built.fusion, folder)
    if len(built.retired):
        pq.write_table(built.retired, folder / RETIRED)


def _check_same_choices(store: Store, earlier: Store, sids: SidsConfig) -> None:
    found = artifacts.require(earlier, "item_sids").config["sids"]
    chosen = sids.model_dump(mode="json")
    # "auto" is compatible with any level sizes: they are a fact of the kept quantiser
    found = found | {"level_sizes": artifacts.require(earlier, "quantiser").facts["level_sizes"]}
    chosen["level_sizes"] = found["level_sizes"] if sids.level_sizes == "auto" else chosen["level_sizes"]
    other = [f"sids.{key} is {chosen[key]}, there {found[key]}" for key in SAME_CHOICES if chosen[key] != found[key]]
    here, there = (artifacts.require(place, "item_embeddings") for place in (store, earlier))
    other += [
        f"{key} of item_embeddings differ" for key in ("config", "facts") if _vectors_of(here, key) != _vectors_of(there, key)
    ]
    if other:
        raise ValueError(
            f"sids.keep_from = {earlier.root!r}: {'; '.join(other)}; SIDs can be kept only with equal settings: make them "
            f"equal or leave sids.keep_from empty"
        )


def _vectors_of(manifest: Manifest, key: str) -> Any:
    return manifest.config if key == "config" else manifest.facts.get("dim")


def _item_ids(store: Store) -> pa.Array:
    batches = artifacts.iter_table(store, "item_embeddings", ["item_id"])
    return pa.chunked_array([batch["item_id"] for batch in batches], pa.string()).combine_chunks()


def _sample(
    store: Store, max_items: int, seed: int, fusion: Fusion | None, behaviour: Float[np.ndarray, "N C"] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    rows = sample_rows(num_vectors(store), max_items, seed)
    return rows, take_rows(vector_batches(store, fusion, behaviour), rows)


def _facts(
    store: Store,
    quantiser: Quantiser,
    assigned: SidAssignment,
    item_ids: pa.Array,
    *,
    rows: np.ndarray,
    vectors: np.ndarray,
    seed: int,
) -> dict[str, Any]:
    facts = describe_sids(quantiser, assigned, vectors, rows, seed=seed)
    sequences = read_sequences(store, build_id_index(item_ids).find)
    shares, num_pairs = cointeraction_shares(sequences, assigned.codes[:, : len(quantiser.codebooks)])
    facts |= rounded({"cointeraction_prefix_share": shares}) | {"num_cointeraction_pairs": num_pairs}
    facts["largest_collisions"] = largest_collisions(assigned.nearest, item_ids)
    return facts | {"level_sizes": list(assigned.level_sizes)}
