"""The config and the counts reveal early what a later job would fail on."""

from pathlib import Path

import pytest

from digr.config import build_config, load_config
from jobs.runtime.choices import Counts, check_choices

ENOUGH = Counts(num_items=5_000, split_rows={"train": 9_000, "valid": 900, "test": 900}, num_images=0)
CONFIGS = sorted((Path(__file__).parents[3] / "configs").glob("*.toml"))


def _config(**sections):
    sids = {"level_sizes": [256, 256, 256]} | sections.pop("sids", {})
    return build_config({"run": {"dir": "x"}, "sids": sids} | sections, where="test")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_shipped_configs_bear_their_catalogues(path):
    assert check_choices(load_config(path), ENOUGH._replace(num_images=9)) == []


@pytest.mark.parametrize(
    ("sections", "counts", "message"),
    [
        (
            {},
            {"num_items": 50},
            r'^sids\.level_sizes: a level has 256 codes but is fitted on 50 items; set sids\.level_sizes = "auto", or levels of '
            r"at most that many codes$",
        ),
        (
            {"sids": {"max_fit_items": 100}},
            {},
            r"256 codes but is fitted on 100 items; raise sids\.max_fit_items to 256 at least, or lower the level",
        ),
        (
            {"sids": {"image_weight": 0.3}},
            {},
            r"sids\.image_weight = 0\.3 needs vectors of images, but embeddings\.image_encoder is empty",
        ),
        (
            {"sids": {"image_weight": 0.3}, "embeddings": {"image_encoder": "clip"}},
            {},
            r"sids\.image_weight = 0\.3, but no item has an image; set sids\.image_weight = 0",
        ),
        ({"policy": {"backbone": "hf"}}, {}, r'policy\.base is empty; policy\.backbone = "hf" needs the folder or hub name'),
        (
            {"policy": {"max_tokens": 9}},
            {},
            r"policy\.max_tokens = 9 holds no item of 4 tokens beside the next one; set it to 10 at least",
        ),
        (
            {"train": {"num_workers": 4}},
            {"split_rows": {"train": 9, "valid": 3, "test": 3}},
            r"^train\.num_workers = 4, but split valid has 3 rows; lower it, or choose another data\.split$",
        ),
        (
            {"sids": {"level_sizes": "auto"}, "decoding": {"k": 10, "beam_width": 10}},
            {"num_items": 12},
            r'^grpo\.group_size = 16 different roll-outs \(grpo\.rollouts = "beam"\) need as many items, found 12; lower it$',
        ),
        (
            {"sids": {"level_sizes": "auto"}, "grpo": {"group_size": 8}},
            {"num_items": 12},
            r"^decoding\.k = 20, but the catalogue has 12 items; set it to 12 at most$",
        ),
        ({"evaluation": {"ks": [5, 50]}}, {}, r"evaluation\.ks: cutoff 50 is beyond the 20 items listed; raise decoding\.k"),
        (
            {"towers": {"enabled": True}},
            {"num_items": 200_001},
            r"towers: 200001 items, at most 200000 can be scored; set towers\.enabled = false",
        ),
        (
            {"ablations": [{"name": "wide", "overrides": {"sids.level_sizes": [6_000]}}]},
            {},
            r"^ablation wide: sids\.level_sizes: a level has 6000 codes but is fitted on 5000 items",
        ),
    ],
)
def test_a_choice_that_would_fail_later_is_refused_with_what_to_set(sections, counts, message):
    with pytest.raises(ValueError, match=message):
        check_choices(_config(**sections), ENOUGH._replace(**counts))


def test_all_that_is_wrong_is_said_at_once_and_once():
    ablation = {"name": "plain", "overrides": {"embeddings.interests": "none"}, "grpo": True}
    with pytest.raises(ValueError, match=r"sids\.level_sizes.*; grpo\.group_size.*; decoding\.k") as error:
        check_choices(_config(ablations=[ablation]), ENOUGH._replace(num_items=10))
    assert "ablation plain" not in str(error.value)


def test_auto_and_what_the_choice_leaves_out_fit_any_catalogue():
    small = {"sids": {"level_sizes": "auto"}, "decoding": {"k": 10, "beam_width": 10}, "grpo": {"group_size": 8}}
    assert check_choices(_config(**small), ENOUGH._replace(num_items=10)) == []
    kept = {"sids": {"keep_from": "earlier"}}  # its quantiser was fitted on another catalogue
    assert check_choices(_config(**kept), ENOUGH._replace(num_items=200)) == []
    sampled = {"grpo": {"group_size": 300, "rollouts": "sample"}, "sids": {"level_sizes": [8]}}
    assert check_choices(_config(**sampled), ENOUGH._replace(num_items=200)) == []


def test_histories_that_the_policy_cannot_hold_are_noted():
    found = check_choices(_config(data={"max_history": 50}, policy={"max_tokens": 64}), ENOUGH)
    assert found == [
        "data.max_history = 50, but policy.max_tokens = 64 holds 14 items of 4 tokens beside the next one: longer histories lose "
        "their oldest items; 206 tokens hold all"
    ]
    assert check_choices(_config(data={"max_history": 50}, policy={"max_tokens": 206}), ENOUGH) == []
