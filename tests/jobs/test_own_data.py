"""The guide to one's own data does what it says: its commands go from two CSV files to recommendations."""

import csv
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pyarrow.dataset as pads
import pytest

from digr.config.run import SyntheticConfig
from digr.data.synthetic import build_shop

ROOT = Path(__file__).resolve().parents[2]


def _write(path: Path, head: list[str], rows: list[list]) -> None:
    with path.open("w", newline="", encoding="cp1252") as stream:
        csv.writer(stream, delimiter=";").writerows([head, *rows])


@pytest.mark.ray
def test_the_walk_through_goes_from_two_csv_files_to_recommendations(tmp_path):
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
    summaries = []
    for command in commands:
        digr, *words = shlex.split(command)
        assert digr == "digr"
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        called = [sys.executable, "-m", "jobs", *words, "--json"]
        done = subprocess.run(called, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
        summaries.append(json.loads(done.stdout))
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
    assert ranked
    assert all(len(row["item_ids"]) >= 10 and set(row["item_ids"]) <= known for row in ranked)
    title = pads.dataset(run / "items", exclude_invalid_files=True, format="parquet").to_table(["title"])["title"][0].as_py()
    assert title.endswith(" é")
