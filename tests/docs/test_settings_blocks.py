"""Blocks of TOML, YAML and JSON in the documentation are what the program reads."""

import json
import tomllib

import pytest
import yaml

from digr.config import build_config
from serve.contract.schemas import RecommendRequest
from serve.settings import AppArguments, LiveSettings
from tests.docs.test_python_blocks import FENCE, PAGES, ROOT


def _blocks(kind: str) -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in FENCE.finditer(text):
            if match["info"].split()[:1] == [kind]:
                found.append((f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, match.start()) + 1}", match["code"]))
    return found


def _place(value: str) -> str:
    return value if value.startswith(("README", "docs/")) else ""


@pytest.mark.parametrize(("place", "code"), _blocks("toml"), ids=_place)
def test_a_block_of_toml_is_a_part_of_a_config(place, code, tmp_path):
    values = tomllib.loads(code)
    values.setdefault("run", {}).setdefault("dir", str(tmp_path))
    build_config(values, place)


@pytest.mark.parametrize(("place", "code"), _blocks("yaml"), ids=_place)
def test_a_block_of_yaml_is_a_part_of_a_deployment(place, code):
    parts = yaml.safe_load(code)
    assert parts.keys() <= {"args", "user_config"}
    AppArguments.model_validate(parts.get("args", {}))
    LiveSettings.model_validate(parts.get("user_config", {}))


@pytest.mark.parametrize(("place", "code"), _blocks("json"), ids=_place)
def test_a_block_of_json_is_a_request(place, code):
    RecommendRequest.model_validate(json.loads(code))


def test_there_are_blocks_of_each_kind():
    assert [len(_blocks(kind)) > least for kind, least in (("toml", 10), ("yaml", 0), ("json", 0))] == [True] * 3
