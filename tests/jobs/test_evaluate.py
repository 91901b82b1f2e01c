"""The evaluation job on a run directory whose lists are known."""

import json
import re
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from plotly.offline import get_plotlyjs

from digr import artifacts
from digr.artifacts import Manifest, Store
from digr.config import Config, build_config
from digr.evaluation.run_facts import rollout_examples
from jobs.evaluate import find_systems, run
from jobs.runtime.session import Options
from tests.nested_interests import nest_rows

ITEMS = [f"i{index:02d}" for index in range(20)]
STRINGS = pa.list_(pa.string())


def _config(folder, **extra) -> Config:
    tree = {
        "run": {"dir": str(folder)},
        "ablations": [{"name": "plain", "overrides": {"embeddings.interests": "none"}}],
        "evaluation": {"bootstrap": 100},
        "ranking": {"enabled": False},
    }
    return build_config(tree | extra, "test")


def _put(store: Store, name: str, table: pa.Table) -> None:
    artifacts.commit(store, Manifest(name=name, rows=artifacts.write_table(store, name, table)))


def _lists(store: Store, name: str, places: dict[str, int]) -> None:
    """Lists of ten items with the target i00 at a place from 1, or nowhere (0)."""
    lists = []
    for place in places.values():
        items = ITEMS[1:11]
        if place:
            items[place - 1] = ITEMS[0]
        lists.append(items)
    table = {"example_id": list(places), "item_ids": pa.array(lists, STRINGS), "scores": [[0.0] * 10] * len(lists)}
    _put(store, name, pa.table(table))


@pytest.fixture
def run_dir(tmp_path):
    store, plain = Store(str(tmp_path)), Store(str(tmp_path), "plain")
    _put(store, "items", pa.table({"item_id": ITEMS, "title": [f"title <{item}>" for item in ITEMS]}))
    rows = [("t0", "u", "train", ["i01"], "i02"), ("v0", "u", "valid", ["i02"], "i00"), ("s0", "u", "test", ["i03"], "i00")]
    rows += [("s1", "v", "test", ["i00", "i04"], "i00")]
    names = ("example_id", "user_id", "split", "history", "target")
    columns = dict(zip(names, zip(*rows, strict=True), strict=True))
    _put(store, "histories", pa.table({name: list(column) for name, column in columns.items()}))
    for target, stage, places in ((plain, "sft", (0, 0)), (store, "sft", (2, 0)), (store, "grpo", (1, 7))):
        _lists(target, f"recommendations/{stage}_valid", {"v0": 1})
        _lists(target, f"recommendations/{stage}_test", dict(zip(("s0", "s1"), places, strict=True)))
    return tmp_path


def test_every_system_and_baseline_is_measured_on_the_same_examples(run_dir, capsys):
    summary = run(_config(run_dir), Options())
    assert summary["status"] == "built"
    rows = artifacts.read_table(Store(str(run_dir)), "metrics").to_pylist()
    hits = {
        row["system"]: row["value"]
        for row in rows
        if (row["split"], row["slice"], row["name"], row["k"]) == ("test", "all", "hr", 5)
    }
    assert list(hits) == [
        "popularity",
        "transition_counts",
        "transition_counts_history",
        "sid_sft[plain]",
        "sid_sft",
        "sid_grpo",
    ]
    assert [hits[name] for name in ("sid_sft[plain]", "sid_sft", "sid_grpo")] == [0.0, 0.5, 0.5]
    assert "different_day" not in {row["slice"] for row in rows}  # no times are known
    printed = capsys.readouterr().out
    lines = [line.split() for line in printed.splitlines()]
    assert ["test", "HR@5", "NDCG@5", "HR@10", "NDCG@10"] in lines
    assert ["sid_grpo", "0.5000"] in [line[:2] for line in lines]
    assert "in brackets: 95 % bootstrap intervals, users resampled" in printed
    page = Path(summary["report"]).read_text()
    assert "95 % bootstrap intervals, users resampled" in page
    gains = page.split("Gain in NDCG@10, test")[1].split("</table>")[0]
    heads = ["system", "over", "gain", "95 % interval, users", "users and target items", "p-value"]
    assert re.findall(r"<th scope=\"col\"[^>]*>([^<]*)</th>", gains) == heads
    cells = re.search(r"sid_grpo</th>(.*?)</tr>", gains, re.DOTALL)[1]
    assert len(re.findall(r"[+-]\d\.\d{4} to [+-]\d\.\d{4}</td>", cells)) == 2


def test_the_report_is_complete_in_itself_and_escapes_the_data(run_dir):
    summary = run(_config(run_dir), Options())
    page = Path(summary["report"]).read_text()
    assert page.count(get_plotlyjs()) == 1
    page = page.replace(get_plotlyjs(), "")
    assert re.findall(r"https?://[^\s\"'<]+|(?:src|href)\s*=\s*.?//", page) == []
    assert "title &lt;i00&gt;" in page
    assert "title <i00>" not in page
    assert "bought next:" in page


def test_the_report_names_what_was_not_built(run_dir):
    page = Path(run(_config(run_dir), Options())["report"]).read_text()
    for name in ("interests", "item_sids", "classifier", "SFT training log", "policy_grpo", "item_sids [plain]"):
        assert f"{name}: not built" in page


def test_the_report_shows_the_last_rollouts_with_titles_and_reward_terms(run_dir):
    store = Store(str(run_dir))
    terms = {"exact": 1.0, "valid": 0.0, "interest": 0.25}
    lines = [
        {
            "step": step,
            "example_id": "t0",
            "prompt": "",
            "target": "i02",
            "rollouts": [{"item_id": "i07", "reward": 1.075, "terms": terms}],
        }
        for step in (1, 2, 3, 4, 5)
    ]
    artifacts.begin(store, "policy_grpo")
    (run_dir / "policy_grpo").mkdir(exist_ok=True)
    (run_dir / "policy_grpo" / "rollouts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    artifacts.commit(store, Manifest(name="policy_grpo"))
    assert [row["step"] for row in rollout_examples(store, 4)] == [5, 4, 3, 2]
    page = Path(run(_config(run_dir), Options())["report"]).read_text()
    table = page.split("What GRPO rolled out")[1].split("</table>")[0]
    assert "title &lt;i07&gt; <b>1.075</b>" in table
    assert re.search(r"exact 1.00,\s+interest 0.25", table)
    assert "valid 0.00" not in table


def test_the_report_says_what_each_miner_was_worth_and_what_leaving_it_out_costs(run_dir):
    row = {"owner_id": "i00", "interest": "camp cooking", "miners": ["llm"]}
    worth = {"requests": 1234, "ok": 1200, "failed": 34, "broken_images": 0, "input_tokens": 5000, "output_tokens": 700}
    worth |= {"cost_usd": 1.25, "interests": 2468, "interests_per_request": 2.0, "agreement_rate": 0.4321}
    store = Store(str(run_dir))
    artifacts.write_table(store, "interests", nest_rows("interests", [row], ["i00"]))
    artifacts.commit(store, Manifest(name="interests", rows=1, facts={"miners": {"llm": worth, "other": worth}}))
    ablations = [{"name": "plain", "overrides": {"embeddings.without_miners": ["llm"]}}]
    page = Path(run(_config(run_dir, ablations=ablations), Options())["report"]).read_text()
    found = {name: re.search(rf'<th scope="row">{name}</th>(.*?)</tr>', page, re.DOTALL)[1] for name in ("llm", "other")}
    cells = {name: re.findall(r"<td[^>]*>([^<]*)</td>", text) for name, text in found.items()}
    common = ["1,234", "1,200", "34", "0", "5,700", "1.25", "2,468", "2.00", "0.4321"]
    assert cells == {"llm": [*common, "1.0000"], "other": [*common, "–"]}
    assert "with all miners it is 1.0000" in page and "miners: llm" not in page
    assert '<th scope="col" class="n">validation NDCG@10 without it</th>' in page


def test_metrics_json_is_strict_json(run_dir):
    run(_config(run_dir), Options())

    def refuse(constant):
        raise AssertionError(constant)

    found = json.loads((run_dir / "report" / "metrics.json").read_text(), parse_constant=refuse)
    assert all(row["low_with_items"] <= row["high_with_items"] for row in found["comparisons"])
    compared = {row["baseline"] for row in found["comparisons"] if row["system"] == "sid_grpo"}
    assert compared == {"popularity", "transition_counts", "transition_counts_history", "sid_sft[plain]", "sid_sft"}


def test_a_second_run_is_skipped_and_equal_seeds_give_equal_tables(run_dir):
    run(_config(run_dir), Options())
    first = (run_dir / "report" / "metrics.json").read_text()
    assert run(_config(run_dir), Options())["status"] == "skipped"
    run(_config(run_dir), Options(force="all"))
    assert (run_dir / "report" / "metrics.json").read_text() == first


def test_an_ablation_that_has_no_lists_is_named(run_dir):
    wanted = _config(run_dir, ablations=[{"name": "other", "overrides": {}}])
    with pytest.raises(ValueError, match="artifact variants/other/recommendations/sft_valid does not exist"):
        run(wanted, Options())


@pytest.mark.parametrize("enabled", [True, False])
def test_a_run_without_grpo_is_evaluated_and_says_so(run_dir, enabled, capsys):
    """Lists of GRPO were asked for whether or not the run had it."""
    if enabled:
        for split in ("valid", "test"):
            shutil.rmtree(run_dir / "recommendations" / f"grpo_{split}")
    summary = run(_config(run_dir, grpo={"enabled": enabled}), Options())
    assert [name for name in summary["facts"]["metrics"]["systems"] if name.startswith("sid_")] == ["sid_sft[plain]", "sid_sft"]
    assert "policy_grpo: left out: " in capsys.readouterr().out


def test_lists_of_a_policy_that_was_trained_again_are_not_evaluated(run_dir):
    store = Store(str(run_dir), "plain")
    artifacts.begin(store, "policy_sft")
    artifacts.commit(store, Manifest(name="policy_sft", facts={"steps": 2}))
    table = artifacts.read_table(store, "recommendations/sft_test")
    artifacts.commit(store, Manifest(name="recommendations/sft_test", rows=len(table), inputs={"policy_sft": "earlier"}))
    with pytest.raises(
        ValueError, match=r"plain/recommendations/sft_test: made from policy_sft earlier, .* `digr recommend CONFIG --force`"
    ):
        run(_config(run_dir), Options())


def test_the_order_of_systems_is_that_of_the_table():
    ablations = [{"name": "a", "overrides": {}}, {"name": "b", "overrides": {}, "grpo": True}]
    names = [name for name, _, _ in find_systems(_config("runs/x", ablations=ablations), Options(dry_run=True))]
    assert names == ["sid_sft[a]", "sid_sft[b]", "sid_grpo[b]", "sid_sft", "sid_grpo"]
    with_towers = find_systems(_config("runs/x", ablations=ablations, towers={"enabled": True}), Options(dry_run=True))
    assert [name for name, _, _ in with_towers] == ["sasrec", "text_tower", "two_towers", *names]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"run": {"dir": "runs/x", "variant": "plain"}}, "run.variant = 'plain'"),
        ({"evaluation": {"ks": [5, 50]}}, "evaluation.ks: cutoff 50 is beyond the 20 items listed; raise decoding.k"),
    ],
)
def test_what_cannot_be_evaluated_is_said_at_once(extra, message):
    with pytest.raises(ValueError, match=message):
        run(_config("runs/x", **extra), Options())


def test_the_report_shows_the_held_out_curves_the_labelers_agreement_and_the_quality(run_dir):
    store = Store(str(run_dir))
    points = {"reliability": [{"probability": 0.2, "share": 0.25, "pairs": 9}]}
    points["threshold"] = [{"threshold": 0.5, "trusted_rate": 0.4, "precision": 0.8, "recall": 0.7}]
    (run_dir / "classifier").mkdir(exist_ok=True)
    metrics = {"auroc": 0.9123, "auroc_near_swap": 0.8, "expected_calibration_error": 0.02}
    (run_dir / "classifier" / "evaluation.json").write_text(json.dumps({"metrics": metrics} | points))
    artifacts.commit(store, Manifest(name="classifier", rows=1, facts=metrics))
    agreement = {"classifier and judge": {"num_interests": 1234, "kappa": 0.4321, "correlation": None}}
    labelers = {name: {"num_interests": 2345, "trusted_rate": 0.8765} for name in ("classifier", "judge")}
    facts = {"labelers": labelers, "agreement": agreement, "quality_counts": [1, 2, 3], "mean_quality": 0.5}
    (run_dir / "interest_labels").mkdir(exist_ok=True)
    artifacts.commit(store, Manifest(name="interest_labels", rows=1, facts=facts))
    page = Path(run(_config(run_dir), Options())["report"]).read_text()
    section = page.split('<section id="labels">')[1].split("</section>")[0]
    assert re.findall(r'<div id="(chart-[^"]*)"', section) == ["chart-held-out", "chart-quality"]
    assert '"0.912","0.800"' in section
    cells = re.search(r"classifier and judge</th>(.*?)</tr>", section, re.DOTALL)[1]
    assert re.findall(r"<td[^>]*>([^<]*)</td>", cells) == ["1,234", "0.4321", "–"]
    assert section.count("0.8765") == 2
