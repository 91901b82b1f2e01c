"""Refuse a version whose parts were not made from each other, such as a policy with semantic IDs that it was not trained on."""

from digr import artifacts
from digr.artifacts import Store

MADE_FROM = {
    "item_embeddings": ("items",),
    "item_sids": ("item_embeddings",),
    "interest_labels": ("items",),
    "canonical_interests": ("items", "interest_labels"),
}
"""Inputs that must be those of the run, by artifact; what the run does not have is not compared."""
OF_THE_RANKER = {"ranking_index": ("items", "interest_labels"), "ranker": ("ranking_index", "items")}


def check_parts(store: Store, policy: str, *, has_ranker: bool) -> None:
    """Compare what the parts of a run were made from with what is there.

    Args:
        policy: name of the policy's artifact.
        has_ranker: whether the run's ranker, if there is one, is served.

    Raises:
        ValueError: a part was made from another build; the message has both digests and the job to run.
    """
    trained_on = artifacts.require(store, policy).inputs.get("item_sids")
    if trained_on is None:
        raise ValueError(
            f"{store.uri(policy)}: its manifest does not say on which item_sids it was trained, so it cannot be served with any; "
            f"run `{artifacts.command_of(policy)} --force`"
        )
    artifacts.check_lineage(store, policy, ["item_sids"])
    for name, inputs in (MADE_FROM | (OF_THE_RANKER if has_ranker else {})).items():
        if artifacts.read_manifest(store, name) is not None:
            artifacts.check_lineage(store, name, inputs)
    quantiser, sids = artifacts.read_manifest(store, "quantiser"), artifacts.require(store, "item_sids")
    if quantiser is not None and quantiser.inputs != sids.inputs:
        raise ValueError(
            f"{store.uri('quantiser')}: made from {quantiser.inputs}, but {store.uri('item_sids')} from {sids.inputs}; "
            f"run `digr sids build CONFIG --force` to build both"
        )
