"""The interests of its user that a prompt shows: one rule for training, decoding and serving."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from digr.interests.prompts import interests_known
from digr.policy.tasks import joined_interests
from digr.tables import flat_interests


class ShownInterests(NamedTuple):
    """The interests that the prompts of some users may show."""

    labels: pa.Table | None
    """Rows of `interest_labels` as `flat_interests` makes them; None if prompts show no interests."""
    most: int | None
    """Number of strongest interests of a user that are shown; None for all."""
    max_chars: int
    """Most characters of their text."""

    def of_users(self, user_ids: pa.Array) -> pa.StringArray:
        """Return the text for each user, null if there is none."""
        if self.labels is None:
            return pa.nulls(len(user_ids), pa.string())
        return joined_interests(self.labels, "user", user_ids, self.max_chars, self.most)

    def of_rows(self, rows: pa.Table) -> pa.StringArray:
        """Return the text for each row of `histories`, null also if its user's interests must not be shown.

        Args:
            rows: for each user either all train rows, in time order, or none of them; see `interests_known`.
        """
        return pc.if_else(pa.array(interests_known(rows)), self.of_users(rows["user_id"].combine_chunks()), None)


def shown_interests(config: Mapping[str, Any], read_labels: Callable[[], pa.Table]) -> ShownInterests:
    """Read the interests that prompts show, unless they show none.

    Args:
        config: the config in a policy's manifest (the prompts that the policy was trained on), or a whole run's. Manifests of
            old policies lack the fields; then prompts show no interests.
        read_labels: reads the users' rows of `interest_labels`.
    """
    most = config.get("policy", {}).get("prompt_interests", 0)
    if not most:
        return ShownInterests(None, 0, 0)
    return ShownInterests(flat_interests(read_labels()), most, config["tasks"]["max_text_chars"])
