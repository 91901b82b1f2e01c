"""The worker that turns histories into lists: those of the policy, and those of the rankers over all sources."""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from digr import artifacts
from digr.artifacts import Store
from digr.config import Config
from digr.data.ids import build_id_index
from digr.partitions import Part, iter_part, read_part
from digr.policy.decoding.search import Recommendation, recommend
from digr.policy.examples import Sids, prompt_examples
from digr.policy.model import load_policy
from digr.policy.reasons import load_item_interests, shared_interests
from digr.policy.user_interests import shown_interests
from digr.policy.vocabulary import sid_texts
from digr.ranking.examples import histories_of
from digr.ranking.lists import RankedLists, load_list_ranker, source_names
from digr.ranking.neighbours import Neighbours
from digr.ranking.systems import SERVED, System, sources_of
from digr.sids.trie import load_trie
from digr.tables import HELD_OUT, conform

BATCH_HISTORIES = 4096
"""Rows of `histories` per batch."""


def names_of(system: str) -> dict[str, str]:
    """Return the artifact of each split."""
    return {split: f"recommendations/{system}_{split}" for split in HELD_OUT}


class Recommend:
    """Turn a part of `histories` into the same parts of `recommendations/<policy>_<split>`, for one policy."""

    def __init__(self, config: Config, store: Store, policy: str, systems: Sequence[System]) -> None:
        import torch

        torch.set_num_threads(config.cluster.encode_threads)
        device = "cuda" if config.cluster.use_gpu else "cpu"
        self.config, self.store, self.policy_name = config, store, policy
        self.systems = systems
        self.learned = artifacts.require(store, f"policy_{policy}").config
        self.trie = load_trie(store).to(device)
        self.ids = build_id_index(self.trie.item_ids)
        self.interests = load_item_interests(store, self.trie.item_ids)
        self.sids = Sids(self.ids, sid_texts(self.trie.codes.cpu().numpy()))
        with artifacts.local_files(store, f"policy_{policy}") as folder:
            self.policy = load_policy(folder, device, config.decoding.dtype, config.policy.attention)
        if self.systems:
            self.load_rankers()

    def load_rankers(self) -> None:
        """Load the rankers of validation and of test histories."""
        self.items = build_id_index(artifacts.read_table(self.store, "items", ["item_id"])["item_id"])
        self.item_of_trie = self.items.find_all(self.trie.item_ids, "item_sids")
        self.trie_of_item = np.argsort(self.item_of_trie)
        grains = len(self.config.ranking.interest_cosines)
        with (
            artifacts.local_files(self.store, "ranking_index") as index,
            artifacts.local_files(self.store, "ranker") as folder,
        ):
            self.rankers = {split: load_list_ranker(index, folder, self.systems, split, grains) for split in HELD_OUT}

    def __call__(self, part: Part) -> Iterator[tuple[str, pa.Table]]:
        """Rank items for a part."""
        shown = shown_interests(self.learned, lambda: read_part(self.store, "interest_labels", part))
        for rows in iter_part(self.store, "histories", part, BATCH_HISTORIES):
            histories = rows.filter(pc.is_in(rows["split"], pa.array(HELD_OUT)))
            if len(histories):
                interests = shown.of_rows(histories)
                found = self.search(histories, interests)
                yield from self.own_lists(histories, interests, found)
                for split in HELD_OUT if self.systems else ():
                    yield from self.ranked_lists(split, histories, interests, found)

    def search(self, histories: pa.Table, interests: pa.Array) -> list[Recommendation]:
        """Return the policy's list for each history and its shown interests; as long as the beam if the policy is a source."""
        k = self.config.decoding.beam_width if self.systems else self.config.decoding.k
        prompts = prompt_examples(histories, self.sids, self.config.data.max_history, interests)["prompt"].to_pylist()
        return self._search(prompts, k)

    def own_lists(self, histories: pa.Table, interests: pa.Array, found: list[Recommendation]) -> Iterator[tuple[str, pa.Table]]:
        """Write the policy's own lists."""
        k = self.config.decoding.k
        columns = {
            "example_id": histories["example_id"].combine_chunks(),
            "item_ids": pa.array([one.item_ids[:k] for one in found], pa.list_(pa.string())),
            "scores": pa.array([one.scores[:k] for one in found], pa.list_(pa.float64())),
            "reasons": self._reasons(histories, interests, [one.places[:k] for one in found]),
            "is_proven": pa.array([one.is_proven(k) for one in found]),
        }
        table = conform("recommendations", pa.table(columns), "recommendations")
        for split in HELD_OUT:
            yield names_of(self.policy_name)[split], table.filter(pc.equal(histories["split"], split))

    def ranked_lists(
        self, split: str, histories: pa.Table, interests: pa.Array, found: list[Recommendation]
    ) -> Iterator[tuple[str, pa.Table]]:
        """Write the rankers' lists over all sources, for the histories of one split."""
        mask = pc.equal(histories["split"], split).combine_chunks()
        rows, shown, chosen = histories.filter(mask), interests.filter(mask), np.flatnonzero(mask)
        lists = [self.item_of_trie[found[row].places] for row in chosen.tolist()]
        ends = np.concatenate([[0], np.cumsum([len(one) for one in lists])]).astype(np.int64)
        item = np.concatenate([*lists, np.zeros(0, np.int64)]).astype(np.int32)
        generated = Neighbours(ends, item, np.ones(len(item), np.float32))
        known = histories_of(rows, self.items, self.config.data.max_history)
        for batch, ranked in self.rankers[split].rank(known, generated, self.config.decoding.k):
            part, told = rows.slice(batch.start, batch.stop - batch.start), shown[batch]
            for system, made in ranked.items():
                yield names_of(system.name)[split], self._ranked_table(part, told, system, made)

    def _ranked_table(self, rows: pa.Table, interests: pa.Array, system: System, made: RankedLists) -> pa.Table:
        ends = pa.array(made.start, pa.int32())
        columns = {
            "example_id": rows["example_id"].combine_chunks(),
            "item_ids": pa.ListArray.from_arrays(ends, self.items.ids.take(pa.array(made.candidates.item))),
            "scores": pa.ListArray.from_arrays(ends, pa.array(made.score, pa.float64())),
        }
        if system == SERVED:
            places = np.split(self.trie_of_item[made.candidates.item], made.start[1:-1])
            columns["reasons"] = self._reasons(rows, interests, places)
            columns["sources"] = pa.ListArray.from_arrays(ends, source_names(made.candidates, sources_of(system)))
        return conform("recommendations", pa.table(columns), "recommendations")

    def _reasons(self, histories: pa.Table, interests: pa.Array, places: Sequence[np.ndarray]) -> pa.Array:
        """Return the interests that each item shares with its history or its user."""
        history = histories["history"].combine_chunks()
        known, ends = self.ids.find(history.flatten()), history.value_lengths().to_numpy().cumsum()
        spans = np.split(known, ends)[: len(places)]  # the piece after the last end is empty
        told = zip(spans, places, interests.to_pylist(), strict=True)
        return pa.array([shared_interests(self.interests, *each) for each in told], pa.list_(pa.list_(pa.string())))

    def _search(self, prompts: list[str], k: int) -> list[Recommendation]:
        """Decode prompts, batched by similar length."""
        found, decoding = dict[int, Recommendation](), self.config.decoding
        widest = decoding.max_beam_width if decoding.exact else 0
        order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
        for start in range(0, len(order), decoding.batch_size):
            rows = order[start : start + decoding.batch_size]
            batch = [prompts[row] for row in rows]
            found.update(zip(rows, recommend(self.policy, self.trie, batch, k, decoding.beam_width, widest=widest), strict=True))
        return [found[row] for row in range(len(prompts))]
