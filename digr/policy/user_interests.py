"""What a prompt shows of its user's interests: one rule for training, decoding and serving."""

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
    """Rows of `interest_labels` as `flat_interests` makes them; None where prompts show no interests."""
    most: int | None
    """Interests of a user at most, the strongest; None for all."""
    max_chars: int
    """Characters of their text at most."""

    def of_users(self, user_ids: pa.Array) -> pa.StringArray:
        """Return the text for each user, null where there is none."""
        if self.labels is None:
            return pa.nulls(len(user_ids), pa.string())
        return joined_interests(self.labels, "user", user_ids, self.max_chars, self.most)

    def of_rows(self, rows: pa.Table) -> pa.StringArray:
        """Return the text for each row of `histories`, null also where its user's interests may not be shown.

        Args:
            rows: all train rows of each of their users, in time order, or none; see `interests_known`.
        """
        return pc.if_else(pa.array(interests_known(rows)), self.of_users(rows["user_id"].combine_chunks()), None)


def shown_interests(config: Mapping[str, Any], read_labels: Callable[[], pa.Table]) -> ShownInterests:
    """Read what prompts show of their users' interests; nothing is read where they show none.

    Args:
        config: of a policy's manifest, which says what that policy was trained on, or a whole run's. The manifest of a policy
            from before there were such prompts does not mention them.
        read_labels: reads the users' rows of `interest_labels`.
    """
    most = config.get("policy", {}).get("prompt_interests", 0)
    if not most:
        return ShownInterests(None, 0, 0)
    return ShownInterests(flat_interests(read_labels()), most, config["tasks"]["max_text_chars"])
