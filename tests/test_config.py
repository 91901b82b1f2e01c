"""A config is checked when it is read, and every message says where, what was found and what to do."""

from pathlib import Path

import pytest

from digr.config import apply_overrides, build_config, find_config, load_config
from digr.config.interests import ReplayMiner
from digr.config.presets import PRESETS

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.toml"))


@pytest.fixture
def minimal(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('[run]\ndir = "runs/x"\n')
    return path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_is_valid_and_so_are_its_ablations(path):
    config = load_config(path)
    for ablation in config.ablations:
        assert apply_overrides(config, {**ablation.overrides, "run.variant": ablation.name}).run.variant == ablation.name


def test_a_missing_file_names_the_presets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = rf"config nowhere: no such file in {tmp_path}, and no preset of that name; .* beauty, .*own_data, quickstart$"
    with pytest.raises(ValueError, match=message):
        load_config("nowhere")


@pytest.mark.parametrize("name", ["quickstart", "quickstart.toml", "configs/quickstart.toml", "configs/quickstart"])
def test_a_preset_is_found_by_its_name_from_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config(name).run.dir == "runs/quickstart"


@pytest.mark.parametrize("name", ["elsewhere/quickstart.toml", "/quickstart.toml", "industrial_interests"])
def test_other_paths_stand_for_no_preset(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="no such file in"):
        find_config(name)


def test_a_file_comes_before_the_preset_of_its_name(minimal, monkeypatch):
    monkeypatch.chdir(minimal.parent)
    minimal.rename("quickstart.toml")
    assert load_config("quickstart.toml").run.dir == "runs/x"


def test_a_recording_of_a_preset_is_found_from_any_folder(tmp_path, monkeypatch):
    """A preset's recording was read below the working directory alone, so it was found in a checkout only."""
    miner = load_config("industrial").interests.miners[0]
    monkeypatch.chdir(tmp_path)
    assert miner.recording == str(PRESETS / "industrial_interests" / "responses.parquet")
    assert miner.path == "configs/industrial_interests/responses.parquet"  # the name that a run's manifests record
    nearer = tmp_path / miner.path
    nearer.parent.mkdir(parents=True)
    nearer.touch()
    assert miner.recording == miner.path


@pytest.mark.parametrize("path", ["configs/mine/responses.parquet", "industrial_interests/responses.parquet", "s3://bucket/x"])
def test_other_recordings_are_where_their_path_says(path):
    assert ReplayMiner(name="recorded", path=path).recording == path


def test_a_file_that_is_not_toml_says_where(tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text("[run\n")
    with pytest.raises(ValueError, match=r"bad\.toml: not valid TOML: .*line 1"):
        load_config(path)


def test_a_file_that_is_not_text_is_not_toml(tmp_path):
    path = tmp_path / "bad.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"bad\.toml: not valid TOML"):
        load_config(path)


def test_a_missing_run_dir_is_named(tmp_path):
    path = tmp_path / "empty.toml"
    path.write_text("")
    with pytest.raises(ValueError, match=r"run: Field required"):
        load_config(path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sft.epoch=3", r"sft\.epoch: unknown key; the nearest known key is sft\.epochs"),
        ("towers.num_heads=3", r"towers: dim \(64\) must be a multiple of num_heads \(3\)"),
        ("stf.epochs=3", r"stf: unknown key; the nearest known key is sft"),
        ("grpo.reward.exakt=1", r"grpo\.reward\.exakt: unknown key; the nearest known key is grpo\.reward\.exact"),
        ("data.synthetic.num_item=30", r"nearest known key is data\.synthetic\.num_items"),
        (
            'interests.miners=[{kind="vllm",name="a",model="m",temprature=1}]',
            r"nearest known key is interests\.miners\.0\.vllm\.temperature",
        ),
        ("sft.epochs=0", r"sft\.epochs: Input should be greater than or equal to 1 \(found 0\)"),
        ("sft.epochs=many", r"sft\.epochs: Input should be a valid integer.* \(found 'many'\)"),
        ("policy.dropout=1", r"policy\.dropout: Input should be less than 1 \(found 1\)"),
        ("grpo.loss=ppo", r"grpo\.loss: Input should be 'grpo', 'dr_grpo', 'dapo' or 'gspo' \(found 'ppo'\)"),
        ("sids.level_sizes=[1]", r"sids\.level_sizes: each level needs 2 to 65536 codes, found \[1\]"),
        (
            "data.path=/shop",
            r"data\.path = '/shop' is not read with data\.source = \"synthetic\"; set data\.source = \"parquet\", or leave",
        ),
        ("policy.num_heads=3", r"policy: hidden_dim \(128\) must be a multiple of num_heads \(3\)"),
        ("sids={image_weight=0.5,behaviour_weight=0.5}", r"sids: image_weight \(0\.5\) and behaviour_weight \(0\.5\) leave no"),
        ("sids.level_sizes=[" + "4," * 26 + "]", r"sids\.level_sizes: at most 25 levels have a letter, found 26"),
        ("sids.level_sizes=all", r"sids\.level_sizes.*Input should be 'auto' \(found 'all'\)"),
        ("decoding.k=100", r"decoding: beam_width \(50\) must be at least k \(100\)"),
        ("train.engine=plain", r'train: engine = "plain" runs one worker, found num_workers = 2'),
        (
            'interests.miners=[{kind="extractive"},{kind="extractive"}]',
            r"names must differ, found \['extractive', 'extractive'\]",
        ),
        ('interests.miners=[{kind="oracle"}]', r"'oracle' .*does not match any of the expected tags"),
        ("run.variant=Not-This", r"run\.variant: String should match pattern"),
    ],
)
def test_a_wrong_value_is_explained(minimal, override, message):
    with pytest.raises(ValueError, match=message):
        load_config(minimal, [override])


@pytest.mark.parametrize("override", ["sft.epochs", "=3", "epochs 3"])
def test_an_override_without_key_or_value_shows_the_form(minimal, override):
    with pytest.raises(ValueError, match=r"expected section\.key=value, for example sft\.epochs=3"):
        load_config(minimal, [override])


def test_an_override_through_a_value_is_refused(minimal):
    with pytest.raises(ValueError, match=r"override run\.dir\.x: dir is a value, not a section"):
        load_config(minimal, ["run.dir.x=1"])


def test_all_problems_are_told_at_once(minimal):
    with pytest.raises(ValueError, match=r"sft\.epochs.*; .*grpo\.stepz"):
        load_config(minimal, ["sft.epochs=0", "grpo.stepz=1"])


def test_override_values_are_toml_and_else_strings(minimal):
    config = load_config(
        minimal,
        [
            "sids.level_sizes=[8, 16]",
            "cluster.use_gpu=true",
            "sft.lr=1e-4",
            "data.source=parquet",
            "data.path=/some/where",
            "run.dir=a=b",
        ],
    )
    assert config.sids.level_sizes == (8, 16)
    assert config.cluster.use_gpu is True
    assert config.sft.lr == 1e-4
    assert config.data.path == "/some/where"
    assert config.run.dir == "a=b"


def test_the_last_override_of_a_key_wins(minimal):
    assert load_config(minimal, ["sft.epochs=3", "sft.epochs=5"]).sft.epochs == 5


def test_apply_overrides_changes_nothing_else(minimal):
    config = load_config(minimal)
    changed = apply_overrides(config, {"sft.epochs": 7})
    assert changed.sft.epochs == 7
    assert changed.model_copy(update={"sft": config.sft}) == config
    with pytest.raises(ValueError, match=r"overrides: sft\.epoch: unknown key"):
        apply_overrides(config, {"sft.epoch": 7})


def test_a_config_survives_its_own_dump(minimal):
    config = load_config(minimal, ['interests.miners=[{kind="replay",name="r",path="p"},{kind="extractive"}]'])
    assert build_config(config.model_dump(mode="json"), "dump") == config


def test_a_left_out_miner_must_exist():
    miners = [{"kind": "extractive"}]
    with pytest.raises(
        ValueError, match=r"embeddings.without_miners: no miner is called 'llm', expected some of \['extractive'\]"
    ):
        build_config({"run": {"dir": "x"}, "interests": {"miners": miners}, "embeddings": {"without_miners": ["llm"]}}, "test")


def test_overrides_keep_what_is_no_part_of_a_results_identity():
    """Caps and rates of mining, which no dump holds, went back to their defaults in every ablation."""
    config = build_config({"run": {"dir": "x"}, "interests": {"max_usd": 3.5, "max_failed_rate": 0.1}}, where="test")
    changed = apply_overrides(config, {"sft.epochs": 3})
    assert (changed.interests.max_usd, changed.interests.max_failed_rate, changed.sft.epochs) == (3.5, 0.1, 3)
    assert apply_overrides(config, {}) == config
