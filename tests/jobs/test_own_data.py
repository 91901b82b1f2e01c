"""The guide to one's own data does what it says: commands of the released wheel go from two CSV files to recommendations."""

import csv
import json
import re
import shlex
from pathlib import Path

import pyarrow.dataset as pads
import pytest

from digr.config.run import SyntheticConfig
from digr.data.synthetic import build_shop
from tests.wheel import ROOT, build_wheel, install_wheel, run_command

SHORT = [
    # one thread each: other tests run beside this one
    "cluster.encode_threads=1",
    "train.threads_per_worker=1",
    "classifier.max_pairs=100",
    "classifier.epochs=1",
    "sids.epochs=20",
    "policy.hidden_dim=32",
    "policy.num_layers=1",
    "sft.epochs=1",
    "grpo.enabled=false",
]
"""What the guide's last command gets beside its words."""


def _write(path: Path, head: list[str], rows: list[list]) -> None:
    with path.open("w", newline="", encoding="cp1252") as stream:
        csv.writer(stream, delimiter=";").writerows([head, *rows])


@pytest.mark.ray
def test_the_walk_through_goes_from_two_csv_files_to_recommendations_with_the_installed_wheel(tmp_path, tmp_path_factory):
    shop = build_shop(SyntheticConfig(num_items=48, num_users=80, num_interests=4), seed=0)
    items, log = shop.items.to_pylist(), shop.interactions.to_pylist()
    products = [[item["item_id"], f"{item['title']} é", f"{item['price'] or 5:.2f} EUR".replace(".", ",")] for item in items]
    _write(tmp_path / "products.csv", ["SKU", "Product name", "Unit price"], [*products, products[0], ["ghost", "", ""]])
    orders = [[row["user_id"], row["item_id"], f"{row['timestamp']:%d.%m.%Y %H:%M:%S}"] for row in log]
    gone = [[log[0]["user_id"], "gone", "01.02.2024 10:00:00"], ["", items[0]["item_id"], "01.02.2024 10:00:00"], orders[0]]
    _write(tmp_path / "orders.csv", ["Customer ID", "SKU", "Order date"], [*orders, *gone])

    guide = (ROOT / "docs/guide/own_data.md").read_text().partition("## Amazon Industrial")[0]
    commands = [line for block in re.findall(r"```bash\n(.*?)```", guide, re.DOTALL) for line in block.splitlines()]
    assert commands.pop() == "digr serve runs/own_data"  # tests/serve/test_run.py serves a run
    installed = install_wheel(build_wheel(tmp_path_factory.mktemp("dist")), tmp_path_factory.mktemp("clean") / "venv")
    summaries = []
    for command in commands:
        digr, *words = shlex.split(command)
        assert digr == "digr"
        changes = SHORT if words[0] == "run" else []
        summaries.append(json.loads(run_command(installed / digr, *words, *changes, "--json", cwd=tmp_path)))
        if "--check" in words:
            assert not (tmp_path / "runs").exists()
    assert [summary["status"] for summary in summaries] == ["checked", "done", "done", "built", "done"]
    assert summaries[1]["rows"] == {"interactions": len(log) + 2, "items": len(items) + 2}
    assert summaries[1]["dropped"] == {"interactions": {"no user id": 1}, "items": {}}
    run = tmp_path / "runs" / "own_data"
    ranked = (
        pads.dataset(run / "recommendations" / "ranked_test", exclude_invalid_files=True, format="parquet").to_table().to_pylist()
    )
    known = {item["item_id"] for item in items}
    assert "NDCG@10" in (tmp_path / summaries[-1]["report"]).read_text()
    assert ranked
    assert all(len(row["item_ids"]) >= 10 and set(row["item_ids"]) <= known for row in ranked)
    title = pads.dataset(run / "items", exclude_invalid_files=True, format="parquet").to_table(["title"])["title"][0].as_py()
    assert title.endswith(" é")
