"""The library stands alone: it imports, and reads a config, where Ray, vLLM and DeepSpeed are not installed."""

import pkgutil
import subprocess
import sys

import digr

BLOCKER = """
import importlib, sys
from importlib.machinery import PathFinder

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in {blocked} else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
for name in {modules}:
    importlib.import_module(name)
print(sorted(set(sys.modules) & {blocked}))
"""


def _import(modules: list[str], blocked: set[str]) -> subprocess.CompletedProcess:
    code = BLOCKER.format(modules=modules, blocked=blocked)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def _modules() -> list[str]:
    return ["digr", *(module.name for module in pkgutil.walk_packages(digr.__path__, "digr."))]


def test_the_library_imports_without_ray_vllm_deepspeed_and_what_stands_on_them():
    result = _import(_modules(), {"ray", "vllm", "deepspeed", "jobs", "serve", "boto3"})
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.strip() == "[]"


def test_what_this_test_blocks_cannot_be_imported():
    result = _import(["ray"], {"ray"})
    assert "No module named 'ray'" in result.stderr


def test_reading_a_config_loads_nothing_heavy():
    result = _import(["digr.config"], {"torch", "ray", "transformers", "numpy", "pyarrow"})
    assert result.returncode == 0, result.stderr[-2000:]
