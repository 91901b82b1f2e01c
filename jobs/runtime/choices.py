"""Check settings against the size of the data, so that the first job reports errors that later jobs would run into."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from digr.config import Config
from digr.config.run import MAX_TOWER_ITEMS
from digr.policy.prompts import SPECIAL_TOKENS, items_that_fit
from digr.sids.sizes import sized
from jobs.pipeline import plan


class Counts(NamedTuple):
    """Counts of a run's data after reading and splitting."""

    num_items: int
    split_rows: Mapping[str, int]
    """Rows of `histories` by split."""
    num_images: int
    """Items whose image opens, or is remote and not yet tried."""


def check_choices(config: Config, counts: Counts) -> list[str]:
    """Compare the settings of a run and of its ablations with its data.

    Returns:
        Warnings about settings that lose data, a sentence each.

    Raises:
        ValueError: some settings cannot work; the message has all of them, each with a value that works.
    """
    problems: list[str] = []
    notes: list[str] = []
    for variant, own in {step.config.run.variant: step.config for step in plan(config)}.items():
        where = f"ablation {variant}: " if variant else ""
        found = (*_sids(own, counts), *_training(own, counts), *_lists(own, counts))
        problems += [where + problem for problem in found if problem not in problems]
        notes += [where + note for note in _cut_histories(own) if note not in notes]
    if problems:
        raise ValueError("; ".join(problems))
    return notes


def _sids(config: Config, counts: Counts) -> Iterator[str]:
    sids, num_fitted = config.sids, min(counts.num_items, config.sids.max_fit_items)
    largest = max(sized(sids, counts.num_items).sizes)
    if largest > num_fitted and not sids.keep_from:
        wanted = 'set sids.level_sizes = "auto", or levels of at most that many codes'
        if counts.num_items >= largest:
            wanted = f"raise sids.max_fit_items to {largest} at least, or lower the level"
        yield f"sids.level_sizes: a level has {largest} codes but is fitted on {num_fitted} items; {wanted}"
    if sids.image_weight and not config.embeddings.image_encoder.name:
        yield (
            f"sids.image_weight = {sids.image_weight:g} needs vectors of images, but embeddings.image_encoder is empty; set "
            f"an encoder, or set sids.image_weight = 0"
        )
    elif sids.image_weight and not counts.num_images:
        yield f"sids.image_weight = {sids.image_weight:g}, but no item has an image; set sids.image_weight = 0"


def _num_levels(config: Config) -> int:
    """Return the most levels that a semantic ID can have, its suffix included; "auto" has three."""
    sizes = sized(config.sids, 1).sizes
    return len(sizes) + (config.sids.disambiguation != "none")


def _training(config: Config, counts: Counts) -> Iterator[str]:
    policy, grpo, num_levels = config.policy, config.grpo, _num_levels(config)
    if policy.backbone == "hf" and not policy.base:
        yield 'policy.base is empty; policy.backbone = "hf" needs the folder or hub name of a language model'
    shortest = 2 * num_levels + SPECIAL_TOKENS
    if policy.max_tokens < shortest:
        yield (
            f"policy.max_tokens = {policy.max_tokens} holds no item of {num_levels} tokens beside the next one; set it to "
            f"{shortest} at least"
        )
    for split in ("train", "valid"):
        found = counts.split_rows.get(split, 0)
        if found < config.train.num_workers and (split == "valid" or policy.backbone == "scratch"):
            yield (
                f"train.num_workers = {config.train.num_workers}, but split {split} has {found} rows; lower it, or choose "
                f"another data.split"
            )
    if grpo.enabled and grpo.rollouts != "sample" and grpo.group_size > counts.num_items:
        yield (
            f'grpo.group_size = {grpo.group_size} different roll-outs (grpo.rollouts = "{grpo.rollouts}") need as many items, '
            f"found {counts.num_items}; lower it"
        )


def _lists(config: Config, counts: Counts) -> Iterator[str]:
    k, deepest = config.decoding.k, max(config.evaluation.ks)
    if k > counts.num_items:
        yield f"decoding.k = {k}, but the catalogue has {counts.num_items} items; set it to {counts.num_items} at most"
    if deepest > k:
        yield f"evaluation.ks: cutoff {deepest} is beyond the {k} items listed; raise decoding.k, or leave the cutoff out"
    if config.towers.enabled and counts.num_items > MAX_TOWER_ITEMS:
        yield f"towers: {counts.num_items} items, at most {MAX_TOWER_ITEMS} can be scored; set towers.enabled = false"


def _cut_histories(config: Config) -> Iterator[str]:
    num_levels, longest = _num_levels(config), config.data.max_history
    read = items_that_fit(config.policy.max_tokens, num_levels)
    if read < longest:
        needed = (longest + 1) * num_levels + SPECIAL_TOKENS
        yield (
            f"data.max_history = {longest}, but policy.max_tokens = {config.policy.max_tokens} holds {read} items of "
            f"{num_levels} tokens beside the next one: longer histories lose their oldest items; {needed} tokens hold all"
        )
