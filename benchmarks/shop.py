"""The embedded shop with random semantic IDs: realistic data to time the policy, where codes need no meaning."""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from digr.config.run import DataConfig, SyntheticConfig
from digr.data.common_form import table_source
from digr.data.ids import build_id_index
from digr.data.preparing import prepare_tables
from digr.data.synthetic import build_shop
from digr.policy.examples import Sids
from digr.policy.vocabulary import sid_texts
from digr.sids.trie import SidTrie, build_trie

MAX_HISTORY = 10


class Shop(NamedTuple):
    """What training reads."""

    histories: pa.Table
    trie: SidTrie
    sids: Sids

    def split(self, name: str) -> pa.Table:
        """Return the histories of one split."""
        return self.histories.filter(pc.equal(self.histories["split"], name))


def random_shop(level_sizes: tuple[int, ...], num_users: int) -> Shop:
    """Generate the shop and give its items different random SIDs."""
    shop = build_shop(SyntheticConfig(num_users=num_users), seed=0)
    histories = prepare_tables(table_source(shop.items, shop.interactions), DataConfig(max_history=MAX_HISTORY)).histories
    ids = shop.items["item_id"].combine_chunks()
    keys = np.random.default_rng(0).choice(int(np.prod(level_sizes)), len(ids), replace=False)
    codes = np.stack(np.unravel_index(keys, level_sizes), 1).astype(np.int32)
    return Shop(histories, build_trie(ids, codes, level_sizes), Sids(build_id_index(ids), sid_texts(codes)))
