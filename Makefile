# `make demo` trains, `make test` tests; each makes the virtual environment first where there is none.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed

.PHONY: demo test lint types format clean

demo: $(READY)
	$(BIN)/python examples/demo.py

test: $(READY) lint types
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/python -m mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[test,examples]'
	touch $@

clean:
	rm -rf build dist runs .pytest_cache .ruff_cache .mypy_cache .hypothesis .coverage *.egg-info
