# Every target sets up .venv first, so each works as the first command on a fresh clone.
PYTHON ?= python3
BIN := .venv/bin
COMPILE := $(BIN)/uv pip compile pyproject.toml --generate-hashes --python-version 3.11 --quiet --no-header \
	--no-annotate --python-platform x86_64-unknown-linux-gnu --constraint docker/constraints.txt

# Two modules of tests at once, as most of them wait for processes to start; in their order, which begins the longest early.
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# A module is compiled once, as it is first imported, even where the shell says otherwise: a study is many processes.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test test-slow test-long test-gpu test-gpu-ray lint types lock audit clean

demo: .venv/installed
	$(BIN)/oec run demo

test: .venv/installed
	$(PYTEST) -m "not slow"

# Of the modules that have one, as to import the others takes long; backwards, which begins the longest early.
test-slow: .venv/installed
	$(PYTEST) -m "slow and not long" $$(grep -rl --include='test_*.py' mark.slow tests | sort --reverse)

# Clusters of several nodes, the service under load, soak, whole studies of what quicker tests see in part: half an hour
# and more, best on a machine without other Ray clusters.
test-long: .venv/installed
	$(BIN)/python -m pytest -m long

# By the Python that is named, or .venv's: a machine with a GPU brings its own PyTorch, and may reach no package index.
DEVICE_PYTHON := $(if $(filter environment command,$(firstword $(origin PYTHON))),$(PYTHON),$(firstword $(wildcard $(BIN)/python) $(PYTHON)))

test-gpu:
	$(DEVICE_PYTHON) -m tests.cuda

test-gpu-ray:
	$(DEVICE_PYTHON) -m tests.cuda ray

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed
	$(BIN)/mypy --num-workers auto

# Every dependency with its hashes: of the image (requirements.lock), of everything (requirements-dev.lock).
lock: .venv/installed
	$(BIN)/pip install --quiet uv
	$(COMPILE) --extra buckets --extra postgres --output-file requirements.lock
	$(COMPILE) --extra dev --output-file requirements-dev.lock

audit: .venv/installed
	$(BIN)/pip install --quiet pip-audit
	$(BIN)/pip-audit --requirement requirements-dev.lock --require-hashes --disable-pip

# The versions of the lock without its hashes, as torch may come from another index here.
.venv/installed: pyproject.toml requirements-dev.lock
	$(PYTHON) -m venv .venv
	sed -n 's/^\([^ ].*\) \\$$/\1/p' requirements-dev.lock > .venv/versions.txt
	$(BIN)/pip install --quiet --quiet --upgrade pip
	$(BIN)/pip install --quiet --quiet --no-compile --constraint .venv/versions.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv oec-home
