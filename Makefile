# Every target creates .venv first if it needs it, so each works as the first command in a fresh clone.
PYTHON ?= python3
BIN := .venv/bin
COMPILE := $(BIN)/uv pip compile pyproject.toml --generate-hashes --python-version 3.11 --quiet --no-header \
	--no-annotate --python-platform x86_64-unknown-linux-gnu --constraint docker/constraints.txt

# Runs two test modules at a time, because most of them wait for processes to start. Modules stay in their collection
# order, which starts the longest ones early.
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# A study's many processes share compiled modules, even if the shell disables writing them.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test test-slow test-long test-gpu test-gpu-ray lint types lock audit clean

demo: .venv/installed
	$(BIN)/oec run demo

test: .venv/installed
	$(PYTEST) -m "not slow"

# Passes only the modules that have slow tests, because importing the others takes long. Reverse order starts the
# longest ones early.
test-slow: .venv/installed
	$(PYTEST) -m "slow and not long" $$(grep -rl --include='test_*.py' mark.slow tests | sort --reverse)

# Tests clusters of several nodes, the service under load, the soak, and whole studies that quicker tests cover in part.
# This takes half an hour or more, and works best on a machine without other Ray clusters.
test-long: .venv/installed
	$(BIN)/python -m pytest -m long

# Uses $PYTHON if it is set, else .venv's Python: a machine with a GPU has its own PyTorch and may not reach a package
# index.
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

# Locks every dependency by hash: those of the image in requirements.lock, all of them in requirements-dev.lock.
lock: .venv/installed
	$(BIN)/pip install --quiet uv
	$(COMPILE) --extra buckets --extra postgres --output-file requirements.lock
	$(COMPILE) --extra dev --output-file requirements-dev.lock

audit: .venv/installed
	$(BIN)/pip install --quiet pip-audit
	$(BIN)/pip-audit --requirement requirements-dev.lock --require-hashes --disable-pip

# Uses the lock's versions but not its hashes, because torch may come from a different index here.
.venv/installed: pyproject.toml requirements-dev.lock
	@echo "Installing into .venv, which takes a few minutes."
	@$(PYTHON) -m venv .venv
	@sed -n 's/^\([^ ].*\) \\$$/\1/p' requirements-dev.lock > .venv/versions.txt
	@$(BIN)/pip install --quiet --quiet --upgrade pip
	@$(BIN)/pip install --quiet --quiet --no-compile --constraint .venv/versions.txt --editable ".[dev]"
	@touch $@

clean:
	rm -rf .venv oec-home
