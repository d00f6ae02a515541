# Every target sets up .venv first, so each works as the first command on a fresh clone.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow lint types clean

demo: .venv/installed
	$(BIN)/oec run demo

test: .venv/installed
	$(BIN)/python -m pytest -m "not slow"

test-slow: .venv/installed
	$(BIN)/python -m pytest -m slow

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed
	$(BIN)/mypy

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv oec-home
